"""The words of qstat, pbsnodes, qdel, qhold and qrls as queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hpcmesos.errors import InvalidValue, UsageError
from hpcmesos.pbs.option_table import COMMANDS
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.quoting import split_list

NODE_STATES = frozenset(
    {
        "free",
        "offline",
        "down",
        "reserve",
        "job-exclusive",
        "job-sharing",
        "busy",
        "state-unknown",
        "time-shared",
    }
    | {"active", "all", "up"}
    | {"draining", "gone"}
)
"""The words that ``pbsnodes -l`` takes (pbsnodes(8B) of Torque 6.1.3), and two of our own."""

_RUNNING_STATES = frozenset("RES")
_WAITING_STATES = frozenset("QHWT")
_ACTION_OPTIONS = ("o", "c", "r", "gone")


class QstatFormat(StrEnum):
    PLAIN = "plain"
    ALT = "alt"  # -a -i -r -u -n -s
    FULL = "full"  # -f
    JSON = "json"  # -F json
    DSV = "dsv"  # -F dsv
    XML = "xml"  # -x in the torque personality
    QUEUES = "queues"  # -Q
    LIMITS = "limits"  # -q
    SERVER = "server"  # -B
    WHY = "why"  # --why
    WHY_FULL = "why in full"  # --why -f
    WHY_JSON = "why as JSON"  # --why -F json


@dataclass(frozen=True, slots=True, kw_only=True)
class QstatQuery:
    """What qstat asks for and how it is shown; empty tuples mean no filter."""

    ids: tuple[str, ...] = ()  # job operands as written
    queues: tuple[str, ...] = ()  # destination operands: queue names
    users: tuple[str, ...] = ()  # -u, without @host
    format: QstatFormat = QstatFormat.PLAIN
    full: bool = False  # -Q -f, -B -f
    include_history: bool = False  # also jobs that finished long ago (-x, -H)
    states: frozenset[str] = frozenset()  # letters
    one_line: bool = False  # -1: no folding, nodes on the same line
    with_nodes: bool = False  # -n
    with_comment: bool = False  # -s
    expand_arrays: bool = False  # -t
    wide: bool = False  # -w
    arrays_only: bool = False  # -J
    delimiter: str = "|"  # -D, of dsv


class NodesFormat(StrEnum):
    ALL = "all"  # -a and plain
    LIST = "list"  # -l
    JSON = "json"
    XML = "xml"
    DSV = "dsv"


class NodesAction(StrEnum):
    SHOW = "show"
    OFFLINE = "offline"  # -o
    CLEAR = "clear"  # -c (torque), -r (pbspro)
    RESET = "reset"  # -r (torque)
    NOTE = "note"  # -N alone
    GONE = "gone"  # --gone: an operator says that the node is lost for good


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesQuery:
    nodes: tuple[str, ...] = ()  # empty: all
    action: NodesAction = NodesAction.SHOW
    format: NodesFormat = NodesFormat.ALL
    states: frozenset[str] = frozenset()  # of -l; empty: the unusable ones
    note: str | None = None
    gpu: str | None = None  # --gpu: index or UUID; what is done is done to it
    with_notes: bool = False  # -n
    quiet: bool = False  # -q: no error messages
    delimiter: str = "|"  # -D, of dsv


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteQuery:
    ids: tuple[str, ...]
    all: bool = False  # the operand "all"
    delay: int | None = None  # seconds between SIGTERM and SIGKILL
    message: str | None = None
    purge: bool = False  # -p
    force: bool = False  # -W force
    history: bool = False  # -x
    array_range: str | None = None  # -t


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldQuery:
    ids: tuple[str, ...]
    kinds: str = "u"  # of u, o, s; or "n"
    array_range: str | None = None


def parse_qstat(argv: Sequence[str], personality: Personality = Personality.TORQUE) -> QstatQuery:
    """Reads qstat's words; an operand that begins with a digit is a job, any other a queue.

    Raises:
        UsageError: for unknown options and formats.
    """
    command = parse("qstat", argv)
    operands = (*command.operands, *(command.rest or ()))
    queues = (operand.partition("@")[0] for operand in operands if not _is_job(operand))
    users = (user.partition("@")[0] for text in command.all("u") for user in split_list(text))
    return QstatQuery(
        ids=tuple(operand for operand in operands if _is_job(operand)),
        queues=tuple(queue for queue in queues if queue),
        users=tuple(dict.fromkeys(users)),
        format=_qstat_format(command, personality),
        full=command.has("f"),
        include_history=command.has("x") or command.has("H"),
        states=_qstat_states(command),
        one_line=command.has("1") or (command.has("w") and personality is Personality.PBSPRO),
        with_nodes=command.has("n"),
        with_comment=command.has("s"),
        expand_arrays=command.has("t"),
        wide=command.has("w"),
        arrays_only=command.has("J"),
        delimiter=command.last("D") or "|",
    )


def parse_pbsnodes(argv: Sequence[str], personality: Personality = Personality.TORQUE) -> NodesQuery:
    """Reads pbsnodes' words.

    Raises:
        UsageError: for unknown options and formats, two actions at once, and an action without nodes.
    """
    command = parse("pbsnodes", argv)
    operands = (*command.operands, *(command.rest or ()))
    listing = command.has("l")
    states = frozenset(operand for operand in operands if listing and operand in NODE_STATES)
    nodes = tuple(operand for operand in operands if operand not in states)
    note = next((command.last(name) for name in ("N", "C", "A") if command.has(name)), None)
    action = _nodes_action(command, note, personality)
    if action is not NodesAction.SHOW and not nodes:
        raise UsageError("name at least one node")
    gpu = command.last("gpu")
    if gpu is not None and (len(nodes) != 1 or action not in (NodesAction.OFFLINE, NodesAction.CLEAR)):
        raise UsageError("--gpu takes one node, and -o or -c: pbsnodes -o --gpu 0 -N 'why' node7")
    return NodesQuery(
        nodes=nodes,
        action=action,
        format=_nodes_format(command, listing),
        states=states,
        note=note,
        gpu=gpu,
        with_notes=command.has("n"),
        quiet=command.has("q"),
        delimiter=command.last("D") or "|",
    )


def parse_qdel(argv: Sequence[str]) -> DeleteQuery:
    """Reads qdel's words. ``-W`` takes seconds or ``force``; ``suppress_email=N`` beside it is accepted.

    Raises:
        UsageError: for unknown options, and when no job is named.
        InvalidValue: for any other ``-W`` value.
    """
    command = parse("qdel", argv)
    ids = _ids(command)
    delay, force = None, False
    for word in (word for text in command.all("W") for word in split_list(text)):
        if word == "force":
            force = True
        elif word.isascii() and word.isdigit() and len(word) < 10:
            delay = int(word)
        elif not word.startswith("suppress_email="):
            raise InvalidValue(f"illegal -W value '{word}'; write seconds or force")
    every = any(job.lower() == "all" for job in ids)
    return DeleteQuery(
        ids=() if every else ids,
        all=every,
        delay=delay,
        message=command.last("m"),
        purge=command.has("p"),
        force=force,
        history=command.has("x"),
        array_range=command.last("t"),
    )


def parse_hold(command: str, argv: Sequence[str]) -> HoldQuery:
    """Reads the words of ``command``, qhold or qrls.

    Raises:
        UsageError: for unknown options, and when no job is named.
        InvalidValue: for kinds of hold other than u, o, s or n.
    """
    parsed = parse(command, argv)
    kinds = parsed.last("h") or "u"
    if kinds != "n" and not set(kinds) <= set("uos"):
        raise InvalidValue(f"illegal -h value '{kinds}'; letters of u, o and s, or n")
    return HoldQuery(ids=_ids(parsed), kinds="".join(dict.fromkeys(kinds)), array_range=parsed.last("t"))


def _is_job(operand: str) -> bool:
    return operand[:1].isascii() and operand[:1].isdigit()


def _ids(command: ParsedCommand) -> tuple[str, ...]:
    ids = (*command.operands, *(command.rest or ()))
    if not ids:
        raise UsageError(f"name at least one job: {command.command} {COMMANDS[command.command].operands}")
    return ids


def _qstat_format(command: ParsedCommand, personality: Personality) -> QstatFormat:
    text = command.last("F")
    if text not in (None, "json", "dsv"):
        raise UsageError(f"unknown format '{text}'; one of json, dsv")
    xml = command.has("x") and personality is Personality.TORQUE
    choices = (
        (command.has("why") and text == "json", QstatFormat.WHY_JSON),
        (command.has("why") and command.has("f"), QstatFormat.WHY_FULL),
        (command.has("why"), QstatFormat.WHY),
        (command.has("B"), QstatFormat.SERVER),
        (command.has("Q"), QstatFormat.QUEUES),
        (text == "json", QstatFormat.JSON),
        (text == "dsv", QstatFormat.DSV),
        (command.has("q"), QstatFormat.LIMITS),
        (xml, QstatFormat.XML),
        (command.has("f"), QstatFormat.FULL),
        (any(command.has(letter) for letter in "airunsT"), QstatFormat.ALT),
    )
    return next((chosen for given, chosen in choices if given), QstatFormat.PLAIN)


def _qstat_states(command: ParsedCommand) -> frozenset[str]:
    running = _RUNNING_STATES if command.has("r") else frozenset()
    return running | _WAITING_STATES if command.has("i") else running


def _nodes_action(command: ParsedCommand, note: str | None, personality: Personality) -> NodesAction:
    given = [name for name in _ACTION_OPTIONS if command.has(name)]
    if len(given) > 1:
        raise UsageError(f"-{given[0]} and -{given[1]} exclude each other".replace("-gone", "--gone"))
    if not given:
        return NodesAction.SHOW if note is None else NodesAction.NOTE
    reset = NodesAction.RESET if personality is Personality.TORQUE else NodesAction.CLEAR
    actions = {"o": NodesAction.OFFLINE, "c": NodesAction.CLEAR, "r": reset, "gone": NodesAction.GONE}
    return actions[given[0]]


def _nodes_format(command: ParsedCommand, listing: bool) -> NodesFormat:
    text = command.last("F")
    if text not in (None, "json", "dsv"):
        raise UsageError(f"unknown format '{text}'; one of json, dsv")
    if text is not None:
        return NodesFormat(text)
    if command.has("x"):
        return NodesFormat.XML
    return NodesFormat.LIST if listing else NodesFormat.ALL
