"""Where a job's standard output and error go: ``-o`` and ``-e`` before the job's id is known.

Rules: qsub(1B) of Torque 6.1.3 (``-o``, ``-e``, ``-j``) and T:src/server/job_func.c for array elements.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace

NULL_DEVICE = "/dev/null"
_INDEX = "^array_index^"


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """An absolute output path with the job's id, name and array index still open.

    ``path`` None or ending in ``/`` means the default name (``NAME.oSEQ`` or ``NAME.eSEQ``) in that directory.
    """

    host: str
    directory: str  # where the default name lies; absolute
    path: str | None = None  # absolute, may hold $PBS_JOBID and ^array_index^
    letter: str = "o"  # "o" or "e", the letter of the default name
    pbspro: bool = False  # how elements of arrays are told apart

    def render(self, job_id: str, seq: int, index: int | None, name: str) -> str:
        """The absolute path on ``host``. Elements of arrays get ``-INDEX`` unless the path names the index itself.

        As OpenPBS has it, only the default name tells them apart, by ``.INDEX``. An array shows where the index goes.

        The caller knows whether the path is a directory that exists; then ``as_directory()`` comes first.
        """
        if self.path is None or self.path.endswith("/"):
            name = f"{posixpath.basename(name) or name}.{self.letter}{seq}{self._tail(job_id, index)}"
            return posixpath.join(self.path or self.directory, name)
        if self.path == NULL_DEVICE:
            return NULL_DEVICE
        text = self.path.replace("${PBS_JOBID}", job_id).replace("$PBS_JOBID", job_id)
        if _INDEX in text:
            return text if _is_parent(job_id) else text.replace(_INDEX, "" if index is None else str(index))
        tail = "" if self.pbspro else self._tail(job_id, index)
        return f"{text}{tail}"

    def as_directory(self) -> PathTemplate:
        """The same for a path that turned out to be a directory: the default name goes into it."""
        if self.path is None or self.path.endswith("/") or self.path == NULL_DEVICE:
            return self
        return replace(self, path=f"{self.path}/")

    def _tail(self, job_id: str, index: int | None) -> str:
        if index is None and not _is_parent(job_id):
            return ""
        return f"{'.' if self.pbspro else '-'}{_INDEX if index is None else index}"


def _is_parent(job_id: str) -> bool:
    """Whether this is the id of an array."""
    return "[]" in job_id


def parse_path(text: str | None, letter: str, cwd: str, host: str) -> PathTemplate:
    """Reads ``[host:]path`` of ``-o``/``-e``; relative paths start at ``cwd``; None is the default name there."""
    if not text:
        return PathTemplate(host, cwd, None, letter)
    named_host, colon, rest = text.partition(":")
    if not colon or "/" in named_host:
        named_host, rest = host, text
    path = posixpath.normpath(posixpath.join(cwd, rest))
    is_directory = not rest or rest.endswith(("/", "/.")) or rest in (".", "..")
    return PathTemplate(named_host or host, cwd, f"{path.rstrip('/')}/" if is_directory else path, letter)
