"""``hpcmesos ring [--json] [--save DIR] [--patience S]`` inside a job: passes a token round all of its nodes.

Starts the ranks as ``hpcmesos run`` does and listens to what each says of itself (``hpcmesos.gang.ring``); a ring that
does not close in time is broken where they stand still. 0: it closed; 1: it did not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from hpcmesos.gang import mpi, ring_report
from hpcmesos.launch import programs, protocol, quick, run
from hpcmesos.launch.files import RING_FILES

_ALIVE = "Timeout ("
"""How a line of a rank begins that is alive when its time is over (faulthandler)."""


class Ring(run.Step):
    """A step whose ranks speak to us, not to people."""

    def __init__(self, path: str, lease: Any, answer: dict[str, Any], patience: float) -> None:
        members = answer["members"]
        counts = [ring_report.ranks_of(member["slots"], member["gpus"]) for member in members]
        options = run.Options()
        self._limit = ring_report.time_limit(sum(counts), patience)
        doors = [
            f"{member['address']}:{member['peer_port']}"
            for member, count in zip(members, counts, strict=True)
            for _ in range(count)
        ]
        options.command = [programs.RING_RANK, str(self._limit), ",".join(doors)]
        super().__init__(path, options, lease, answer, counts)
        self._ranks = [
            ring_report.Rank(
                rank, node.name, tuple(mpi.rank_gpus(member["uuids"], local, len(node.ranks))[0])
            )
            for node, member in zip(self._nodes, members, strict=True)
            for local, rank in enumerate(node.ranks)
        ]
        self._unread: dict[tuple[int, bytes], bytes] = {}
        self._last_words: dict[int, str] = {}
        self._suspect: int | None = None
        self._cut: int | None = None  # the rank that found it
        self._lost: list[str] = []
        self._late = False

    def watch(self) -> ring_report.Report:
        """Until nothing of the ring is left."""
        quick.signal.signal(quick.signal.SIGALRM, lambda number, frame: None)
        quick.signal.setitimer(quick.signal.ITIMER_REAL, self._limit + ring_report.grace(len(self._ranks)))
        self.run()
        quick.signal.setitimer(quick.signal.ITIMER_REAL, 0)
        ranks, trouble = self._ranks, self.verdict.text
        if self._cut is not None:
            return ring_report.cut(ranks, self._cut, trouble)
        if self._late:
            return ring_report.late(ranks, self._limit)
        if self._suspect is not None:
            words = self._last_words.get(self._suspect)
            return ring_report.failed(ranks, self._suspect, f"{trouble}: {words}" if words else trouble)
        if not trouble and all(rank.stage == ring_report.DONE for rank in ranks):
            return ring_report.closed(ranks)
        return ring_report.lost(ranks, self._lost, trouble or "it ended before every rank had measured")

    # --- what a step does otherwise ---------------------------------------------------------------------------------

    def _warn_shared(self, member: dict[str, Any], count: int) -> None:
        """Nothing to warn of."""

    def _write(self, node: run.Node, kind: bytes, body: bytes) -> None:
        rank = int.from_bytes(body[:4], "big")
        *lines, rest = (self._unread.get((rank, kind), b"") + body[4:]).split(b"\n")
        self._unread[rank, kind] = rest[-65536:]
        for line in lines:
            text = line.decode(errors="replace").strip()
            if kind == protocol.STDOUT:
                self._note(rank, text)
            elif text.startswith(_ALIVE):
                self._ranks[rank] = dataclasses.replace(self._ranks[rank], alive=True)
            elif text:
                self._last_words[rank] = text[:200]

    def _note(self, rank: int, text: str) -> None:
        """What a rank says of itself."""
        try:
            said = quick.loads(text)
            known = {key: said[key] for key in ("stage", "waits_for", "latency", "bandwidth") if key in said}
            if "gpus" in said:
                known["gpus"] = tuple(map(str, said["gpus"]))
        except (ValueError, TypeError):  # words of a library
            return
        self._ranks[rank] = dataclasses.replace(self._ranks[rank], **known)
        if "cut" in said and not self.verdict.text:
            self._cut = rank
            self._fail(1, str(said["cut"])[:200])

    def _pass_signal(self, number: int) -> None:
        if number == quick.signal.SIGALRM:
            self._late = not self.verdict.text
            self._fail(1, "the ring did not close in time")
        else:
            super()._pass_signal(number)

    def _obey(self, node: run.Node, message: dict[str, Any]) -> None:
        before = self.verdict.text
        super()._obey(node, message)
        if self.verdict.text != before and "rank" in message:
            self._suspect = int(message["rank"])

    def _lose(self, node: run.Node, reason: str) -> None:
        if not self.verdict.text:
            self._lost.append(node.name)
        super()._lose(node, reason)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hpcmesos ring", description="Passes a token round the nodes of this job."
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, not as a table")
    parser.add_argument("--save", metavar="DIR", help="write the table and the report into DIR too")
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds to close in, besides 0.3 a rank (%(default)g)"
    )
    options = parser.parse_args(argv)
    try:
        path, lease, answer = run.begin(["hpcmesos", "ring", *argv])
        ring = Ring(path, lease, answer, options.patience)
        report = ring.watch()
        ring.finish()
    except (run.Refused, OSError, protocol.FrameError) as error:
        sys.stderr.write(f"hpcmesos ring: {error}\n")
        return 2
    table, content = ring_report.table(report), f"{json.dumps(report.to_json())}\n"
    if options.save:
        for name, text in zip(RING_FILES, (table, content), strict=True):
            with open(os.path.join(options.save, name), "w", encoding="utf-8") as file:
                file.write(text)
    sys.stdout.write(content if options.json else table)
    sys.stdout.flush()
    return 0 if report.closed else 1
