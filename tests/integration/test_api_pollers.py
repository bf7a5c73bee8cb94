"""Workflow tools that ask again and again: they are answered beside a leader that works, and hinder nobody."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

POLLERS, QUESTIONS = 200, 3


@pytest.fixture(scope="module", autouse=True)
def a_node(api: Api) -> None:
    api.add_nodes(1, gpus=1)


def test_two_hundred_pollers_beside_a_leader_that_holds_every_row(api: Api) -> None:
    """Each asks for a list of ids at once. All rows that a leader ever locks are locked meanwhile."""
    with api.client() as client:
        ids = client.submit_many([["-h", "-N", f"job{n}", "--", "true"] for n in range(50)])
    answers: list[tuple[int, int]] = []
    faults: list[BaseException] = []
    ready = threading.Barrier(POLLERS + 1)

    def poll() -> None:
        try:
            with api.client(patience=60.0) as client:
                ready.wait()
                for _ in range(QUESTIONS):
                    reply = client.command("qstat", ids)
                    answers.append((reply.code, len(reply.stdout.splitlines())))
        except BaseException as fault:
            faults.append(fault)
            ready.abort()

    threads = [threading.Thread(target=poll) for _ in range(POLLERS)]
    with psycopg.connect(api.database.owner) as held:
        held.execute("SELECT * FROM leadership FOR UPDATE")
        held.execute("SELECT * FROM jobs FOR UPDATE")
        held.execute("SELECT * FROM nodes FOR UPDATE")
        for thread in threads:
            thread.start()
        ready.wait()
        with api.client(patience=60.0) as client:  # who submits meanwhile gets his turn
            began = time.monotonic()
            client.command("qsub", ["--", "true"])
            took = time.monotonic() - began
        for thread in threads:
            thread.join(120)
    assert not faults, faults[0]
    assert answers == [(0, 2 + len(ids))] * (POLLERS * QUESTIONS)
    assert took < 30, took


def test_a_list_of_ids_is_one_question_and_tells_of_each(api: Api) -> None:
    with api.client() as client:
        one, two = client.submit_many([["-h", "--", "true"], ["-h", "--", "false"]])
        reply = client.command("qstat", [one, "999999", two])
    assert [line.split()[0] for line in reply.stdout.splitlines()[2:]] == [one, two]
    assert (reply.code, reply.stderr.count("\n")) == (153, 1)
    assert "999999" in reply.stderr
