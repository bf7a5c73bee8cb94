"""qalter, qselect and qsig: from words to what they mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hpcmesos.errors import BadDependency, BadSignal, InvalidValue, UsageError
from hpcmesos.pbs.alteration import altered, parse_qalter
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.resources import build
from hpcmesos.pbs.selection import parse_qselect
from hpcmesos.pbs.signals import parse_signal, parse_suspension

NOW = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)


def test_everything_that_qalter_changes() -> None:
    asked = parse_qalter(
        [
            *("12", "-N", "new", "-p", "7", "-r", "n", "-h", "u", "-a", "202612312359", "13.hpcm"),
            *("-l", "walltime=1:00:00,mem=2gb", "-j", "oe", "-o", "/tmp/x", "-m", "abe", "-M", "a@b,c"),
            *("-A", "acc", "-S", "/bin/sh@n1", "-W", "depend=afterok:1,umask=022", "-v", "A=1,HOME"),
        ],
        NOW,
        {"HOME": "/home/ann"},
    )
    assert asked.ids == ("12", "13.hpcm")
    assert (asked.name, asked.priority, asked.rerunable, asked.holds) == ("new", 7, False, "u")
    assert asked.not_before == datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    assert asked.resources == {"walltime": "1:00:00", "mem": "2gb"}
    assert asked.submission == {
        "join": "oe",
        "mail_points": "abe",
        "account": "acc",
        "mail_users": ["a@b", "c"],
        "shell": "/bin/sh",
        "umask": 0o022,
    }
    assert [str(term) for term in asked.dependencies or ()] == ["afterok:1"]
    assert asked.variables == {"A": "1", "HOME": "/home/ann"}
    path = asked.path("o", "/home/ann", "login1")
    assert path is not None
    assert (path.path, path.host) == ("/tmp/x", "login1")
    assert asked.path("e", "/", "x") is None


@pytest.mark.parametrize(
    ("words", "blocked"),
    [
        (["-N", "x", "-p", "1", "-r", "y", "-A", "a", "-m", "a", "-l", "walltime=5"], ()),
        (["-j", "oe"], ("Join_Path",)),
        (["-l", "ncpus=2,walltime=5"], ("Resource_List.ncpus",)),
        (["-W", "depend=afterok:1"], ("depend",)),
    ],
)
def test_what_a_running_job_cannot_take(words: list[str], blocked: tuple[str, ...]) -> None:
    assert parse_qalter([*words, "1"], NOW, {}).not_running == blocked


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-N", "x"], UsageError),
        (["-Z", "1"], UsageError),
        (["-h", "x", "1"], InvalidValue),
        (["-j", "maybe", "1"], InvalidValue),
        (["-t", "%0", "1"], InvalidValue),
        (["-W", "depend=sometime:1", "1"], BadDependency),
    ],
)
def test_refused_words_of_qalter(words: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_qalter(words, NOW, {})


@pytest.mark.parametrize(
    ("first", "change", "same_as"),
    [
        (
            {"nodes": "2:ppn=4", "mem": "8gb"},
            {"walltime": "60"},
            {"nodes": "2:ppn=4", "mem": "8gb", "walltime": "60"},
        ),
        ({"nodes": "2:ppn=4", "mem": "8gb"}, {"select": "3:ncpus=2"}, {"select": "3:ncpus=2", "mem": "8gb"}),
        (
            {"select": "2:ncpus=2", "place": "scatter"},
            {"mem": "1gb"},
            {"select": "2:ncpus=2", "place": "scatter", "mem": "1gb"},
        ),
        ({"gpus": "2"}, {"walltime": "9"}, {"gpus": "2", "walltime": "9"}),
        ({"ncpus": "4"}, {"walltime": "9"}, {"ncpus": "4", "walltime": "9"}),
        ({"procs": "4"}, {"pmem": "1gb"}, {"procs": "4", "pmem": "1gb"}),
        ({"nodes": "2", "ncpus": "8"}, {"walltime": "9"}, {"nodes": "2", "ncpus": "8", "walltime": "9"}),
        ({"walltime": "9"}, {"walltime": ""}, {}),
        ({}, {"nodes": "2"}, {"nodes": "2"}),
    ],
)
def test_the_resources_afterwards(
    first: dict[str, str], change: dict[str, str], same_as: dict[str, str]
) -> None:
    assert altered(build(first).display, change) == build(same_as)


def job(**values: object) -> JobFacts:
    given: dict[str, object] = {
        "id": "1.hpcm",
        "name": "sim",
        "owner": "ann",
        "submit_host": "login1",
        "state": "Q",
        "queue": "batch",
        "server": "hpcm",
        "resource_list": {"ncpus": "4", "walltime": "01:00:00", "mem": "4gb"},
        "qtime": NOW,
    }
    return JobFacts(**{**given, **values})  # type: ignore[arg-type]  # each as its field


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], True),
        (["-N", "sim"], True),
        (["-N", "other"], False),
        (["-l", "ncpus.gt.2"], True),
        (["-l", "ncpus.gt.4"], False),
        (["-l", "walltime.le.3600,mem.ge.4096mb"], True),
        (["-l", "ngpus.ge.1"], False),
        (["-l", "ncpus=4"], True),
        (["-p", "0"], True),
        (["-p", ".gt.0"], False),
        (["-h", "n"], True),
        (["-h", "u"], False),
        (["-A", "acc"], False),
        (["-P", "_pbs_project_default"], True),
        (["-r", "y"], True),
        (["-r", "n"], False),
        (["-t", "q.ge.202603031000"], True),
        (["-tq.lt.202603031000"], False),
        (["-t", "s.gt.01010000"], False),
        (["-a", ".gt.01010000"], False),
        (["-c", "u"], True),
    ],
)
def test_what_qselect_chooses(words: list[str], chosen: bool) -> None:
    assert parse_qselect(words, Personality.TORQUE, NOW).chooses(job()) is chosen


def test_what_qselect_reads() -> None:
    asked = parse_qselect(["-u", "ann,bob@x", "-q", "batch@hpcm", "-s", "RF"], Personality.PBSPRO, NOW)
    assert (asked.users, asked.queues, asked.states) == (("ann", "bob"), ("batch",), {"R", "C"})
    assert (asked.history, asked.elements) == (False, False)
    assert parse_qselect([], Personality.TORQUE, NOW).elements


@pytest.mark.parametrize(
    "words",
    [
        ["-s", "Z"],
        ["foo"],
        ["-t"],
        ["-t", "y.gt.1"],
        ["-l", "ncpus"],
        ["-p", "high"],
        ["-h", "xyz"],
        ["-r", "x"],
    ],
)
def test_refused_words_of_qselect(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_qselect(words, Personality.TORQUE, NOW)


def test_signals() -> None:
    assert [parse_signal(text) for text in ("KILL", "SIGKILL", "kill", "9", "0", "NULL", "SIGUSR1")] == [
        9,
        9,
        9,
        9,
        0,
        0,
        10,
    ]
    for text in ("NOSUCH", "99", "-1", ""):
        with pytest.raises(BadSignal):
            parse_signal(text)
    words = ("suspend", "admin-suspend", "resume", "STOP")
    assert [parse_suspension(word) for word in words] == [True, True, False, None]
