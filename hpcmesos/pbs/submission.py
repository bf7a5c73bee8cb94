"""From qsub's words to one value: command line over directives over the server's defaults over the environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath

from hpcmesos.errors import InvalidScript, InvalidValue, UsageError
from hpcmesos.gang import constraints, frameworks
from hpcmesos.model import MIG_FEATURE, Request
from hpcmesos.pbs import resources
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.pbs.directives import DEFAULT_PREFIX, MAX_SCRIPT_BYTES, check_script, scan_directives
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.paths import PathTemplate, parse_path
from hpcmesos.pbs.quoting import split_list, unquote
from hpcmesos.pbs.staging import STAGINGS, parse_staging
from hpcmesos.pbs.values import (
    Dependency,
    bare_names,
    check_choice,
    check_name,
    check_printable,
    default_name,
    merge_attribute,
    parse_attributes,
    parse_boolean,
    parse_depend,
    parse_execution_time,
    parse_mail_users,
    parse_priority,
    parse_umask,
    parse_variables,
)
from hpcmesos.queue.arrays import ArraySpec

__all__ = [
    "MAX_SCRIPT_BYTES",
    "Dependency",
    "EnvNeeds",
    "Needs",
    "Submission",
    "SubmitContext",
    "build",
    "build_submission",
    "check_script",
    "environment_names",
    "needs",
    "needs_of",
]

_ORIGIN_NAMES = ("PATH", "MAIL", "SHELL", "TZ", "LANG")
_ASKED_NAMES = ("HOME", *_ORIGIN_NAMES, "PBS_DPREFIX")
_SUFFIX = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_PREFIX_VARIABLE = "PBS_DPREFIX"

_ATTRIBUTE_CHOICES = {
    "ring": ("check", "none"),
    "gpubind": ("rank", "none"),
    "gpu_idle": ("allowed", "watched"),
    "image_pull": ("always", "missing", "never"),
}
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._\-/:@]*", re.IGNORECASE)
_KEPT_OPTIONS = {
    "D": "init_root_dir",
    "K": "kill_delay",
    "L": "req_information",
    "R": "Remove_Files",
    "T": "prologue",
    "u": "User_List",
}
_TYPED_ATTRIBUTES = frozenset(
    {"depend", "umask", "block", "interactive", "group_list", "ring", "gpubind", "image", "job_array_request"}
    | {"max_run_subjobs"}
    | {"framework", "capture", "constraints", "image_pull", "image_secret", "secret", "gpu_idle", "mps"}
)


def _no_defaults(queue: str, asked: Mapping[str, str]) -> Mapping[str, str]:
    return {}


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
    default_resources: Callable[[str, Mapping[str, str]], Mapping[str, str]] = _no_defaults
    """Of a queue (its name) for a job that asks for these resources: what it gets beside them."""
    submit_filter: str | None = None  # the program that has seen the script, on the submit host
    decimal_umask: bool = False  # Torque: a umask that does not begin with 0 is decimal
    default_options: tuple[str, ...] = ()  # the server's default qsub arguments, below the directives


@dataclass(frozen=True, slots=True)
class Needs:
    """What qsub needs of the caller's files and time, told from argv alone."""

    script: (
        str | None
    )  # path; "-": standard input; None: no script (``-- PROG ARGS``, or interactive without one)
    interactive: bool = False
    information: str | None = None  # "help" or "version": print that and submit nothing


@dataclass(frozen=True, slots=True)
class EnvNeeds:
    """What of the caller's environment qsub needs."""

    all: bool  # -V
    names: tuple[str, ...]  # -v NAME without a value, and what PBS_O_* and the directive prefix are made of


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
    x11: bool = False  # with a display on the submitter's X server
    silent: bool = False  # -z
    dry_run: bool = False  # --dry-run: check and tell, but submit nothing
    submit_args: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)  # -W attributes that we only keep
    ring: str | None = None  # -W ring=
    gpubind: str | None = None  # rank, none; None: the launcher's default
    mps: bool = False  # -W mps=true: the ranks share its GPUs by NVIDIA's Multi-Process Service
    gpu_idle: str | None = None  # -W gpu_idle=: allowed or watched
    image: str | None = None  # --image, -W image=: run in this container image
    image_pull: str | None = None  # -W image_pull=: always, missing or never; None: as the node is set
    image_secret: str | None = (
        None  # -W image_secret=: the secret with which the image is pulled, USER:PASSWORD
    )
    secrets: tuple[
        str, ...
    ] = ()  # -W secret=NAME,...: names of the owner's, for files; `image_secret` among them
    capture: bool = False  # -W capture=true: no output files; ``hpcmesos logs`` has what was written


def needs(argv: Sequence[str]) -> Needs:
    """Tells from qsub's words which script is meant.

    Raises:
        UsageError: for words that qsub does not know, and for more than one script.
    """
    return needs_of(parse("qsub", argv))


def needs_of(command: ParsedCommand) -> Needs:
    """As needs(), of words that are sorted out."""
    if command.has("help"):
        return Needs(None, information="help")
    if command.has("version") or command.has("about"):
        return Needs(None, information="version")
    interactive = _is_interactive(command)
    if command.rest is not None and command.operands:
        raise UsageError(f"'{command.operands[0]}' and '--' exclude each other: either a script or a program")
    if len(command.operands) > 1:
        raise UsageError(
            f"one script at a time; '{command.operands[1]}' is a second (its arguments go into -F)"
        )
    if command.rest is not None or (interactive and (command.has("x") or not command.operands)):
        return Needs(None, interactive)
    return Needs(command.operands[0] if command.operands else "-", interactive)


def environment_names(argv: Sequence[str], script: str | None) -> EnvNeeds:
    """Tells from the words and the script's directives which variables of the caller qsub needs.

    The directives are read with the prefix of ``-C`` or ``#PBS``: a caller that sets PBS_DPREFIX passes it as ``-C``.
    """
    command = parse("qsub", argv)
    sources = [*_directive_commands(script or "", command.last("C") or DEFAULT_PREFIX), command]
    listed = (name for source in sources for value in source.all("v") for name in bare_names(value))
    terminal = ("TERM", "DISPLAY") if any(_is_interactive(source) for source in sources) else ()
    names = tuple(dict.fromkeys((*_ASKED_NAMES, *terminal, *listed)))
    return EnvNeeds(any(source.has("V") for source in sources), names)


def build_submission(argv: Sequence[str], script: str | None, context: SubmitContext) -> Submission:
    """Merges qsub's words ``argv`` (without the command's name) with the directives of ``script``.

    For single options the last one of the highest source counts; ``-l``, ``-v`` and ``-W`` add up by name.

    Raises:
        Rejection: a leaf of it, with the one line that tells what is wrong.
    """
    return build(parse("qsub", argv), script, context, shlex.join(argv))


def build(
    command: ParsedCommand, script: str | None, context: SubmitContext, submit_args: str = ""
) -> Submission:
    """As build_submission(), of words that are sorted out; ``submit_args``: as they are shown."""
    need = needs_of(command)
    if need.script is not None and script is None:
        raise InvalidScript("script file: no job script was given")
    directives = _directive_commands(script or "", directive_prefix(command, context))
    sources = [parse("qsub", context.default_options), *directives, command]
    return _Merged(sources, need, context, command.rest).submission(submit_args)


def directive_prefix(command: ParsedCommand, context: SubmitContext) -> str:
    """What a directive's line begins with."""
    given = command.last("C")
    return context.environ.get(_PREFIX_VARIABLE, DEFAULT_PREFIX) if given is None else given


class _Merged:
    """The options of all sources, lowest first, as one."""

    def __init__(
        self,
        sources: Sequence[ParsedCommand],
        need: Needs,
        context: SubmitContext,
        rest: tuple[str, ...] | None,
    ) -> None:
        self.sources = sources
        self.need = need
        self.context = context
        self.rest = rest
        self.operands = sources[-1].operands
        self._given = {name: value for source in sources for name, value in source.options}
        self.attributes = self._attributes()
        self.interactive = need.interactive or any(_is_interactive(source) for source in sources)

    def submission(self, submit_args: str) -> Submission:
        queue = (self.last("q") or "").partition("@")[0] or None
        words = resources.collect(self._lists("l"))
        defaults = self.context.default_resources(queue or self.context.default_queue, words)
        asked = resources.build({**defaults, **words})
        cwd, host = self.context.cwd, self.context.host
        when = self.last("a")
        array = self.last("t") or self.last("J") or self.attributes.get("job_array_request")
        if self.interactive:
            self._check_interactive(array)
        return Submission(
            name=self._name(),
            queue=queue,
            request=self._with_image(self._with_rules(self._with_framework(asked.request))),
            resource_list=asked.display,
            stdout_path=parse_path(self.last("o"), "o", cwd, host),
            stderr_path=parse_path(self.last("e"), "e", cwd, host),
            environment=self._environment(queue),
            priority=parse_priority(self.last("p") or "0"),
            rerunable=self._choice("r", "y") == "y" and not self.interactive,
            hold=self.has("h"),
            not_before=None if when is None else parse_execution_time(when, self.context.now),
            dependencies=parse_depend(self.attributes.get("depend", "")),
            join=self._choice("j", "n"),
            keep=self._choice("k", "n"),
            umask=parse_umask(self.attributes.get("umask", "077"), decimal=self.context.decimal_umask),
            shell=self._shell(),
            workdir=self._workdir(asked.submit_directory),
            block=self._flag("block"),
            argv=self._program(),
            script_args=arguments(self.raw("F"), "-F"),
            account=self.last("A"),
            mail_points=self._choice("m", "a"),
            mail_users=parse_mail_users(self.last("M") or ""),
            project=self.last("P"),
            group_list=split_list(self.attributes.get("group_list", "")),
            checkpoint=self.last("c") or "u",
            array=self._array(array) if array else None,
            interactive=self.interactive,
            x11=self.interactive and self.has("X"),
            silent=self.has("z"),
            dry_run=self.has("dry-run"),
            submit_args=submit_args,
            extra=self._extra(),
            ring=self.attributes.get("ring"),
            gpubind=self.attributes.get("gpubind"),
            mps=self._mps(asked.request),
            gpu_idle=self.attributes.get("gpu_idle"),
            image=self.image,
            image_pull=self.attributes.get("image_pull"),
            image_secret=self._image_secret,
            secrets=self._secrets,
            capture=self._flag("capture"),
        )

    def _check_interactive(self, array: str | None) -> None:
        """What a job at a terminal cannot be."""
        if array:
            raise UsageError("an interactive job cannot be an array")
        if self._flag("block"):
            raise UsageError("an interactive job cannot block; qsub stays with it anyhow")
        if self.has("X") and not self.context.environ.get("DISPLAY"):
            raise UsageError("DISPLAY not set")
        if self.has("x") and not self.operands:
            raise UsageError("-x needs the command to run: qsub -I -x 'PROGRAM ARGUMENTS'")

    def _array(self, text: str) -> ArraySpec:
        """``-W max_run_subjobs=N`` is OpenPBS' other way to write %N."""
        spec = parse_array(text)
        limit = self.attributes.get("max_run_subjobs")
        return spec if limit is None else parse_array(f"{replace(spec, limit=None)}%{limit}")

    def has(self, name: str) -> bool:
        return name in self._given

    def last(self, name: str) -> str | None:
        value = self.raw(name)
        return None if value is None else check_printable(name, unquote(value))

    def raw(self, name: str) -> str | None:
        """As ``last``, with the quotes that are part of a command line."""
        return self._given.get(name)

    def _lists(self, name: str) -> Iterable[str]:
        """All values of ``name``: the command line's, then the directives', then the server's; each in order."""
        *directives, command = self.sources[1:]
        ordered = (command, *directives, self.sources[0])
        return (value for source in ordered for value in source.all(name))

    def _attributes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in self.sources:
            for text in source.all("W"):
                for name, value in parse_attributes(text).items():
                    merge_attribute(found, name, check_printable("W", value))
        for name, choices in _ATTRIBUTE_CHOICES.items():
            if name in found and found[name] not in choices:
                raise InvalidValue(f"illegal -W value '{name}={found[name]}'; one of {', '.join(choices)}")
        return found

    def _with_framework(self, request: Request) -> Request:
        text = self.attributes.get("framework")
        if text is None:
            return request
        framework = frameworks.parse(text)
        frameworks.check(framework, request)
        return replace(request, framework=str(framework))

    @property
    def image(self) -> str | None:
        return self.last("image") or self.attributes.get("image") or None

    @property
    def _image_secret(self) -> str | None:
        name = self.attributes.get("image_secret") or None
        if name is not None and self.image is None:
            raise UsageError("image_secret is for pulling an image: name one with --image")
        return name

    @property
    def _secrets(self) -> tuple[str, ...]:
        asked = split_list(self.attributes.get("secret", ""))
        extra = self._image_secret
        return asked if extra is None or extra in asked else (*asked, extra)

    def _with_image(self, request: Request) -> Request:
        if self.image is None:
            return request
        if not _IMAGE.fullmatch(self.image):
            raise InvalidValue(f"illegal image '{self.image}'; write NAME[:TAG] or NAME@DIGEST")
        if self.attributes.get("ring") == "check":
            raise InvalidValue(
                "ring=check and image: the ring runs outside of containers; leave one of them out"
            )
        return request.in_containers()

    def _mps(self, request: Request) -> bool:
        """Of whole GPUs, and on the host: its programs have to be where the service is."""
        if not self._flag("mps"):
            return False
        if not request.gpus or any(
            word.startswith(MIG_FEATURE) for c in request.chunks for word in c.features
        ):
            raise InvalidValue("mps=true is for jobs with whole GPUs: ask for some, e.g. -l nodes=1:gpus=1")
        if self.image is not None:
            raise InvalidValue("mps=true and image: the service runs outside of containers; drop one of them")
        return True

    def _with_rules(self, request: Request) -> Request:
        text = self.attributes.get("constraints")
        return request if text is None else replace(request, constraints=constraints.parse(text))

    def _choice(self, name: str, default: str) -> str:
        return check_choice("qsub", name, self.last(name) or default)

    def _flag(self, name: str) -> bool:
        return parse_boolean(name, self.attributes[name]) if name in self.attributes else False

    def _name(self) -> str:
        given = self.last("N")
        if given is not None:
            return check_name(given)
        if self.rest:
            return default_name(self.rest[0])
        script = self.need.script
        return default_name(script) if script not in (None, "-") and not self.interactive else "STDIN"

    def _shell(self) -> str | None:
        """The first path of ``-S path[@host],...``."""
        listed = split_list(self.last("S") or "")
        return listed[0].partition("@")[0] or None if listed else None

    def _workdir(self, submit_directory: bool) -> str | None:
        asked = self.last("d") or self.last("w") or (self.context.cwd if submit_directory else None)
        return None if asked is None else str(PurePosixPath(self.context.cwd, asked))

    def _program(self) -> tuple[str, ...] | None:
        if self.rest is not None:
            if not self.rest:
                raise UsageError("no program after '--'; write qsub -- PROGRAM ARGUMENTS")
            return self.rest
        if self.interactive and self.has("x") and self.operands:
            return arguments(self.operands[0], "-x")
        return None

    def _extra(self) -> dict[str, str]:
        found = {name: value for name, value in self.attributes.items() if name not in _TYPED_ATTRIBUTES}
        for name in STAGINGS:
            parse_staging(name, found.get(name, ""))
        for letter, name in _KEPT_OPTIONS.items():
            value = self.last(letter)
            if value is not None and letter == "T" and not _SUFFIX.fullmatch(value):
                raise InvalidValue(f"illegal -T value '{value}': letters, digits, '_', '-' and '.'")
            if value is not None:
                found[name] = value
        if self.has("n"):
            found["node_exclusive"] = "True"
        return found

    def _environment(self, queue: str | None) -> dict[str, str]:
        """PBS_O_* first, then the variables asked for; nothing overrides PBS_O_*."""
        environ = self.context.environ
        asked: dict[str, str] = dict(environ) if self.has("V") else {}
        for value in reversed(list(self._lists("v"))):
            asked |= parse_variables(value, environ)
        if self.interactive and "TERM" in environ:
            asked["TERM"] = environ["TERM"]
        origin = origin_variables(self.context, queue, self.last("w"))
        return origin | {name: value for name, value in asked.items() if name not in origin}


def origin_variables(
    context: SubmitContext, queue: str | None = None, workdir: str | None = None
) -> dict[str, str]:
    """PBS_O_*: where the job comes from; variables that the caller lacks are left out."""
    environ = context.environ
    return {
        "PBS_O_QUEUE": queue or context.default_queue,
        "PBS_O_HOME": environ.get("HOME", context.home),
        "PBS_O_LOGNAME": context.user,
        **{f"PBS_O_{name}": environ[name] for name in _ORIGIN_NAMES if name in environ},
        "PBS_O_WORKDIR": str(PurePosixPath(context.cwd, workdir or "")),
        "PBS_O_HOST": context.host,
        "PBS_O_SERVER": context.server,
        "PBS_O_SYSTEM": "Linux",
        **({"PBS_O_SUBMIT_FILTER": context.submit_filter} if context.submit_filter else {}),
    }


def _directive_commands(script: str, prefix: str) -> list[ParsedCommand]:
    """Each directive line parsed by itself; operands on it are passed over, as Torque does."""
    found: list[ParsedCommand] = []
    for directive in scan_directives(script, prefix):
        try:
            found.append(parse("qsub", directive.words))
        except UsageError as error:
            raise InvalidScript(f"directive in line {directive.line}: {error}") from None
    return found


def _is_interactive(command: ParsedCommand) -> bool:
    if command.has("I"):
        return True
    values = [parse_attributes(text).get("interactive") for text in command.all("W")]
    return any(parse_boolean("interactive", value) for value in values if value is not None)


def arguments(text: str | None, option: str) -> tuple[str, ...]:
    """The words in the value of ``option``. Raises InvalidValue: a quote in it is not closed."""
    if not text:
        return ()
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidValue(f"illegal {option} value '{text}': {error}") from None
