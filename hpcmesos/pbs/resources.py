"""``-l`` values: what the job asks for, and the text that ``Resource_List`` shows.

Rules: pbs_resources(7B) of Torque 6.1.3 (``nodes``, ``procs``, ``ncpus``, ``gpus``, ``mem``) and OpenPBS 23.06
(``select``, ``place``). Names that we do not know are kept and shown, and change nothing, unless they seem to
ask for GPUs: whoever gets none for ``gpu=2`` notices it hours later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from hpcmesos.errors import InvalidValue
from hpcmesos.model import Chunk, Placement, Request
from hpcmesos.pbs.quoting import split_list
from hpcmesos.pbs.signals import parse_warning
from hpcmesos.units import format_duration, parse_duration, parse_size

_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_DECIMAL = re.compile(r"\d{0,9}\.\d{1,9}|\d{1,9}\.", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_PLAIN_SIZE = re.compile(r"\d+[kmgt]b", re.ASCII)
_MAX_VALUE_LENGTH = 64  # of a duration or size: Python refuses to read numbers of thousands of digits
_MAX_SECONDS = 2**31 - 1
_MAX_BYTES = 2**63 - 1

_GPU_MODES = frozenset(
    {"exclusive", "exclusive_thread", "exclusive_process", "default", "shared", "reseterr"}
)
_KEPT_IN_NODES = frozenset({"mics", "tpn", "vmem", "pmem", "cpp", "naccesspolicy"})
_GPU_NAMES = ("gpus", "ngpus")
_LIKE_GPUS = re.compile(r"gpu", re.IGNORECASE)
_FIRST_NUMBER = re.compile(r"\d{1,3}", re.ASCII)
SHAPES = frozenset({"select", "nodes", "procs", "ncpus", "gpus", "ngpus", "place"})
"""Resources that say how a job lies on nodes."""
_ALTERNATIVES = ("select", "nodes", "procs", "ncpus")  # of these, the job's shape


@dataclass(frozen=True, slots=True)
class Resources:
    """A request, its display (alphabetical, as Torque shows it), and the site extension ``-l wd``."""

    request: Request
    display: Mapping[str, str]
    submit_directory: bool = False  # -l wd: the job starts where qsub was called


def collect(values: Iterable[str]) -> dict[str, str]:
    """All ``NAME=VALUE`` of several ``-l`` in order of precedence: for the same name the first one counts.

    Raises:
        InvalidValue: for a name without a value (but ``wd``), and for quotes that are not closed.
    """
    found: dict[str, str] = {}
    for value in values:
        for piece in split_list(value):
            name, equals, text = (part.strip() for part in piece.partition("="))
            if not _WORD.fullmatch(name) or (not equals and name != "wd"):
                raise InvalidValue(f"illegal -l value '{piece}'; write NAME=VALUE, e.g. walltime=01:00:00")
            found.setdefault(name, text)
    return found


def build(resources: Mapping[str, str]) -> Resources:
    """The request of the collected resources; nothing asked is one CPU on one node.

    Raises:
        InvalidValue: for malformed values, fractions of GPUs, and shapes that exclude each other.
    """
    return _build(tuple(resources.items()))


@lru_cache(maxsize=256)  # of thousands of jobs that are submitted at once most ask for the same
def _build(items: tuple[tuple[str, str], ...]) -> Resources:
    resources = dict(items)
    _refuse_other_gpus(resources)
    chunks, placement = _shape(resources)
    chunks = _spread_gpus(chunks, resources)
    chunks = _spread_memory(chunks, resources)
    walltime = _walltime(resources.get("walltime", ""))
    if (warning := resources.get("signal")) is not None:
        _, ahead = parse_warning(warning)
        if walltime is not None and ahead >= walltime:
            raise InvalidValue(
                f"signal={warning}: a walltime of {format_duration(walltime)} is too short for it"
            )
    request = Request(chunks, placement, walltime)
    return Resources(request, MappingProxyType(_display(resources, request)), "wd" in resources)


def _refuse_other_gpus(values: Mapping[str, str], whole: str = "") -> None:
    """``gpu=2``, ``gres=gpu:2``, ``num_gpus=2``: nobody would give them."""
    for name, value in values.items():
        asks = _LIKE_GPUS.search(value if name == "gres" else name)
        if asks and name not in _GPU_NAMES and value.lower() != "true":
            number = _FIRST_NUMBER.search(value)
            nearest = f"gpus={int(number[0]) if number else 1}"
            words = f"{name}={value}"[:60]
            raise InvalidValue(
                f"{whole}{words}: GPUs are asked for by gpus=; the nearest valid form is {nearest}"
            )


def _shape(resources: Mapping[str, str]) -> tuple[tuple[Chunk, ...], Placement]:
    if "nodes" in resources and "procs" in resources:
        raise InvalidValue("nodes= and procs= exclude each other; ask for one of them")
    if "select" in resources:
        others = [name for name in ("nodes", "procs", "ncpus") if name in resources]
        if others:
            raise InvalidValue(f"select= and {others[0]}= exclude each other; ask for one of them")
        return _select(resources["select"]), _placement(resources.get("place", "free"))
    if "nodes" in resources:
        return _nodes(resources["nodes"], resources.get("ncpus")), Placement.SCATTER
    if "procs" in resources:
        return (Chunk(count=_count("procs", resources["procs"])),), Placement.FREE
    cpus = _count("ncpus", resources.get("ncpus", "1"), least=0)
    return (Chunk(cpus=cpus),), _placement(resources.get("place", "scatter"))


def _nodes(text: str, ncpus: str | None) -> tuple[Chunk, ...]:
    """``N|HOST[:ppn=P][:gpus=G[:mode]][:mem=SIZE][:feature...][+...][#policy]``."""
    pieces = text.partition("#")[0].split("+")
    chunks = tuple(_nodes_piece(piece.strip(), text) for piece in pieces)
    if ncpus is None or "ppn=" in text:
        return chunks
    each = math.ceil(_count("ncpus", ncpus, least=0) / sum(chunk.count for chunk in chunks))
    return tuple(replace(chunk, cpus=max(each, chunk.cpus)) for chunk in chunks)


def _nodes_piece(piece: str, whole: str) -> Chunk:
    first, *tokens = piece.split(":")
    named = {"count": _count("nodes", first)} if first[:1].isdigit() and first.isdigit() else {}
    if not named and ("=" in first or not _WORD.fullmatch(first)):
        if _DECIMAL.fullmatch(first):
            _count("nodes", first)
        raise InvalidValue(f"nodes={whole}: '{first}' is neither a count nor the name of a node")
    known = {"ppn", "mem", "host", *_GPU_NAMES}
    values, features = _tokens(tokens, f"nodes={whole}", known, _KEPT_IN_NODES)
    gpus = _gpus(values)
    if gpus is not None:
        features = tuple(word for word in features if word not in _GPU_MODES)
    ppn = _count("ppn", values["ppn"]) if "ppn" in values else None
    return Chunk(
        count=named.get("count", 1),
        cpus=ppn or 1,
        gpus=gpus or 0,
        mem=_size("mem", values["mem"]) if "mem" in values else 0,
        slots=ppn or gpus or 1,
        features=features,
        host=values.get("host") if named else first,
    )


def _select(text: str) -> tuple[Chunk, ...]:
    """``[N:]chunk[+...]``, a chunk being ``NAME=VALUE:...``; one rank a chunk unless mpiprocs says else."""
    return tuple(_select_piece(piece.strip(), text) for piece in text.split("+"))


def _select_piece(piece: str, whole: str) -> Chunk:
    first, *others = piece.split(":")
    count = 1 if "=" in first else _count("select", first)
    tokens = [first, *others] if "=" in first else others
    known = {"ncpus", "mpiprocs", "mem", "host", "vnode", *_GPU_NAMES}
    values, words = _tokens(tokens, f"select={whole}", known, None)
    if words:
        raise InvalidValue(f"select={whole}: '{words[0]}' lacks a value; write {words[0]}=VALUE")
    _refuse_other_gpus(values, f"select={whole}: ")
    flags = tuple(name for name, value in values.items() if name not in known and value.lower() == "true")
    return Chunk(
        count=count,
        cpus=_count("ncpus", values.get("ncpus", "1"), least=0),
        gpus=_gpus(values) or 0,
        mem=_size("mem", values["mem"]) if "mem" in values else 0,
        slots=_count("mpiprocs", values.get("mpiprocs", "1")),
        features=flags,
        host=values.get("host", values.get("vnode")),
    )


def _tokens(
    tokens: Iterable[str], whole: str, known: set[str], kept: frozenset[str] | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """``NAME=VALUE`` tokens as a mapping and the bare words; ``kept`` None lets any name pass."""
    values: dict[str, str] = {}
    words: list[str] = []
    for token in tokens:
        name, equals, value = (part.strip() for part in token.partition("="))
        if name.startswith("^"):
            raise InvalidValue(f"{whole}: '{token}': features cannot be excluded; name those that are wanted")
        if not _WORD.fullmatch(name):
            raise InvalidValue(f"{whole}: '{token}' is neither NAME=VALUE nor a feature")
        if not equals:
            words.append(name)
        elif kept is not None and name not in known and name not in kept:
            raise InvalidValue(f"{whole}: unknown '{name}'; known are {', '.join(sorted(known))}")
        elif name in values:
            raise InvalidValue(f"{whole}: '{name}' is given twice")
        else:
            values[name] = value
    return values, tuple(words)


def _placement(text: str) -> Placement:
    arrangements = {"free", "pack", "scatter", "vscatter"}
    sharings = {"shared", "excl", "exclhost"}
    words = [word.strip() for word in text.split(":")]
    for word in words:
        if word not in arrangements and word not in sharings and not word.startswith("group="):
            raise InvalidValue(
                f"place={text}: '{word}' is none of free, pack, scatter, vscatter, shared, excl, group="
            )
    arrangement = next((word for word in words if word in arrangements), "free").removeprefix("v")
    return Placement(arrangement)


def _gpus(values: Mapping[str, str]) -> int | None:
    name = next((name for name in _GPU_NAMES if name in values), None)
    return None if name is None else _count(name, values[name], least=0)


def _spread_gpus(chunks: tuple[Chunk, ...], resources: Mapping[str, str]) -> tuple[Chunk, ...]:
    """A ``gpus=`` of its own is the job's total: it is dealt out evenly, as whole GPUs."""
    total = _gpus(resources)
    if not total:
        return chunks
    if any(chunk.gpus for chunk in chunks):
        raise InvalidValue("GPUs are asked for twice: for each node and for the job; drop one of them")
    pieces = sum(chunk.count for chunk in chunks)
    each, rest = divmod(total, pieces)
    if rest:
        nearest = (each + 1) * pieces
        raise InvalidValue(
            f"gpus={total} do not divide among {pieces}; the nearest valid form is gpus={nearest}"
        )
    asked = "ppn=" in resources.get("nodes", "") or not {"select", "procs", "ncpus"}.isdisjoint(resources)
    return tuple(replace(chunk, gpus=each, slots=chunk.slots if asked else each) for chunk in chunks)


def _spread_memory(chunks: tuple[Chunk, ...], resources: Mapping[str, str]) -> tuple[Chunk, ...]:
    """``mem`` is for the job and dealt out evenly, rounded up; ``pmem`` is for each rank; the larger one counts."""
    pieces = sum(chunk.count for chunk in chunks)
    share = math.ceil(_size("mem", resources["mem"]) / pieces) if resources.get("mem") else 0
    per_rank = _size("pmem", resources["pmem"]) if resources.get("pmem") else 0
    return tuple(
        chunk if chunk.mem else replace(chunk, mem=max(share, per_rank * chunk.slots)) for chunk in chunks
    )


def _walltime(text: str) -> int | None:
    """Seconds; of Torque's ``MIN-MAX`` the longer; an empty value is no limit."""
    if not text:
        return None
    if len(text) > _MAX_VALUE_LENGTH:
        raise InvalidValue(f"walltime={text[:20]}... is no duration; write seconds or [[DD:]HH:]MM:SS")
    try:
        seconds = max(parse_duration(part) for part in text.split("-", 1))
    except InvalidValue:
        raise InvalidValue(
            f"walltime={text} is no duration; write seconds or [[DD:]HH:]MM:SS, e.g. 01:30:00"
        ) from None
    if seconds > _MAX_SECONDS:
        raise InvalidValue(f"walltime={text} is too long; at most {_MAX_SECONDS} seconds")
    return seconds


def _size(name: str, text: str) -> int:
    if len(text) > _MAX_VALUE_LENGTH or not text.isascii():
        raise InvalidValue(f"{name}={text[:20]} is no size; write an integer with kb, mb, gb or tb, e.g. 4gb")
    try:
        size = parse_size(text)
    except InvalidValue as error:
        raise InvalidValue(f"{name}: {error}") from None
    if size > _MAX_BYTES:
        raise InvalidValue(f"{name}={text} is more than any machine has")
    return size


def _count(name: str, text: str, *, least: int = 1) -> int:
    if _DECIMAL.fullmatch(text):
        nearest = max(1, math.ceil(float(text)))
        kind = "whole GPUs only" if name in _GPU_NAMES else "whole numbers only"
        raise InvalidValue(f"{name}={text}: {kind}; the nearest valid form is {name}={nearest}")
    if not _COUNT.fullmatch(text):
        raise InvalidValue(
            f"{name}={text[:40]}: '{text[:40]}' is no count; write a whole number, e.g. {name}=1"
        )
    if int(text) < least:
        raise InvalidValue(f"{name}={text}: at least {least} is needed")
    return int(text)


def _display(resources: Mapping[str, str], request: Request) -> dict[str, str]:
    """The user's words plus what clients always look for: ncpus, nodect and, where no shape was asked, nodes."""
    shown = {name: value for name, value in resources.items() if name != "wd" and value}
    if not any(name in shown for name in _ALTERNATIVES):
        shown["nodes"] = "1"
    shown["ncpus"] = str(request.cpus)
    shown["nodect"] = "1" if "procs" in shown else str(request.pieces)
    if request.walltime is not None:
        shown["walltime"] = format_duration(request.walltime)
    for name in ("mem", "pmem"):
        if name in shown:
            shown[name] = _shown_size(name, shown[name])
    return dict(sorted(shown.items()))


def _shown_size(name: str, text: str) -> str:
    """As written where it is ``Nkb``, ``Nmb``, ``Ngb`` or ``Ntb``; else in kilobytes, rounded up."""
    lower = text.strip().lower()
    return lower if _PLAIN_SIZE.fullmatch(lower) else f"{math.ceil(_size(name, text) / 1024)}kb"
