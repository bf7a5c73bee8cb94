"""9,500 cases of scripts, directives and words of qsub, qalter, qmgr: an answer, or a leaf of our errors in one line.

In this process; tests/e2e/test_fuzz.py does the same with 500 processes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings

from hpcmesos.errors import Rejection
from hpcmesos.master.services.replies import one_line
from hpcmesos.pbs.alteration import parse_qalter
from hpcmesos.pbs.directives import check_script
from hpcmesos.pbs.manager import lines, parse_line
from hpcmesos.pbs.submission import SubmitContext, build_submission
from tests.fuzz import qalter_words, qmgr_text, qsub_script, qsub_words

pytestmark = pytest.mark.full
NOW = datetime(2026, 1, 31, tzinfo=UTC)
CONTEXT = SubmitContext("/w", 0o22, "h", "u", "/home/u", {"A": "1"}, "hpcm", NOW)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def answers_or_refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except Rejection as error:
        assert not type(error).__subclasses__(), "only leaves are raised"
        assert error.exit_code
        assert "\n" not in one_line(str(error))


@settings(max_examples=5000, deadline=2000, suppress_health_check=SLOW)
@given(qsub_words, qsub_script)
def test_qsub(argv: list[str], script: bytes) -> None:
    answers_or_refuses(lambda: build_submission(argv, check_script(script), CONTEXT))


@settings(max_examples=2500, deadline=2000, suppress_health_check=SLOW)
@given(qalter_words)
def test_qalter(argv: list[str]) -> None:
    answers_or_refuses(lambda: parse_qalter(argv, NOW, {"A": "1"}))


@settings(max_examples=2000, deadline=2000, suppress_health_check=SLOW)
@given(qmgr_text)
def test_qmgr(text: str) -> None:
    for line in lines(text):
        answers_or_refuses(lambda line=line: parse_line(line))  # type: ignore[misc]  # a default binds it
