"""Whatever is typed at qmgr, qalter, qselect, qsig: an answer or a leaf of our errors; what print writes comes back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmesos.errors import InvalidValue, Rejection
from hpcmesos.pbs.alteration import altered, parse_qalter
from hpcmesos.pbs.manager import OBJECTS, VERBS, Change, lines, parse_line
from hpcmesos.pbs.manager_attributes import ATTRIBUTES, Kind, apply
from hpcmesos.pbs.manager_render import printed_queues, printed_server
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.selection import parse_qselect
from hpcmesos.pbs.signals import parse_signal

NOW = datetime(2026, 1, 31, tzinfo=UTC)
NAMES = sorted({name for known in ATTRIBUTES.values() for name in known})
WORDS = st.one_of(
    st.sampled_from([*VERBS, *OBJECTS, *NAMES, "=", "+=", "-=", ",", "@", "q1", "True", "'a b'", '"'] * 2),
    st.text(alphabet="=,.@'\"#\\+- abq1[]:", max_size=8),
    st.text(max_size=5),
)
VALUES = st.one_of(
    st.sampled_from(["True", "f", "12", "-3", "1:00:00", "4gb", "a,b", "Execution", "fence:300", "check"]),
    st.sampled_from(["[u:PBS_GENERIC=4]", "ann@*", "", "-N x", "'", '"a"', "a 'b'"]),
    st.text(max_size=12),
)
OPTIONS = st.one_of(
    st.sampled_from(
        ["-N", "-l", "-W", "-a", "-t", "-h", "-p", "-r", "-s", "-u", "-q", "-c", "-v", "-j", "12", "all"]
    ),
    VALUES,
)


def answers_or_refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except Rejection as error:
        assert not type(error).__subclasses__(), "only leaves are raised"
        assert str(error)


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=10).map(" ".join))
def test_qmgr_answers_or_refuses(text: str) -> None:
    for line in lines(text):
        answers_or_refuses(lambda line=line: parse_line(line))  # type: ignore[misc]  # a default binds it


@settings(max_examples=300)
@given(st.lists(OPTIONS, max_size=6))
def test_qalter_and_qselect_answer_or_refuse(argv: list[str]) -> None:
    answers_or_refuses(lambda: parse_qalter(argv, NOW, {"A": "1"}))
    for personality in Personality:
        answers_or_refuses(lambda p=personality: parse_qselect(argv, p, NOW))  # type: ignore[misc]  # as above


@given(st.text(max_size=8))
def test_signals_answer_or_refuse(text: str) -> None:
    answers_or_refuses(lambda: parse_signal(text))


@given(
    st.dictionaries(
        st.sampled_from(["nodes", "select", "ncpus", "mem", "walltime", "gpus"]), VALUES, max_size=3
    ),
    st.dictionaries(st.sampled_from(["nodes", "select", "procs", "mem", "walltime"]), VALUES, max_size=3),
)
def test_altered_resources_answer_or_refuse(shown: dict[str, str], wanted: dict[str, str]) -> None:
    answers_or_refuses(lambda: altered(shown, wanted))


@settings(max_examples=300)
@given(
    st.sampled_from(["queue", "server"]),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["=", "+=", "-=", ""]), VALUES), max_size=6),
)
def test_what_can_be_set_can_be_printed_and_read_again(
    kind: str, changes: list[tuple[str, str, str]]
) -> None:
    now: dict[str, str] = {}
    for name, operator, value in changes:
        attribute = ATTRIBUTES[kind].get(name)
        resource = ".walltime" if attribute is not None and attribute.kind is Kind.RESOURCES else ""
        try:
            now = apply(kind, now, [Change(name + resource, operator, value)])
        except Rejection:
            continue
    text = printed_queues([("q", now)]) if kind == "queue" else printed_server(now)
    again: dict[str, str] = {}
    for line in lines(text):
        directive = parse_line(line)
        if directive.verb == "set":
            again = apply(kind, again, directive.changes)
    assert again == now


def test_a_text_holds_one_kind_of_quote() -> None:
    with pytest.raises(InvalidValue):
        apply("queue", {}, [Change("comment", "=", 'it\'s "so"')])
