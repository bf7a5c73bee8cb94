"""The Python client: many jobs in one call, their events, their ends and their output."""

from __future__ import annotations

from hpcmesos.api_schema import Submission
from hpcmesos.client import Client
from tests.e2e.cluster_kit import LiveCluster


def test_many_jobs_from_a_program(cluster: LiveCluster) -> None:
    work = cluster.work()
    words = ["-S", "/bin/sh", "-o", str(work), "-e", str(work)]
    jobs: list[Submission | list[str]] = [
        [*words, "-N", f"sweep{number}", "--", "sh", "-c", f"echo {number}; exit {number % 3}"]
        for number in range(30)
    ]
    jobs.append(Submission([*words, "-N", "script"], b"#!/bin/sh\necho from a script\n"))
    with Client(socket=cluster.described.api_socket) as client:
        start = max((event.id for event in client.events()), default=0)
        ids = client.submit_many(jobs, cwd=str(work))
        ended = [client.wait(job, timeout=60) for job in ids]
        assert [job.exit_status for job in ended] == [*(n % 3 for n in range(30)), 0]
        events = list(client.events(start))
        for job in ids:
            states = [event.state for event in events if event.job == job]
            assert [state for state in states if state in ("R", "C")] == ["R", "C"]
            assert [event.state for event in client.events(start, job=job)] == states
        assert b"".join(client.logs(ids[-1])) == b"from a script\n"
        assert b"".join(client.logs(ids[7])) == b"7\n"
