"""The words of qstat, pbsnodes, qdel, qhold and qrls as queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hpcmesos.pbs.personalities import Personality


class QstatFormat(StrEnum):
    PLAIN = "plain"
    ALT = "alt"  # -a -i -r -u -n -s
    FULL = "full"  # -f
    JSON = "json"  # -F json
    XML = "xml"  # -x in the torque personality
    QUEUES = "queues"  # -Q
    LIMITS = "limits"  # -q
    SERVER = "server"  # -B
    WHY = "why"  # --why


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


class NodesFormat(StrEnum):
    ALL = "all"  # -a and plain
    LIST = "list"  # -l
    JSON = "json"
    XML = "xml"


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
    with_notes: bool = False  # -n


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
    raise NotImplementedError


def parse_pbsnodes(argv: Sequence[str], personality: Personality = Personality.TORQUE) -> NodesQuery:
    raise NotImplementedError


def parse_qdel(argv: Sequence[str]) -> DeleteQuery:
    raise NotImplementedError


def parse_hold(command: str, argv: Sequence[str]) -> HoldQuery:
    raise NotImplementedError
