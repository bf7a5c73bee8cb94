"""Where a job's standard output and error go: ``-o`` and ``-e`` before the job's id is known.

Rules: qsub(1B) of Torque 6.1.3 (``-o``, ``-e``, ``-j``) and T:src/server/job_func.c for array elements.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

NULL_DEVICE = "/dev/null"


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """An absolute output path with the job's id, name and array index still open.

    ``path`` None or ending in ``/`` means the default name (``NAME.oSEQ`` or ``NAME.eSEQ``) in that directory.
    """

    host: str
    directory: str  # where the default name lies; absolute
    path: str | None = None  # absolute, may hold $PBS_JOBID and ^array_index^
    letter: str = "o"  # "o" or "e", the letter of the default name

    def render(self, job_id: str, seq: int, index: int | None, name: str) -> str:
        """The absolute path on ``host``. Elements of arrays get ``-INDEX`` unless the path names the index itself.

        The caller knows whether the path is a directory that exists; then ``as_directory()`` comes first.
        """
        if self.path is None or self.path.endswith("/"):
            return posixpath.join(self.path or self.directory, self._default_name(seq, index, name))
        if self.path == NULL_DEVICE:
            return NULL_DEVICE
        text = self.path.replace("${PBS_JOBID}", job_id).replace("$PBS_JOBID", job_id)
        number = "" if index is None else str(index)
        if "^array_index^" in text:
            return text.replace("^array_index^", number)
        return text if index is None else f"{text}-{number}"

    def as_directory(self) -> PathTemplate:
        """The same for a path that turned out to be a directory: the default name goes into it."""
        if self.path is None or self.path.endswith("/") or self.path == NULL_DEVICE:
            return self
        return PathTemplate(self.host, self.directory, f"{self.path}/", self.letter)

    def _default_name(self, seq: int, index: int | None, name: str) -> str:
        base = f"{posixpath.basename(name) or name}.{self.letter}{seq}"
        return base if index is None else f"{base}-{index}"


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
