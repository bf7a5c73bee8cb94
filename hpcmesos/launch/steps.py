"""The launches of an attempt and their ranks, as the wrappers and fronts reported them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from hpcmesos.launch import quick

_ROOM = 4 * 1024 * 1024
"""Bytes of an end report for the ranks, and for the steps: with the tails of the output it has to fit into a frame."""
_LEAST_ROOM, _ROOM_OF_A_SLOT = 512 * 1024, 4096
"""The same for a small attempt: so many, and so many more for each of its slots."""
_MOST_STEPS, _MOST_RANKS = 10_000, 200_000  # that are remembered, for a job may go on launching for ever
_RANKS, _RANKS_OF_A_SLOT = (
    10_000,
    64,
)  # the same of a small attempt: so many, and so many more for each of its slots
_REPORTS = 3.0
"""Seconds that the end of a launch waits for the ends of its ranks."""
_LATE_REPORTS = 1.0
"""The same where ranks are lost, or nobody has heard of any, or the code does not depend on them."""
_BROKEN = 255
"""Of a launch that lost a host or ranks while its launcher says 0, as Open MPI 5 and Hydra do."""
_LONGEST_COMMAND = 4096
_LONGEST_WORD = 256
_LONGEST_GPUS = 1024  # characters of what a rank says of its GPUs; a UUID has 40
_NUMBERS = range(-(2**31), 2**31)


class Steps:
    """The tables that the end report carries. ``origin``: index of this member, the first half of a step's id.

    ``slots``: of the whole attempt.
    """

    def __init__(self, origin: int, slots: int = 1) -> None:
        self._origin = origin
        self._room = min(_ROOM, _LEAST_ROOM + _ROOM_OF_A_SLOT * slots)
        self._most_ranks = min(_MOST_RANKS, _RANKS + _RANKS_OF_A_SLOT * slots)
        self._count = 0
        self._steps: dict[str, dict[str, Any]] = {}
        self._ranks: dict[tuple[str, int], dict[str, Any]] = {}
        self._starved: set[tuple[str, int]] = set()  # of these, those whose memory did not do
        self._asked: dict[
            str, dict[str, Any]
        ] = {}  # of each step the first rank that failed when it was asked to end
        self._running: dict[str, Counter[str]] = {}  # ranks that have not ended, by step and node
        self._news = asyncio.Event()
        self._listeners: dict[str, Callable[[str], None]] = {}
        self._broken: dict[str, str] = {}
        self.closing = False
        """True once we kill: what ends from now on did not fail by itself."""

    def begin(self, command: list[str], listener: Callable[[str], None]) -> str:
        """Registers a launch; answers its id. ``listener`` hears why it cannot go on."""
        self._count += 1
        step = f"{self._origin}.{self._count}"
        self._steps[step] = {"step": step, "command": _shortened(command), "code": None, "first_failed": None}
        self._listeners[step] = listener
        if len(self._steps) > _MOST_STEPS:
            del self._steps[next(iter(self._steps))]
        return step

    def fail(self, step: str, reason: str) -> None:
        """A launch that is not over has lost what it needs: its launcher may not see that."""
        if step in self._steps and self._steps[step]["code"] is None:
            self._broken.setdefault(step, reason)
        if listener := self._listeners.get(step):
            listener(reason)

    def close(self, step: str) -> None:
        """Nobody listens to that launch any more."""
        self._listeners.pop(step, None)

    def rank(self, message: dict[str, Any], node: str) -> None:
        """A rank has started."""
        step, rank = str(message.get("step", "")), int(message.get("rank", 0))
        known = self._ranks.get((step, rank))
        if known is None or _has_ended(known):
            self._running.setdefault(step, Counter())[node] += 1
        self._ranks[step, rank] = {
            "step": step,
            "rank": rank,
            "node": node,
            "code": None,
            "signal": None,
            "gpu": ",".join(message.get("gpus") or ())[:_LONGEST_GPUS],
            "at": time.time(),
        }
        while len(self._ranks) > self._most_ranks:
            self._starved.discard(oldest := next(iter(self._ranks)))
            row = self._ranks.pop(oldest)
            if not _has_ended(row):
                self._leave(row["step"], row["node"])

    def rank_end(self, message: dict[str, Any], node: str) -> None:
        """A rank has ended, with ``code`` or by ``signal``.

        ``dragged``: by the end of another rank, or of the launch; ``asked``: when it was told to end, for which that of
        another rank may be the reason; ``vanished``: its launcher killed it, wrapper and all, which it may keep for
        itself. ``starved``: for it wanted more memory than the job has there.
        """
        key = (str(message.get("step", "")), int(message.get("rank", 0)))
        if key not in self._ranks:
            self.rank(message, node)
        row = self._ranks[key]
        if _has_ended(row):
            return  # one that aborts is heard of before it ends
        row |= {"code": message.get("code"), "signal": message.get("signal"), "at": time.time()}
        if message.get("starved"):
            self._starved.add(key)
        self._leave(row["step"], row["node"])
        if message.get("vanished") and not self.closing:
            self.fail(row["step"], f"rank {row['rank']} ({row['node']}) was killed by its launcher")
        if not (self.closing or message.get("vanished") or message.get("dragged")):
            self._note_failure(row, bool(message.get("asked")))
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _leave(self, step: str, node: str) -> None:
        running = self._running[step]
        running[node] -= 1
        self._running[step] = +running
        if not self._running[step]:
            del self._running[step]

    def _note_failure(self, row: dict[str, Any], asked: bool) -> None:
        step = self._steps.get(row["step"])
        if step is None or not (row["code"] or row["signal"]):
            return
        if asked:
            self._asked.setdefault(row["step"], row)
        elif step["first_failed"] is None:
            step["first_failed"] = row["rank"]

    async def last_of(self, step: str, node: str, patience: float) -> bool:
        """True once no rank of that step runs on that node any more; False after ``patience`` seconds."""

        def company() -> int:
            return self._running[step][node] if step in self._running else 0

        await self._wait(lambda: patience if company() else 0.0)
        return not company()

    async def end(self, step: str, code: int, by_rank: bool = True) -> dict[str, Any]:
        """The launcher has returned ``code``; answers the launch's, its ranks, the one that failed first, and why it
        broke, if so.

        ``by_rank``: what the first failing rank returned counts, if there is one, as it does for the front.

        Reports of far ranks travel by another connection than the launcher's end, which waits for them.
        """
        await self._wait(lambda: self._patience(step, code, by_rank))
        entry, asked = self._steps.get(step), self._asked.pop(step, None)
        if entry and asked and entry["first_failed"] is None:
            entry["first_failed"] = asked["rank"]
        failed, broken = self._first_failed(step), self._broken.pop(step, None)
        if failed and by_rank:
            code = 128 + failed["signal"] if failed["signal"] is not None else failed["code"]
        elif broken and code == 0:
            code = _BROKEN
        if entry:
            entry["code"] = _number(code)
        ranks = [row for row in self._ranks.values() if row["step"] == step]
        if failed and (step, failed["rank"]) in self._starved:
            failed = failed | {"starved": True}
        return {"code": code, "ranks": ranks, "first_failed": failed, "broken": broken}

    def _patience(self, step: str, code: int, by_rank: bool) -> float:
        """Seconds since its end for which more about a launch may be heard."""
        if self._steps.get(step, {}).get("first_failed") is not None:
            return 0.0
        if step in self._running and step not in self._broken and (by_rank or not code):
            return _REPORTS
        return _LATE_REPORTS if code or step in self._running else 0.0

    async def _wait(self, patience: Callable[[], float]) -> None:
        """Until so many seconds have passed since now; with every report it may be another number."""
        begun = time.monotonic()
        while (left := begun + patience() - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    def tables(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """All ranks, all steps; of very many the newest."""
        return _newest(self._ranks.values(), self._room), _newest(self._steps.values(), self._room)

    def _first_failed(self, step: str) -> dict[str, Any] | None:
        rank = self._steps.get(step, {}).get("first_failed")
        return None if rank is None else self._ranks.get((step, rank))


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """A report of a rank, of nothing but what we know: whoever is inside a job may write anything, and it travels far.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    report = {"op": message["op"], "step": _text(message["step"]), "rank": _number(message["rank"])}
    if message["op"] == "rank":
        return report | {"gpus": [_text(uuid) for uuid in message.get("gpus") or ()][:_LONGEST_WORD]}
    code, signal = (message.get(name) for name in ("code", "signal"))
    report |= {"code": None if code is None else _number(code)}
    report |= {"signal": None if signal is None else _number(signal)}
    return report | {how: bool(message.get(how)) for how in ("vanished", "dragged", "asked", "starved")}


def _has_ended(rank: dict[str, Any]) -> bool:
    return rank["code"] is not None or rank["signal"] is not None


def _number(value: Any) -> int:
    if not isinstance(value, int) or value not in _NUMBERS:
        raise ValueError(f"no number that a rank has: {str(value)[:40]}")
    return int(value)


def _text(value: Any) -> str:
    """Half a surrogate pair (a byte of an argument that is no UTF-8) can be read by nobody further on."""
    return str(value)[:_LONGEST_WORD].encode("utf-8", "replace").decode()


def _shortened(command: list[str]) -> list[str]:
    words, left = [], _LONGEST_COMMAND
    for word in command:
        words.append(_text(word))
        left -= len(words[-1]) + 1
        if left < 0:
            return [*words[:-1], "..."]
    return words


def _newest(rows: Iterable[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    kept, left = [], room
    for row in reversed(list(rows)):
        left -= len(quick.dumps(row))
        if left < 0:
            break
        kept.append(row)
    return kept[::-1]
