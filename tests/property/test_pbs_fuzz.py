"""9,500 cases of scripts, directives and words of qsub, qalter, qmgr: an answer, or a leaf of our errors in one line.

In this process; tests/e2e/test_fuzz.py does the same with 500 processes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import strategies as st

from hpcmesos.errors import Rejection
from hpcmesos.master.services.replies import one_line
from hpcmesos.pbs.alteration import parse_qalter
from hpcmesos.pbs.directives import check_script
from hpcmesos.pbs.manager import lines, parse_line
from hpcmesos.pbs.submission import SubmitContext, build_submission
from tests.at_length import fuzz
from tests.fuzz import qalter_words, qmgr_text, qsub_script, qsub_words

pytestmark = pytest.mark.full
NOW = datetime(2026, 1, 31, tzinfo=UTC)
CONTEXT = SubmitContext("/w", 0o22, "h", "u", "/home/u", {"A": "1"}, "hpcm", NOW)


def answers_or_refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except Rejection as error:
        assert not type(error).__subclasses__(), "only leaves are raised"
        assert error.exit_code
        assert "\n" not in one_line(str(error))


def qsub(case: tuple[list[str], bytes]) -> None:
    argv, script = case
    answers_or_refuses(lambda: build_submission(argv, check_script(script), CONTEXT))


def qalter(argv: list[str]) -> None:
    answers_or_refuses(lambda: parse_qalter(argv, NOW, {"A": "1"}))


def qmgr(text: str) -> None:
    for line in lines(text):
        answers_or_refuses(lambda line=line: parse_line(line))  # type: ignore[misc]  # a default binds it


def test_qsub() -> None:
    fuzz(qsub, st.tuples(qsub_words, qsub_script), 5000)


def test_qalter() -> None:
    fuzz(qalter, qalter_words, 2500)


def test_qmgr() -> None:
    fuzz(qmgr, qmgr_text, 2000)
