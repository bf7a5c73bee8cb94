"""The small pure parts of the services: paths, replies, holds, zones."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from hpcmesos.errors import InvalidValue, JobFinished, NeverFits, UnknownJob, UnknownQueue
from hpcmesos.master.services.facts import hold_types
from hpcmesos.master.services.output_paths import final_paths, shown_paths, stored
from hpcmesos.master.services.replies import Refusals, exit_code
from hpcmesos.master.services.site import Remembered, client_zone
from hpcmesos.master.services.tokens import check_node, check_user
from hpcmesos.model import JobId
from hpcmesos.pbs.paths import parse_path
from hpcmesos.pbs.personalities import Personality

TORQUE, PBSPRO = Personality.TORQUE, Personality.PBSPRO


def test_paths_get_the_id_when_it_is_known() -> None:
    submission = {
        "stdout_template": stored(parse_path(None, "o", "/home/ann/run", "login1")),
        "stderr_template": stored(parse_path("log/$PBS_JOBID.err", "e", "/home/ann/run", "login1")),
    }
    job = JobId(12, "hpcm")
    assert final_paths(submission, job, "train") == (
        "/home/ann/run/train.o12",
        "/home/ann/run/log/12.hpcm.err",
    )
    element = JobId(12, "hpcm", 3)
    assert final_paths(submission, element, "train")[0] == "/home/ann/run/train.o12-3"
    assert shown_paths(submission, job, "train")[0] == "login1:/home/ann/run/train.o12"
    assert final_paths({}, job, "train") == (None, None)
    assert shown_paths({}, job, "train") == ("", "")


def test_the_first_refusal_counts_for_torque_and_the_last_for_openpbs() -> None:
    for personality, code in ((TORQUE, 153), (PBSPRO, 35)):
        refusals = Refusals("qdel", personality)
        refusals.add("1.hpcm", UnknownJob(""))
        refusals.add("2.hpcm", JobFinished(""))
        assert refusals.reply().code == code
        assert len(refusals.reply().stderr.splitlines()) == 2


def test_the_families_number_their_errors_differently() -> None:
    errors = (InvalidValue(""), UnknownQueue(""), NeverFits(""), UnknownJob(""))
    assert [exit_code(error, TORQUE) for error in errors] == [168, 172, 190, 153]
    assert [exit_code(error, PBSPRO) for error in errors] == [166, 170, 188, 153]


@pytest.mark.parametrize(
    ("holds", "shown"), [("", "n"), ("u", "u"), ("d", "s"), ("du", "us"), ("uosd", "uos")]
)
def test_a_dependency_shows_as_a_system_hold(holds: str, shown: str) -> None:
    assert hold_types(holds) == shown


def test_the_clients_zone_is_found_or_ours_is_taken() -> None:
    here = datetime.now(UTC).astimezone().utcoffset()
    assert client_zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    assert client_zone(":Europe/Berlin") == ZoneInfo("Europe/Berlin")
    for unknown in (None, "", "Nowhere/Land", "/etc/passwd", "../../etc/passwd", "\0", "Europe"):
        assert datetime.now(client_zone(unknown)).utcoffset() == here


def test_names_that_could_break_out_are_refused() -> None:
    assert check_node("node-1.rack2.site") == "node-1.rack2.site"
    assert check_user("ann.b") == "ann.b"
    for name in ("", "-n", "a b", "a/b", "a\n", "n" * 300, "..", "a..b", "ä"):
        with pytest.raises(InvalidValue):
            check_node(name)
    for name in ("", "-x", "a b", "a/b", "a\n", "a" * 100):
        with pytest.raises(InvalidValue):
            check_user(name)


def test_what_is_remembered_is_as_old_as_the_question_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, values = [100.0], iter(range(10))
    monkeypatch.setattr("hpcmesos.master.services.site.time.monotonic", lambda: now[0])

    def load() -> int:
        value = next(values)
        now[0] += 0.7  # on its way from the database
        return value

    remembered = Remembered(load, 1.0)
    assert remembered.recent() == 0
    now[0] += 0.2
    assert remembered.recent() == 0
    now[0] += 0.2
    assert remembered.recent() == 1
