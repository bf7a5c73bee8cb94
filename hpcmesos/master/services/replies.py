"""What q-commands print and exit with beside their proper output: help, versions, refusals in both families' words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from hpcmesos.api_schema import CommandReply
from hpcmesos.errors import (
    BadDependency,
    BadSignal,
    HpcmesosError,
    InvalidValue,
    JobFinished,
    NeverFits,
    NoRoom,
    NotRerunable,
    QueueBusy,
    QueueDenied,
    QueueDisabled,
    QueueExists,
    QueueLimit,
    RunningJob,
    TooManyJobs,
    Unauthorized,
    UnknownJob,
    UnknownQueue,
    WrongState,
)
from hpcmesos.pbs.options import help_text, parse
from hpcmesos.pbs.personalities import Personality

_SPELLED = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
    if chr(code) not in "\n\t"
}
_STEERING = re.compile("[" + "".join(map(re.escape, map(chr, _SPELLED))) + "]")

VERSION = version("hpcmesos")
"""Of this release."""
_FIRST_ERROR = 14848  # 58 * 256: 15001 & 255 is 153
_FIRST_ERROR_CODE = 153

_PBSPRO_CODES: Mapping[type[HpcmesosError], int] = {
    InvalidValue: 166,
    RunningJob: 167,
    NotRerunable: 190,
    BadSignal: 165,
    QueueExists: 177,
    QueueBusy: 179,
    QueueDenied: 159,
    QueueLimit: 188,
    QueueDisabled: 173,
    TooManyJobs: 38,
    WrongState: 168,
    UnknownQueue: 170,
    NeverFits: 188,
    BadDependency: 206,
    JobFinished: 35,
}
"""Where OpenPBS' error numbers (& 255) differ from Torque's."""

_TORQUE_TEXTS: Mapping[type[HpcmesosError], str] = {
    UnknownJob: "Unknown Job Id Error {id}",
    Unauthorized: "Unauthorized Request  {id}",
    JobFinished: "Request invalid for state of job MSG=invalid state for job - COMPLETE {id}",
    WrongState: "Request invalid for state of job MSG={error} {id}",
    RunningJob: "Cannot modify attribute while job running  {error} {id}",
    NotRerunable: "Job not rerunable MSG={error} {id}",
    NoRoom: "Resource temporarily unavailable MSG={error} {id}",
    BadSignal: "Unknown/illegal signal name MSG={error} {id}",
}
_PBSPRO_TEXTS: Mapping[type[HpcmesosError], str] = {
    UnknownJob: "Unknown Job Id {id}",
    Unauthorized: "Unauthorized Request  {id}",
    JobFinished: "Job has finished {id}",
    WrongState: "Request invalid for state of job {id}",
    RunningJob: "Cannot modify attribute while job running  {error} {id}",
    NotRerunable: "job is not rerunnable {id}",
    NoRoom: "Insufficient amount of resource: {error} {id}",
    BadSignal: "Unknown/illegal signal name {id}",
}


def one_line(text: str) -> str:
    """``text`` with everything that a terminal would not print as a character spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def spelled_out(text: str) -> str:
    """A command's output in which what would steer a terminal is spelled out, but for line breaks and tabs.

    Jobs, nodes and their comments hold words of others than the reader.
    """
    return text.translate(_SPELLED) if text.isascii() or _STEERING.search(text) else text


def exit_code(error: HpcmesosError, personality: Personality) -> int:
    """What the command exits with."""
    if personality is Personality.PBSPRO:
        return _PBSPRO_CODES.get(type(error), error.exit_code)
    return error.exit_code


def error_number(error: HpcmesosError, personality: Personality) -> int:
    """The server's error number of the family, of which the exit code is the last byte."""
    code = exit_code(error, personality)
    return _FIRST_ERROR + code if code >= _FIRST_ERROR_CODE else _FIRST_ERROR + 256 + code


def information(command: str, argv: Sequence[str], personality: Personality) -> CommandReply | None:
    """The answer to ``--help`` and ``--version``; None: the words ask for neither."""
    parsed = parse(command, argv)
    if parsed.has("help"):
        return CommandReply(stdout=help_text(command))
    if not (parsed.has("version") or parsed.has("about")):
        return None
    if personality is Personality.PBSPRO:
        return CommandReply(stdout=f"pbs_version = {VERSION}\n")
    return CommandReply(stderr=f"Version: {VERSION}\n")


@dataclass(slots=True)
class Refusals:
    """The refusals of a command that takes several ids: one line each, and the code of the one that counts."""

    command: str
    personality: Personality
    lines: list[str] = field(default_factory=list)
    code: int = 0

    def add(self, job_id: str, error: HpcmesosError) -> None:
        """Torque exits with the first error, OpenPBS with the last."""
        torque = self.personality is Personality.TORQUE
        form = (_TORQUE_TEXTS if torque else _PBSPRO_TEXTS).get(type(error), "{error}")
        if self.command == "qstat" and isinstance(error, JobFinished):
            form = "{id} Job has finished, use -x or -H to obtain historical job information"
        self.lines.append(one_line(f"{self.command}: {form.format(id=job_id, error=error)}"))
        if not (torque and self.code):
            self.code = exit_code(error, self.personality)

    def reply(self, stdout: str = "") -> CommandReply:
        return CommandReply(stdout=stdout, stderr="".join(f"{line}\n" for line in self.lines), code=self.code)
