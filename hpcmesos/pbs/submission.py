"""From qsub's words to one value: command line over directives over the server's defaults over the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from hpcmesos.model import Request
from hpcmesos.pbs.arrays import ArraySpec
from hpcmesos.pbs.paths import PathTemplate


@dataclass(frozen=True, slots=True)
class Dependency:
    """One term of ``-W depend=``: ``kind`` (``afterok``, ``on``, ...) and its job ids (or the count) as text."""

    kind: str
    jobs: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join((self.kind, *self.jobs))


@dataclass(frozen=True, slots=True)
class SubmitContext:
    """What the server knows of the caller beyond the words themselves."""

    cwd: str  # absolute
    umask: int
    host: str
    user: str
    home: str
    environ: Mapping[str, str]  # at least what environment_names() asked for
    server: str
    now: datetime  # aware, in the client's zone: -a is read in it
    default_queue: str = "batch"
    default_options: tuple[str, ...] = ()  # the server's default qsub arguments, below the directives


@dataclass(frozen=True, slots=True)
class Needs:
    """What of the caller's files qsub needs, told from argv alone."""

    script: str | None  # path; "-": standard input; None: no script (``-- PROG ARGS`` or interactive)
    prefix: str = "#PBS"  # directive prefix of -C; "" reads no directives


@dataclass(frozen=True, slots=True)
class EnvNeeds:
    """What of the caller's environment qsub needs."""

    all: bool  # -V
    names: tuple[str, ...]  # -v NAME without a value, and what PBS_O_* is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job as asked for, complete but for its id."""

    name: str
    queue: str | None  # None: the server's default
    request: Request
    resource_list: Mapping[str, str]  # for display, in the user's words
    stdout_path: PathTemplate
    stderr_path: PathTemplate
    environment: Mapping[str, str]  # the job's variables: PBS_O_*, -v, -V
    priority: int = 0  # -1024..1023
    rerunable: bool = True
    hold: bool = False
    not_before: datetime | None = None  # -a, aware
    dependencies: tuple[Dependency, ...] = ()
    join: str = "n"  # n, oe, eo
    keep: str = "n"
    umask: int = 0o077
    shell: str | None = None  # None: the owner's login shell
    workdir: str | None = None  # absolute; None: the owner's home
    block: bool = False
    argv: tuple[str, ...] | None = None  # ``-- PROG ARGS``: no shell, no script
    script_args: tuple[str, ...] = ()  # -F
    account: str | None = None
    mail_points: str = "a"
    mail_users: tuple[str, ...] = ()
    project: str | None = None
    group_list: tuple[str, ...] = ()
    checkpoint: str = "u"
    array: ArraySpec | None = None
    interactive: bool = False
    silent: bool = False  # -z
    submit_args: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)  # -W attributes that we only keep
    ring: str | None = None  # -W ring=
    gpubind: str | None = None  # rank, none; None: the launcher's default
    image: str | None = None  # -W image=: run in this container image


def build_submission(argv: Sequence[str], script: str | None, context: SubmitContext) -> Submission:
    """Merges qsub's words ``argv`` (without the command's name) with the directives of ``script``."""
    raise NotImplementedError


def needs(argv: Sequence[str]) -> Needs:
    raise NotImplementedError


def environment_names(argv: Sequence[str], script: str | None) -> EnvNeeds:
    raise NotImplementedError
