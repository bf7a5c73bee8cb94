"""Plain `qstat -t`, which reads elements in a way of its own, against a real API process."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from hpcmesos.model import Cause, JobState
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    JobRecord,
    Move,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.units import format_duration

from .api_kit import SCRIPT

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


@pytest.fixture(scope="module", autouse=True)
def one_node(api: Api) -> None:
    api.add_nodes(1, gpus=0)


def begin(api: Api, array: JobRecord, *indexes: int) -> None:
    """First attempts of elements that have no row."""
    starts = []
    for index in indexes:
        key = AttemptKey(array.seq, index, 1)
        share = ShareRecord(attempt=key, node="node1", position=0, cpus=1, mem=0, slots=1)
        starts.append(StartRecord(attempt=key, shares=(share,), new=True))
    with api.leader.transaction() as tx:
        assert len(tx.apply_starts(starts)) == len(indexes)


def end(api: Api, array: JobRecord, index: int, cput: float) -> None:
    api.end(
        AttemptRecord(
            key=AttemptKey(array.seq, index, 1),
            ended_at=datetime.now(UTC),
            cause=Cause.OK,
            code=0,
            usage={"cput": cput, "mem": 0, "walltime": 1},
        ),
        0,
    )
    with api.leader.transaction() as tx:
        tx.release_shares([Release(attempt=AttemptKey(array.seq, index, 1), node="node1")])


def change(api: Api, array: JobRecord, index: int | None, **changes: object) -> None:
    with api.leader.transaction() as tx:
        state = JobState.RUNNING
        tx.move_jobs(
            [Move(seq=array.seq, index=index, source=state, target=state, event="changed", changes=changes)]
        )


@pytest.fixture
def array(api: Api) -> JobRecord:
    """Of eight elements 2 is suspended, 3 over and in history, 5 over, 6 of another name, 7 deleted before it began."""
    with api.client() as client:
        words = ["-t", "1-8", "-N", "many"]
        reply = client.command("qsub", words, script=SCRIPT, cwd=str(api.work), environ={"HOME": "/"})
    made = api.store.job(int(reply.stdout.partition("[")[0]))
    assert made is not None
    begin(api, made, 2, 3, 5, 6)
    end(api, made, 3, 61.9)
    assert api.leader.sweep(datetime.now(UTC) + timedelta(days=1), timedelta(0))  # of earlier tests, too
    end(api, made, 5, 0.2)
    change(api, made, 2, suspended=True)
    change(api, made, 6, name="other")
    change(api, made, None, todo=((1, 2), (4, 5), (8, 9)), deleted=((7, 8),))
    return made


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[2:]]


def test_elements_of_all_kinds_stand_in_their_places(api: Api, array: JobRecord) -> None:
    with api.client() as client:
        shown = rows(client.command("qstat", ["-t", str(array.seq)]).stdout)
        full = json.loads(client.command("qstat", ["-f", "-t", "-F", "json", str(array.seq)]).stdout)["Jobs"]
    ids = [f"{array.seq}[].hpcm", *(f"{array.seq}[{index}].hpcm" for index in range(1, 9))]
    names = ["many", *(f"many-{index}" for index in (1, 2, 3, 4, 5)), "other-6", "many-7", "many-8"]
    used = {3: "00:01:01", 5: "00:00:00"}
    times = [used.get(place, "0") for place in range(9)]
    states = list("RQSCQCRCQ")
    owner = [api.me] * 9
    assert shown == [list(row) for row in zip(ids, names, owner, times, states, ["batch"] * 9, strict=True)]
    # JSON has OpenPBS' letters in both families.
    assert [(job, one["job_state"]) for job, one in full.items()] == list(zip(ids, "BQSXQXRXQ", strict=True))


def test_openpbs_shows_ended_elements_of_a_live_array(api: Api, array: JobRecord) -> None:
    with api.client() as client:
        shown = rows(client.command("qstat", ["-t"], personality="pbspro").stdout)
        parents = client.command("qstat", ["-t", "-J", str(array.seq)], personality="pbspro").stdout
    mine = [row for row in shown if row[0].startswith(f"{array.seq}[")]
    assert [row[4] for row in mine] == list("BQSQXRXQ")  # the third is in history, for which nobody asked
    assert [row[0] for row in rows(parents)] == [f"{array.seq}[].hpcm"]


def test_an_element_and_its_array_show_once(api: Api, array: JobRecord) -> None:
    with api.client() as client:
        shown = rows(client.command("qstat", ["-t", f"{array.seq}[5]", str(array.seq)]).stdout)
        alone = rows(client.command("qstat", ["-t", f"{array.seq}[5]", f"{array.seq}[4]"]).stdout)
        elsewhere = client.command("qstat", ["-t", "closed"]).stdout
    assert len(shown) == 9
    assert [row[4] for row in alone] == ["C", "Q"]
    assert str(array.seq) not in elsewhere


def test_processor_time_past_all_bounds_breaks_no_list(api: Api, array: JobRecord) -> None:
    begin(api, array, 1, 4)
    end(api, array, 1, 3e9)
    end(api, array, 4, 1e300)
    with api.client() as client:
        shown = rows(client.command("qstat", ["-t", str(array.seq)]).stdout)
    times = {row[0]: row[3] for row in shown}
    of = [times[f"{array.seq}[{index}].hpcm"] for index in (1, 4, 5)]
    assert of == [format_duration(seconds) for seconds in (3e9, 2**53, 0)]
