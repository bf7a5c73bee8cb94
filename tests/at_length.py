"""Cases that a program makes up: the same few in every run, or others for as long as HPCMESOS_FUZZ_SECONDS says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
SECONDS = float(os.environ.get("HPCMESOS_FUZZ_SECONDS", "0"))
_ROUND = 2000  # cases of one run of hypothesis: it remembers what it tried, and grows slower


def fuzz(check: Callable[[T], object], cases: st.SearchStrategy[T], examples: int) -> int:
    """``check`` of ``examples`` cases, or of as many as fit into the time; answers how many.

    Raises whatever ``check`` raises, with the smallest case that does it.
    """
    tried = 0

    def one(case: T) -> None:
        nonlocal tried
        tried += 1
        check(case)

    run = settings(
        max_examples=_ROUND if SECONDS else examples,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
    )(given(cases)(one))
    end = time.monotonic() + SECONDS
    run()
    while time.monotonic() < end:
        run()
    if SECONDS:
        print(f"{check.__name__}: {tried} cases in {SECONDS:.0f} s")
    return tried


def damaged(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """What is right, and then cut, doubled, or with bytes put in place of others."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(whole))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(data)))
            match draw(st.sampled_from(["cut", "put", "drop", "double"])):
                case "cut":
                    del data[at:]
                case "put":
                    piece = draw(st.binary(min_size=1, max_size=4))
                    data[at : at + len(piece)] = piece
                case "drop":
                    del data[at : at + draw(st.integers(1, 4))]
                case "double":
                    data[at:at] = data[: draw(st.integers(0, len(data)))]
        return bytes(data)

    return damage()
