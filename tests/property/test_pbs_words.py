"""Whatever is typed: an answer or a leaf of our errors in one line; whatever is folded unfolds again."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.errors import Rejection
from hpcmesos.pbs import resources
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.pbs.directives import check_script, scan
from hpcmesos.pbs.option_table import COMMANDS
from hpcmesos.pbs.options import parse
from hpcmesos.pbs.quoting import split_list
from hpcmesos.pbs.render_full import attribute_line
from hpcmesos.pbs.status import parse_hold, parse_pbsnodes, parse_qdel, parse_qstat
from hpcmesos.pbs.submission import SubmitContext, build_submission
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.units import format_duration, parse_duration

CONTEXT = SubmitContext(
    "/w", 0o22, "h", "u", "/home/u", {"A": "1"}, "hpcm", datetime(2026, 1, 31, tzinfo=UTC)
)

LETTERS = sorted({option.written for command in COMMANDS.values() for option in command.options})
VALUES = [
    "nodes=2:ppn=4:gpus=1",
    "gpus=0.5",
    "select=1:ncpus=2+1",
    "walltime=1:2:3",
    "mem=4gb",
    "depend=afterok:1",
    "umask=022",
    "0-9:2%3",
    "2359",
    "u",
    "oe",
    "all",
    "12[]",
]
WORDS = st.one_of(
    st.sampled_from(LETTERS + VALUES),
    st.text(alphabet="-=:,+.%[]\\'\"#nodesgpumlwt0123456789 ", max_size=20),
    st.text(max_size=8),
)
ARGV = st.lists(WORDS, max_size=6)


def answers_or_refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except Rejection as error:
        assert not type(error).__subclasses__(), "only leaves are raised"
        assert str(error)


@given(st.sampled_from(sorted(COMMANDS)), ARGV)
def test_parse_answers_or_refuses(command: str, argv: list[str]) -> None:
    answers_or_refuses(lambda: parse(command, argv))


@given(ARGV, st.lists(ARGV, max_size=3))
def test_qsub_answers_or_refuses(argv: list[str], directives: list[list[str]]) -> None:
    script = "".join(f"#PBS {' '.join(words)}\n" for words in directives)
    answers_or_refuses(lambda: build_submission(argv, script, CONTEXT))


@given(
    st.sampled_from(["nodes", "select", "procs", "ncpus", "gpus", "mem", "pmem", "walltime", "place"]),
    st.text(),
)
def test_resources_answer_or_refuse(name: str, text: str) -> None:
    answers_or_refuses(lambda: resources.build({name: text}))


@given(ARGV)
def test_other_commands_answer_or_refuse(argv: list[str]) -> None:
    for call in (parse_qstat, parse_pbsnodes, parse_qdel, lambda words: parse_hold("qhold", words)):
        answers_or_refuses(lambda call=call: call(argv))  # type: ignore[misc]  # bound now


@given(st.binary(max_size=200))
def test_scripts_answer_or_refuse(data: bytes) -> None:
    answers_or_refuses(lambda: scan(check_script(data)))


@given(
    st.from_regex(r"[A-Za-z_.]{1,30}", fullmatch=True),
    st.text(alphabet="abc=,:/-", max_size=400),
)
def test_folding_loses_nothing_and_keeps_the_columns(name: str, text: str) -> None:
    folded = attribute_line(name, text, 77)
    assert folded.replace("\n\t", "") == f"    {name} = {text}"
    for line in folded.split("\n"):
        assert len(line.expandtabs(8).removesuffix(",")) <= 77
    assert not re.search(r"\n(?!\t)", folded)


@given(st.integers(0, 10**9))
def test_durations_go_out_and_come_back(seconds: int) -> None:
    text = format_duration(seconds)
    assert re.fullmatch(r"\d{2,}:[0-5]\d:[0-5]\d", text)
    assert parse_duration(text) == seconds


@given(
    st.lists(
        st.text(alphabet="abc,=\"'\\ ", min_size=1).filter(lambda text: text == text.strip()), max_size=5
    )
)
def test_quoted_pieces_survive_the_list(pieces: list[str]) -> None:
    def quoted(piece: str) -> str:
        return '"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert split_list(",".join(map(quoted, pieces))) == tuple(pieces)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=5),
    st.none() | st.integers(1, 9),
)
def test_arrays_go_out_and_come_back(shape: list[tuple[int, int, int]], limit: int | None) -> None:
    ranges: list[tuple[int, int, int]] = []
    position = 0
    for gap, steps, step in shape:
        first = position + gap
        last = first + steps * step
        ranges.append((first, last, step if steps else 1))
        position = last + 1
    spec = ArraySpec(tuple(ranges), limit)
    assert parse_array(str(spec)) == spec
    assert spec.size == sum(index in spec for index in range(position))


@given(st.integers(1, 50), st.integers(1, 16), st.integers(0, 8), st.integers(1, 10**6))
def test_memory_of_the_job_covers_what_was_asked(nodes: int, ppn: int, gpus: int, mem: int) -> None:
    text = f"nodes={nodes}:ppn={ppn}:gpus={gpus},mem={mem}b"
    request = resources.build(resources.collect([text])).request
    assert (request.pieces, request.slots, request.gpus) == (nodes, nodes * ppn, nodes * gpus)
    assert mem <= request.mem < mem + nodes


@pytest.mark.parametrize("command", ["qhold", "qrls"])
def test_holds_share_their_words(command: str) -> None:
    assert parse_hold(command, ["-h", "n", "1"]).kinds == "n"
