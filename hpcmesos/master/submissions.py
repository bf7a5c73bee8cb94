"""What jobs were submitted with: too big for the picture, so read when they start; of arrays it is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hpcmesos.queue.reads import Reads


@dataclass(slots=True)
class Submitted:
    """``submission``: as in JobRecord; ``script``: None when the job has none.

    ``common``: of the specs of its attempts, which are many if it is an array, and what that depends on.
    """

    submission: Mapping[str, Any]
    script: bytes | None
    common: tuple[tuple[Any, ...], dict[str, Any]] | None = None


class Submissions:
    """By ``seq``; belongs to the planner's thread."""

    def __init__(self, reader: Reads) -> None:
        self._reader = reader
        self._read: dict[int, Mapping[str, Any]] = {}
        self._known: dict[int, Submitted] = {}

    def put(self, seq: int, submission: Mapping[str, Any]) -> None:
        """One that was read together with its job."""
        self._read[seq] = submission

    def current(self, seq: int) -> Mapping[str, Any]:
        """As it stands now, with changes that are not committed yet."""
        return self.currents([seq])[seq]

    def currents(self, seqs: Collection[int]) -> dict[int, Mapping[str, Any]]:
        """The same of several; those of unknown jobs are empty."""
        found = {seq: self._known[seq].submission for seq in seqs if seq in self._known}
        found |= {seq: self._read[seq] for seq in seqs if seq in self._read}
        if missing := [seq for seq in seqs if seq not in found]:
            found |= self._reader.submissions(missing)
        return {seq: found.get(seq, {}) for seq in seqs}

    def change(self, seq: int, submission: Mapping[str, Any]) -> None:
        """The job has another one now."""
        self._known.pop(seq, None)
        self._read[seq] = submission

    def load(self, seqs: Collection[int]) -> None:
        """Reads what is missing of these jobs, together."""
        missing = [seq for seq in seqs if seq not in self._known]
        if unread := [seq for seq in missing if seq not in self._read]:
            self._read |= self._reader.submissions(unread)
        scripts = self._reader.scripts(missing) if missing else {}
        for seq in missing:
            self._known[seq] = Submitted(self._read.pop(seq, {}), scripts.get(seq))

    def get(self, seq: int) -> Submitted:
        self.load([seq])
        return self._known[seq]

    def keep(self, seqs: Collection[int]) -> None:
        """Forgets all but these."""
        self._read.clear()
        self._known = {seq: found for seq, found in self._known.items() if seq in seqs}
