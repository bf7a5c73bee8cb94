"""Versioned messages between master and agent; those of the HTTP API are in `api_schema`.

Link (agent dials the leader, mutually authenticated TLS): frames of a 4-byte big-endian length and one msgpack message.
Every message is a tagged struct. A leader takes agents of its own ``PROTOCOL`` and of the one before, and speaks to
each as it knows; others part with a clear line. Fields are only ever added, with defaults.
Times are seconds since the epoch (UTC), sizes bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from hpcmesos.errors import ProtocolError

PROTOCOL = 2
"""1: the first. 2: a hello names the node's journal."""
SPOKEN = (PROTOCOL - 1, PROTOCOL)
MAX_FRAME = 16 * 1024 * 1024


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base of everything on the link; the class name is the tag."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One whole GPU, or one MIG instance, as its node sees it."""

    uuid: str
    index: int
    model: str
    memory: int = 0
    numa: int | None = None
    pci: str = ""
    simulated: bool = False
    state: str = "free"  # a GpuState value, as far as the node knows
    links: tuple[
        int, ...
    ] = ()  # quality to each GPU of this node, in index order; higher is better, empty: unknown
    note: str = ""
    minor: int | None = None  # N of /dev/nvidiaN; of an instance its card's
    parent: str = ""  # of a MIG instance: the UUID of its card
    profile: str = ""  # of a MIG instance: 1g.10gb, 1c.3g.40gb, 1g.10gb.me
    instance: tuple[int, ...] = ()  # of a MIG instance: the numbers of its GPU instance and compute instance


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has. ``declared``: CPUs and memory were stated, not found (several agents on one host)."""

    cpus: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    declared: bool = False
    features: tuple[str, ...] = ()
    os: str = ""
    hostname: str = ""
    isolation: tuple[
        str, ...
    ] = ()  # what holds jobs here: cgroup, memory, cpu, pids, devices; empty: nothing


# --- agent to leader ---------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, kw_only=True):
    attempt: str


class Refused(Message, frozen=True, kw_only=True):
    """PREPARE failed here; ``culprit`` is the node at fault (not always the one that refuses)."""

    attempt: str
    culprit: str
    reason: str


class Started(Message, frozen=True, kw_only=True):
    """The script runs on the head."""

    attempt: str
    pid: int
    started_at: float
    stdout_path: str = ""
    stderr_path: str = ""


class Ended(Message, frozen=True, kw_only=True):
    """This node's part of an attempt is over and all its processes are gone. Repeated until acknowledged.

    Only the head's report carries code or signal. ``forced``: it took SIGKILL. ``ranks``: one mapping per rank
    {step, rank, node, code, signal, gpu, at}; ``steps``: {step, command, code, first_failed: a rank or None}.
    ``usage``: cput (s), mem (bytes peak), walltime (s). ``ended_boot``: when, by the node's CLOCK_BOOTTIME (0: not
    known), and ``ago``: seconds that this was before the report was sent, whatever clocks say.
    """

    attempt: str
    head: bool
    cause: str
    code: int | None = None
    signal: int | None = None
    forced: bool = False
    culprit: str | None = None  # several: joined by +, the likeliest first
    message: str = ""
    started_at: float | None = None
    ended_at: float = 0.0
    ended_boot: float = 0.0
    ago: float = 0.0
    usage: dict[str, float] = {}
    ranks: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    stdout_path: str = ""
    stderr_path: str = ""
    undelivered: str = ""  # why output is not at its final place; empty: it is


class GpuReport(Message, frozen=True, kw_only=True):
    """States of this node's GPUs that changed (clean again, quarantined, lost, back)."""

    gpus: tuple[Gpu, ...]


class GpuFigures(Message, frozen=True, kw_only=True):
    """Each 10 s, of real GPUs. ``gpus``: by UUID, what `agent.health.FIGURES` names. ``uses``: by attempt, what it has
    used of this node's GPUs since it runs: samples, busy (those with utilisation), busy_sum and busy_max (percent),
    memory_max (bytes), energy (J).
    """

    gpus: dict[str, dict[str, float]]
    uses: dict[str, dict[str, float]] = {}


class NodeHealth(Message, frozen=True, kw_only=True):
    """What the site's health program says of the node; empty: it is fit for jobs."""

    trouble: str


class InventoryReport(Message, frozen=True, kw_only=True):
    inventory: Inventory


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a node holds of an attempt when it (re)connects. ``phase``: preparing ready running ending ended."""

    attempt: str
    phase: str
    head: bool
    gpus: tuple[str, ...] = ()


class Hello(Message, frozen=True, kw_only=True):
    """First message of a link."""

    protocol: int
    node: str
    boot_id: str
    address: str
    peer_port: int
    version: str
    inventory: Inventory
    attempts: tuple[AttemptReport, ...] = ()
    seen_term: int = 0  # the highest leader term this agent obeyed
    pid: int = 0
    shepherd_pid: int = 0
    journal: str = ""  # names the node's memory of attempts; another one: it has forgotten them


class Pong(Message, frozen=True, kw_only=True):
    nonce: int
    load: float = 0.0
    memory_free: int = 0


# --- leader to agent ---------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True):
    """``timeline`` and ``term`` fence old leaders: an agent refuses a pair lower than one it obeyed."""

    protocol: int
    cluster: str
    timeline: int
    term: int
    ping_interval: float = 2.0


class Rejected(Message, frozen=True, kw_only=True):
    """The leader parts: wrong protocol, unknown node, a second agent under one name, or not the leader (``leader``)."""

    reason: str
    leader: str | None = None


class Prepare(Message, frozen=True, kw_only=True):
    """``spec``: see docs/architecture.md, "The spec of an attempt"."""

    attempt: str
    spec: dict[str, Any]


class Go(Message, frozen=True, kw_only=True):
    attempt: str


class End(Message, frozen=True, kw_only=True):
    attempt: str
    cause: str
    kill_delay: float
    message: str = ""


class Signal(Message, frozen=True, kw_only=True):
    attempt: str
    signal: int


class Alter(Message, frozen=True, kw_only=True):
    """Of an attempt that runs or is about to: its walltime (s from its start, None: no limit) or a line for its output.

    ``streams``: "o", "e", both, or none: then it is the walltime that changes, and ``suspended`` (None: no word of it):
    whether its processes stand still.
    """

    attempt: str
    walltime: int | None = None
    streams: str = ""
    text: str = ""
    suspended: bool | None = None


class SetGpu(Message, frozen=True, kw_only=True):
    """An operator takes a GPU out of use (``fault`` says why), or with an empty ``fault`` lets it be used again."""

    uuid: str
    fault: str = ""


class Acknowledged(Message, frozen=True, kw_only=True):
    """The end of this node's part is durable in the database; the node may forget it."""

    attempt: str


class Ping(Message, frozen=True, kw_only=True):
    """``heard``: the nonce of the last pong that the leader has had on this link; 0: none yet. ``trusts``: digest of
    the cluster's certificate authorities; a node that has others asks for them.
    """

    nonce: int
    heard: int = 0
    trusts: str = ""


ToLeader: TypeAlias = (
    Hello | Ready | Refused | Started | Ended | GpuReport | GpuFigures | NodeHealth | InventoryReport | Pong
)
ToAgent: TypeAlias = Welcome | Rejected | Prepare | Go | End | Signal | Alter | SetGpu | Acknowledged | Ping

_encoder = msgspec.msgpack.Encoder()
_to_leader: msgspec.msgpack.Decoder[ToLeader] = msgspec.msgpack.Decoder(ToLeader)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def encode(message: ToLeader | ToAgent) -> bytes:
    """One frame, length included."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


_BOUND = 2.0**1009
_PERHAPS_NO_NUMBER = (b"\xca\x7f", b"\xca\xff", b"\xcb\x7f", b"\xcb\xff")
"""How msgpack's floats begin that are not below ``_BOUND`` (those of 64 bits) or 2**127. A message without these bytes,
nearly every one, need not be walked through.
"""


def decode_to_leader(body: bytes) -> ToLeader:
    """What an agent says. Numbers that are none (NaN, infinite, past all bounds) become 0, "not known": JSON, in which
    they would be stored, has no such numbers, and who computes with them gets more of them.
    """
    message = _to_leader.decode(body)
    if any(sign in body for sign in _PERHAPS_NO_NUMBER):
        message = msgspec.convert(_numbers(msgspec.msgpack.decode(body)), ToLeader)
    return message


def _numbers(value: Any) -> Any:
    """With 0.0 for floats that are not below ``_BOUND``, at any depth."""
    if isinstance(value, float):
        return value if abs(value) < _BOUND else 0.0
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return value


def decode_to_agent(body: bytes) -> ToAgent:
    return _to_agent.decode(body)


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes the bodies of whole frames off the front of ``buffer``.

    Raises:
        ProtocolError: a frame is larger than MAX_FRAME.
    """
    taken = 0
    try:
        while len(buffer) - taken >= 4:
            begin = taken + 4
            size = int.from_bytes(buffer[taken:begin], "big")
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes")
            if len(buffer) < begin + size:
                return
            taken = begin + size
            yield bytes(buffer[begin:taken])
    finally:
        del buffer[:taken]  # once for all: it moves what is behind
