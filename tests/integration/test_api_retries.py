"""Commands whose answer is lost once they are done, and which their caller therefore sends again."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from hpcmesos.api_schema import ReservationRequest, ScheduleRequest, Submission
from hpcmesos.client import Client
from hpcmesos.connection import UnixConnection
from hpcmesos.errors import InvalidValue, JobFinished, KeyReused, MasterUnreachable, UnknownSchedule
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import documents
from hpcmesos.queue.records import AttemptRecord, Move, QueueRecord, RequestKey

from .api_kit import ME, SCRIPT
from .leader_kit import wait_until

if TYPE_CHECKING:
    from .api_kit import Api, ObedientLeader

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]
_CHUNK = 65536


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    return {"managers": (ME,)}


class Relay:
    """Stands before an API process. Of the first ``losing`` requests the answer is lost, once it is there: what was
    asked for is done by then, and committed.
    """

    def __init__(self, path: Path, behind: Path) -> None:
        self.path = path
        self.losing = 1
        self.lost = 0
        self.before_losing: Callable[[], object] = lambda: None
        self._behind = behind
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._pool = ThreadPoolExecutor()
        self._pool.submit(self._accept)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._pool.shutdown()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._pool.submit(self._serve, connection)

    def _serve(self, caller: socket.socket) -> None:
        with caller, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._behind))
            up = threading.Thread(target=_copy, args=(caller, server))
            up.start()
            while answer := server.recv(_CHUNK):
                if self.lost < self.losing:
                    self.lost += 1
                    self.before_losing()
                    break
                caller.sendall(answer)
            with suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)
            up.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(api: Api, tmp_path: Path) -> Iterator[Relay]:
    with closing(Relay(tmp_path / "relay.sock", api.socket)) as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def two_nodes(api: Api) -> None:
    api.add_nodes(2, gpus=2)


def running(api: Api) -> int:
    job = api.qsub("-r", "y")
    api.start(job, "node1")
    return job.seq


def asked(leader: ObedientLeader, seq: int) -> list[str]:
    """The kinds of the wishes about a job that the leader has taken."""
    return [row.kind for row in leader.taken if row.seq == seq and row.kind != "submit"]


def taken(leader: ObedientLeader, kind: str) -> Mapping[str, Any]:
    """What the first wish of this kind asks for, once the leader has it."""
    return wait_until(lambda: [row.payload for row in leader.taken if row.kind == kind], kind)[0]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["qsig", "-s", "USR1"], "signal"),
        (["qmsg", "-O", "hello"], "message"),
        (["qrerun"], "rerun"),
        (["qdel"], "delete"),
        (["qalter", "-p", "3"], "alter"),
    ],
)
def test_what_is_sent_again_is_done_once(
    api: Api, obedient: ObedientLeader, relay: Relay, words: list[str], kind: str
) -> None:
    first, second = running(api), running(api)
    command, *argv = words
    with Client(socket=relay.path, patience=5.0) as client:
        reply = client.command(command, [*argv, str(first), f"{second}.hpcm"])
    assert (reply.code, reply.stderr, relay.lost) == (0, "", 1)
    assert (asked(obedient, first), asked(obedient, second)) == ([kind], [kind])


def test_the_stub_too(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    seq = running(api)
    relay.losing = 2
    result = replace(api, socket=relay.path).stub("qsig", "-s", "USR1", str(seq))
    assert (result.returncode, result.stdout, result.stderr, relay.lost) == (0, b"", b"", 2)
    assert asked(obedient, seq) == ["signal"]


def test_what_the_first_try_did_is_no_reason_to_refuse_the_second(
    api: Api, obedient: ObedientLeader, relay: Relay
) -> None:
    job, other = api.qsub(), api.qsub()
    with Client(socket=relay.path, patience=5.0) as client:
        reply = client.command("qdel", [str(job.seq)])
        assert (reply.code, reply.stderr, relay.lost) == (0, "", 1)
        done = api.store.job(job.seq)
        assert done is not None
        assert done.state is JobState.COMPLETE
        assert client.command("qdel", [str(job.seq)]).code == 170  # another request, though of the same words
        relay.losing = 2
        reply = client.command("qdel", [str(job.seq), str(other.seq)])
    assert relay.lost == 2
    assert (reply.code, reply.stderr.count("\n")) == (170, 1)  # of the first job alone
    assert asked(obedient, other.seq) == ["delete"]


def test_a_program_that_deletes_is_told_of_no_failure(
    api: Api, obedient: ObedientLeader, relay: Relay
) -> None:
    job = api.qsub()
    with Client(socket=relay.path, patience=5.0) as client:
        assert client.delete(str(job.seq)).state == "C"
        assert (relay.lost, asked(obedient, job.seq)) == (1, ["delete"])
        with pytest.raises(JobFinished):
            client.delete(str(job.seq))


def test_a_job_is_started_by_hand_once(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    waits, starts = api.qsub(), api.qsub()
    relay.before_losing = lambda: api.start(starts, "node2")
    with Client(socket=relay.path, patience=5.0) as client:
        reply = client.command("qrun", ["-a", str(waits.seq), str(starts.seq)])
    assert (reply.code, reply.stderr, relay.lost) == (0, "", 1)
    assert (asked(obedient, waits.seq), asked(obedient, starts.seq)) == (["run"], ["run"])


def test_a_job_that_was_started_by_hand_and_waits_again_is_not_waited_for(
    api: Api, obedient: ObedientLeader
) -> None:
    job = api.qsub("-r", "y")
    words = ["-H", "node1", str(job.seq)]
    with api.client() as first, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(first.command, "qrun", words, key="by hand")
        wait_until(lambda: asked(obedient, job.seq) == ["run"], "the wish")
        attempt = api.start(job, "node1")
        assert asking.result().code == 0
    with api.leader.transaction() as tx:
        tx.finish_attempts([AttemptRecord(key=attempt, cause=Cause.NODE_LOST)])
        back = Move(
            seq=job.seq, index=None, source=JobState.RUNNING, target=JobState.QUEUED, event="requeued"
        )
        assert tx.move_jobs([back])
    with api.client() as second:
        reply = second.command("qrun", words, key="by hand")
    assert (reply.code, reply.stderr) == (0, "")
    assert asked(obedient, job.seq) == ["run"]


def test_two_jobs_exchange_their_places_once(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    first, second = api.qsub().seq, api.qsub().seq
    with Client(socket=relay.path, patience=5.0) as client:
        assert client.command("qorder", [str(first), str(second)]).code == 0
    assert relay.lost == 1
    assert asked(obedient, first) == ["order"]


def test_qmgr_adds_once_and_creates_what_it_created(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    lines = (
        "create queue fresh queue_type=e\nset queue batch max_running += 5\nset queue batch max_running += 5"
    )

    def create() -> None:
        with api.leader.transaction() as tx:
            tx.put_queue(QueueRecord(name="fresh"))

    relay.before_losing = create
    with Client(socket=relay.path, patience=20.0) as client:
        reply = client.command("qmgr", ["-c", lines])
    assert (reply.code, reply.stderr, relay.lost) == (0, "", 1)
    changes = [(row.payload["action"], row.payload["name"]) for row in obedient.taken if row.kind == "object"]
    assert changes == [("create", "fresh"), ("set", "batch"), ("set", "batch")]


def test_a_schedule_runs_once_more_once(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    wanted = ScheduleRequest(
        name="nightly", rule="@daily", job=Submission(["--", "true"]), environ={"HOME": "/"}
    )
    # This leader takes the wish, and makes nothing of it.
    with api.client() as client, pytest.raises(InvalidValue, match="no leader has taken it yet"):
        client.add_schedule(wanted)
    [made] = [row.payload["schedule"] for row in obedient.taken if row.kind == "schedule"]
    with psycopg.connect(api.database.owner) as connection:
        connection.execute(
            "INSERT INTO schedules (owner, name, rule, job) VALUES (%s, 'nightly', '@daily', %s)",
            (api.me, json.dumps(made["job"])),
        )
    with Client(socket=relay.path, patience=5.0) as client:
        for _ in range(2):
            client.change_schedule(api.me, "nightly", "run")
    assert relay.lost == 1
    actions = [row.payload["action"] for row in obedient.taken if row.kind == "schedule"]
    assert actions == ["add", "run", "run"]


def test_a_schedule_is_made_and_removed_once(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    wanted = ScheduleRequest(
        name="weekly", rule="@weekly", job=Submission(["--", "true"]), environ={"HOME": "/"}
    )

    def rows(statement: str, *values: str) -> None:
        with psycopg.connect(api.database.owner) as connection:
            connection.execute(statement, values)

    def add() -> None:
        made = taken(obedient, "schedule")["schedule"]
        into = "INSERT INTO schedules (owner, name, rule, job) VALUES (%s, 'weekly', '@weekly', %s)"
        rows(into, api.me, json.dumps(made["job"]))

    relay.before_losing = add
    with Client(socket=relay.path, patience=5.0) as client:
        assert client.add_schedule(wanted).name == "weekly"
        with pytest.raises(InvalidValue, match="weekly is there already"):
            client.add_schedule(wanted)
        relay.losing = 2
        relay.before_losing = lambda: rows("DELETE FROM schedules WHERE name = 'weekly'")
        assert "weekly" not in [one.name for one in client.change_schedule(api.me, "weekly", "remove")]
        with pytest.raises(UnknownSchedule):
            client.change_schedule(api.me, "weekly", "remove")
    assert relay.lost == 2
    actions = [row.payload["action"] for row in obedient.taken if row.kind == "schedule"]
    assert actions == ["add", "remove"]


def test_a_reservation_is_made_and_taken_away_once(api: Api, obedient: ObedientLeader, relay: Relay) -> None:
    wanted = ReservationRequest(name="kept", ends_at=time.time() + 3600, nodes=["node1"])

    def put(*names: str) -> None:
        with api.leader.transaction() as tx:
            values = {name: taken(obedient, "object")["value"] for name in names}
            tx.put_document(documents.RESERVATIONS, values)

    relay.before_losing = lambda: put("kept")
    with Client(socket=relay.path, patience=5.0) as client:
        assert client.reserve(wanted).nodes == ["node1"]
        with pytest.raises(InvalidValue, match="there is a reservation kept already"):
            client.reserve(wanted)
        relay.losing, relay.before_losing = 2, put
        assert client.unreserve("kept") == []
        with pytest.raises(InvalidValue, match="there is no reservation kept"):
            client.unreserve("kept")
    assert relay.lost == 2
    assert [row.payload["action"] for row in obedient.taken if row.kind == "object"] == ["create", "delete"]


def test_another_master_is_not_asked_to_stop_in_its_place(api: Api, relay: Relay) -> None:
    """Refused words, which stop nothing: whether they come a second time is what counts."""
    relay.losing = 2
    with Client(socket=relay.path, patience=5.0) as client, pytest.raises(MasterUnreachable):
        client.command("qterm", ["-t", "immediate"])
    assert relay.lost == 1
    result = replace(api, socket=relay.path).stub("qterm", "-t", "immediate")
    assert (result.returncode, relay.lost) == (255, 2)


def test_a_key_is_for_one_request(api: Api, obedient: ObedientLeader) -> None:
    seq = running(api)
    with api.client() as client:
        client.command("qsig", ["-s", "USR1", str(seq)], key="once")
        client.command("qsig", ["-s", "USR1", str(seq)], key="once")
        with pytest.raises(KeyReused):
            client.command("qsig", ["-s", "USR2", str(seq)], key="once")
        client.command("qsig", ["-s", "USR1", str(seq)], key="twice")
    assert asked(obedient, seq) == ["signal", "signal"]


def test_a_key_is_for_one_request_whatever_the_other_is_about(api: Api, obedient: ObedientLeader) -> None:
    first, second = running(api), running(api)
    with api.client() as client:
        assert client.command("qdel", [str(first)], key="one").code == 0
        for words in ([str(second)], [str(second), str(first)]):
            with pytest.raises(KeyReused):
                client.command("qdel", words, key="one")
        for command, words in (("qsig", [str(second)]), ("qsub", ["-N", "x"])):
            with pytest.raises(KeyReused):
                client.command(command, words, script=SCRIPT, environ={"HOME": "/"}, key="one")
        client.command("qsub", [], script=SCRIPT, environ={"HOME": "/"}, key="two")
        with pytest.raises(KeyReused):
            client.command("qdel", [str(second)], key="two")
    assert (asked(obedient, first), asked(obedient, second)) == (["delete"], [])


def test_words_may_be_long_and_keys_may_not(api: Api, obedient: ObedientLeader) -> None:
    long = "".join(map(chr, range(32, 9000)))  # more than a row of an index holds
    with api.client() as client:
        array = client.command("qsub", ["-t", "0-9999"], script=SCRIPT, environ={"HOME": "/"}).stdout.split(
            "["
        )[0]
        elements = f"{array}[{','.join(str(number) for number in range(0, 9999, 2))}]"
        for _ in range(2):
            assert client.command("qdel", [elements], key="long").code == 0
        for command in ("qsub", "qdel"):
            with pytest.raises(InvalidValue, match="the idempotency key has 8968 characters; at most 255"):
                client.command(command, ["-N", "x"], script=SCRIPT, environ={"HOME": "/"}, key=long)
    assert asked(obedient, int(array)) == ["delete"]


def test_who_sends_no_key_is_served_each_time(api: Api, obedient: ObedientLeader) -> None:
    seq = running(api)
    for _ in range(2):
        with UnixConnection(str(api.socket), 10.0) as connection:
            body = json.dumps({"argv": ["-s", "USR1", str(seq)]})
            connection.request("POST", "/v1/commands/qsig", body, {"Content-Type": "application/json"})
            assert connection.getresponse().status == http.client.OK
    assert asked(obedient, seq) == ["signal", "signal"]


def test_twins_at_the_same_moment_are_one_wish(api: Api) -> None:
    key = RequestKey("twins", b"what")
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: api.store.wish("signal", 1, api.me, {"signal": 10}, key=key), range(8)))
    assert len(ids) == 1
    assert api.store.inbox_pending(list(ids)) == ids
    assert api.store.wished(api.me, key) in ids
    assert api.store.wished("another", key) is None
    with pytest.raises(KeyReused):
        api.store.wished(api.me, RequestKey("twins", b"else"))
