"""qdel, qhold, qrls, qstat, pbsnodes and the typed routes against a real API process."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from hpcmesos.errors import InvalidValue, JobFinished, Unauthorized, UnknownJob, UsageError
from hpcmesos.model import Cause, JobState
from hpcmesos.queue.records import AttemptRecord

if TYPE_CHECKING:
    from .api_kit import Api, ObedientLeader

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


@pytest.fixture(scope="module", autouse=True)
def two_nodes(api: Api) -> None:
    api.add_nodes(2, gpus=2)


def test_qdel_is_silent_and_done_when_it_returns(api: Api, obedient: ObedientLeader) -> None:
    job = api.qsub()
    done = api.stub("qdel", "-m", "enough", str(job.seq))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    after = api.store.job(job.seq)
    assert after is not None
    assert after.state is JobState.COMPLETE
    wish = next(row for row in obedient.taken if row.seq == job.seq and row.kind == "delete")
    assert (wish.user, wish.payload["message"], wish.payload["index"]) == (api.me, "enough", None)


def test_qdel_names_every_id_that_it_cannot_delete(api: Api, obedient: ObedientLeader) -> None:
    finished, alive = api.qsub(), api.qsub()
    with api.client() as client:
        assert client.command("qdel", [str(finished.seq)]).code == 0
        foreign = api.client(api.token_of("ann"))
        others = foreign.command("qdel", [str(alive.seq)])
        foreign.close()
        reply = client.command("qdel", ["999999", f"{finished.seq}.hpcm", str(alive.seq)])
        pro = client.command("qdel", ["999999", str(finished.seq)], personality="pbspro")
    assert (others.code, others.stderr) == (159, f"qdel: Unauthorized Request  {alive.seq}.hpcm\n")
    assert reply.code == 153
    assert reply.stderr.splitlines() == [
        "qdel: Unknown Job Id Error 999999.hpcm",
        f"qdel: Request invalid for state of job MSG=invalid state for job - COMPLETE {finished.seq}.hpcm",
    ]
    after = api.store.job(alive.seq)
    assert after is not None
    assert after.state is JobState.COMPLETE
    assert pro.code == 35
    assert pro.stderr.splitlines() == [
        "qdel: Unknown Job Id 999999.hpcm",
        f"qdel: Job has finished {finished.seq}.hpcm",
    ]


def test_qhold_and_qrls(api: Api, obedient: ObedientLeader) -> None:
    job = api.qsub()
    with api.client() as client:
        assert client.command("qhold", [str(job.seq)]).code == 0
        assert client.job(str(job.seq)).state == "H"
        with pytest.raises(Unauthorized):
            client.command("qhold", ["-h", "s", str(job.seq)])
        assert client.command("qrls", [str(job.seq)]).code == 0
        assert client.job(str(job.seq)).state == "Q"
        with pytest.raises(UsageError):
            client.command("qhold", [])
    assert [
        row.payload["kinds"] for row in obedient.taken if row.seq == job.seq and row.kind != "submit"
    ] == [
        "u",
        "u",
    ]


@pytest.mark.parametrize("words", [["{array}[2]"], ["{array}[1-3]"], ["-t", "2", "{array}[]"]])
def test_elements_of_an_array_are_not_held_alone(
    api: Api, obedient: ObedientLeader, words: list[str]
) -> None:
    with api.client() as client:
        made = client.command(
            "qsub", ["-t", "0-5", "--", "/bin/true"], cwd=str(api.work), environ={"HOME": "/"}
        )
        array = made.stdout.partition("[")[0]
        reply = client.command("qhold", [word.format(array=array) for word in words])
    assert reply.code != 0
    assert f"for all of them: qhold {array}[]" in reply.stderr
    assert "hold" not in {row.kind for row in obedient.taken}


def test_the_typed_client_deletes_and_waits(api: Api, obedient: ObedientLeader) -> None:
    job = api.qsub()
    answers = []

    def wait() -> None:
        with api.client() as client:
            answers.append(client.wait(str(job.seq)))

    waiter = threading.Thread(target=wait)
    waiter.start()
    with api.client() as client:
        assert client.wait(str(job.seq), timeout=0).state == "Q"
        assert client.delete(str(job.seq)).state == "C"
        waiter.join(timeout=10)
        with pytest.raises(JobFinished):
            client.delete(str(job.seq))
        with pytest.raises(UnknownJob):
            client.wait("999999")
        assert client.leader().address == "127.0.0.1:1"
    assert [(answer.id, answer.state, answer.exit_status) for answer in answers] == [
        (f"{job.seq}.hpcm", "C", None)
    ]


def test_a_running_and_a_finished_job_in_every_view(api: Api) -> None:
    job = api.qsub("-l", "nodes=1:ppn=2:gpus=1", "-v", "SECRET=42")
    key = api.start(job, "node1", ("SIM-node1-1",))
    number = str(job.seq)
    with api.client() as client:
        full = client.command("qstat", ["-f", number], environ={"TZ": "UTC"}).stdout
        assert "job_state = R" in full
        assert "exec_host = node1/0+node1/1" in full
        assert "SECRET=42" in full.replace("\n\t", "")
        assert f"{number}.hpcm" in client.command("qstat", []).stdout
        assert "node1" in client.command("qstat", ["-n", "-1", number]).stdout
        assert client.job(number).nodes == ["node1"]
        node = next(node for node in client.nodes() if node.name == "node1")
        assert (node.state, node.jobs) == ("free", [f"{number}.hpcm"])
        assert [(gpu.state, gpu.job) for gpu in node.gpus] == [
            ("free", None),
            ("allocated", f"{number}.hpcm"),
        ]
        assert f"0/{number}.hpcm" in client.command("pbsnodes", ["-a"]).stdout
    with api.client(api.token_of("ann")) as other:
        hidden = other.command("qstat", ["-f", number]).stdout
        assert "SECRET" not in hidden
        assert "Variable_List" not in hidden
    now = datetime.now(UTC)
    api.end(
        AttemptRecord(key=key, started_at=now, ended_at=now, cause=Cause.APP, code=3, usage={"cput": 61.0}),
        exit_status=3,
    )
    with api.client() as client:
        row = client.command("qstat", [number]).stdout.splitlines()[-1].split()
        assert (row[0], row[3], row[4]) == (f"{number}.hpcm", "00:01:01", "C")
        assert "exit_status = 3" in client.command("qstat", ["-f", number]).stdout
        assert "<exit_status>3</exit_status>" in client.command("qstat", ["-x", number]).stdout
        found = json.loads(
            client.command("qstat", ["-f", "-F", "json", "-x", number], personality="pbspro").stdout
        )
        assert found["Jobs"][f"{number}.hpcm"]["Exit_status"] == 3
        gone = client.command("qstat", [number], personality="pbspro")
        assert gone.code == 35
        assert gone.stderr.startswith(f"qstat: {number}.hpcm Job has finished, use -x or -H")
        assert client.job(number).cause == "APP"


def test_unknown_ids_and_queues_leave_the_others_shown(api: Api) -> None:
    job = api.qsub()
    with api.client() as client:
        reply = client.command("qstat", ["999999", str(job.seq)])
        assert (reply.code, reply.stderr) == (153, "qstat: Unknown Job Id Error 999999.hpcm\n")
        assert f"{job.seq}.hpcm" in reply.stdout
        pro = client.command("qstat", ["999999"], personality="pbspro")
        assert (pro.code, pro.stderr) == (153, "qstat: Unknown Job Id 999999.hpcm\n")
        assert client.command("qstat", ["nosuch"]).code == 172
        assert "batch" in client.command("qstat", ["-Q"]).stdout
        assert "hpcm" in client.command("qstat", ["-B"]).stdout
        assert "batch" in client.command("qstat", ["-q"]).stdout
        for huge in ("99999999999999999999", "1[99999999999]", "1.elsewhere"):
            assert client.command("qstat", [huge]).code == 153
            with pytest.raises(UnknownJob):
                client.job(huge)


def test_why_says_that_the_leader_cannot_be_reached(api: Api) -> None:
    queued, held = api.qsub(), api.qsub("-h")
    with api.client() as client:
        text = client.command("qstat", ["--why", str(queued.seq), str(held.seq)]).stdout
    assert "the leader cannot be reached now" in text
    assert "held by its user" in text


def test_pbsnodes_shows_and_only_operators_change(api: Api) -> None:
    with api.client() as client:
        assert client.command("pbsnodes", []).stdout.startswith("node1\n")
        assert set(json.loads(client.command("pbsnodes", ["-a", "-F", "json"]).stdout)["nodes"]) >= {"node1"}
        with pytest.raises(Unauthorized):
            client.command("pbsnodes", ["-o", "node1"])
        missing = client.command("pbsnodes", ["nowhere"])
        assert (missing.code, missing.stderr) == (178, "pbsnodes: Unknown node nowhere\n")


def test_unknown_commands_and_personalities(api: Api) -> None:
    with api.client() as client:
        with pytest.raises(UsageError):
            client.command("qfly", [])
        with pytest.raises(InvalidValue):
            client.command("qstat", [], personality="slurm")


def test_metrics_count_requests_and_nodes(api: Api) -> None:
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(api.socket))
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'hpcmesos_nodes{state="free"} 2.0' in text
    assert 'route="/v1/commands/{name}"' in text
    assert 'hpcmesos_gpus{state="free"}' in text
