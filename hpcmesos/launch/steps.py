"""The launches of an attempt and their ranks, as the wrappers and fronts reported them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hpcmesos.launch import quick

_ROOM = 4 * 1024 * 1024
"""Bytes of an end report for the ranks, and for the steps: with the tails of the output it has to fit into a frame."""
_MOST_STEPS, _MOST_RANKS = 10_000, 200_000  # that are remembered, for a job may go on launching for ever
_LONGEST_COMMAND = 4096
_LONGEST_WORD = 256
_NUMBERS = range(-(2**31), 2**31)


class Steps:
    """The tables that the end report carries. ``origin``: index of this member, the first half of a step's id."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self._count = 0
        self._steps: dict[str, dict[str, Any]] = {}
        self._ranks: dict[tuple[str, int], dict[str, Any]] = {}
        self._ended: deque[dict[str, Any]] = deque(
            maxlen=_MOST_RANKS
        )  # in the order in which their ends came
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
        _forget_oldest(self._steps, _MOST_STEPS)
        return step

    def fail(self, step: str, reason: str) -> None:
        """A launch has lost what it needs: its launcher may not see that."""
        if step in self._steps:
            self._broken.setdefault(step, reason)
        if listener := self._listeners.get(step):
            listener(reason)

    def close(self, step: str) -> None:
        """Nobody listens to that launch any more."""
        self._listeners.pop(step, None)

    def rank(self, message: dict[str, Any], node: str) -> None:
        """A rank has started."""
        step, rank = str(message.get("step", "")), int(message.get("rank", 0))
        self._ranks[step, rank] = {
            "step": step,
            "rank": rank,
            "node": node,
            "code": None,
            "signal": None,
            "gpu": ",".join(message.get("gpus") or ()),
            "at": time.time(),
        }
        _forget_oldest(self._ranks, _MOST_RANKS)

    def rank_end(self, message: dict[str, Any], node: str) -> None:
        """A rank has ended, with ``code`` or by ``signal``; ``vanished``: its launcher killed it, wrapper and all.

        ``dragged``: by the end of another rank.
        """
        key = (str(message.get("step", "")), int(message.get("rank", 0)))
        if key not in self._ranks:
            self.rank(message, node)
        row = self._ranks[key]
        if row["code"] is not None or row["signal"] is not None:
            return  # one that aborts is heard of before it ends
        row |= {"code": message.get("code"), "signal": message.get("signal"), "at": time.time()}
        if not (self.closing or message.get("vanished") or message.get("dragged")):
            self._ended.append(row)
            self._note_failure(row)
        self._news.set()

    def _note_failure(self, row: dict[str, Any]) -> None:
        step = self._steps.get(row["step"])
        if step and step["first_failed"] is None and (row["code"] or row["signal"]):
            step["first_failed"] = row["rank"]

    async def end(self, step: str, code: int, patience: float, by_rank: bool = True) -> dict[str, Any]:
        """The launcher has returned ``code``; answers its ranks, the one that failed first, and why it broke, if so.

        ``by_rank``: what the first failing rank returned counts, if there is one, as it does for the front.

        Reports of far ranks travel by another connection than the launcher's end: a launcher that failed waits for
        them up to ``patience`` seconds.
        """
        deadline = time.monotonic() + patience
        while code and not self._first_failed(step) and (left := deadline - time.monotonic()) > 0:
            self._news.clear()
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                break
        failed = self._first_failed(step)
        if failed and by_rank:
            code = 128 + failed["signal"] if failed["signal"] is not None else failed["code"]
        if step in self._steps:
            self._steps[step]["code"] = _number(code)
        ranks = [row for row in self._ranks.values() if row["step"] == step]
        return {
            "ranks": ranks,
            "first_failed": failed,
            "broken": self._broken.pop(step, None),
        }

    def tables(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """All ranks, all steps; of very many the newest."""
        return _newest(self._ranks.values()), _newest(self._steps.values())

    def _first_failed(self, step: str) -> dict[str, Any] | None:
        failed = (r for r in self._ended if r["step"] == step and (r["code"] or r["signal"]))
        return next(failed, None)


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
    return report | {
        "signal": None if signal is None else _number(signal),
        "vanished": bool(message.get("vanished")),
    }


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


def _newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept, left = [], _ROOM
    for row in reversed(list(rows)):
        left -= len(quick.dumps(row))
        if left < 0:
            break
        kept.append(row)
    return kept[::-1]


def _forget_oldest(table: dict[Any, Any], most: int) -> None:
    while len(table) > most:
        del table[next(iter(table))]
