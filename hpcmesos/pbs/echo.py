"""``qsub --dry-run``: what was understood of a request, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hpcmesos.gang.words import counted
from hpcmesos.model import Chunk, Placement
from hpcmesos.pbs.submission import Submission
from hpcmesos.units import format_duration, format_size

_PLACES = {
    Placement.SCATTER: "each on a node of its own",
    Placement.PACK: "all on one node",
    Placement.FREE: "wherever they fit",
}


def understood(built: Submission, queue: str) -> str:
    """One line for each thing that was asked for, explicitly or by default; the variables by name only."""
    return "".join(f"{name} = {value}\n" for name, value in _lines(built, queue))


def _lines(built: Submission, queue: str) -> Iterator[tuple[str, object]]:
    request = built.request
    yield "job", built.name
    yield "queue", queue
    for chunk in request.chunks:
        yield "chunk", _chunk(chunk)
    yield "placement", _PLACES.get(request.placement, request.placement)
    yield (
        "total",
        ", ".join(
            (
                counted(request.pieces, "piece"),
                counted(request.cpus, "CPU"),
                counted(_gpus(request.chunks), "GPU"),
            )
        ),
    )
    yield "walltime", "none" if request.walltime is None else format_duration(request.walltime)
    if request.framework:
        yield "framework", request.framework
    if built.image:
        yield "image", built.image
    if request.constraints:
        yield "constraints", ", ".join(map(str, request.constraints))
    if built.array is not None:
        yield "array", f"{built.array} ({built.array.size} elements)"
    if built.dependencies:
        yield "depend", ",".join(map(str, built.dependencies))
    if built.hold:
        yield "hold", "user"
    if built.not_before is not None:
        yield "not before", f"{built.not_before:%Y-%m-%d %H:%M:%S %Z}"
    yield "starts in", built.workdir or "the home directory"
    yield "run by", " ".join(built.argv) if built.argv else built.shell or "the login shell"
    for stream, template in (("output", built.stdout_path), ("error", built.stderr_path)):
        yield stream, f"{template.host}:{template.path or template.directory + '/'}"
    if built.join != "n":
        yield "joined", built.join
    yield "priority", built.priority
    yield "rerunable", "yes" if built.rerunable else "no"
    yield "variables", ", ".join(sorted(built.environment))


def _chunk(chunk: Chunk) -> str:
    words = [counted(chunk.cpus, "CPU"), counted(chunk.gpus, "GPU"), counted(chunk.slots, "slot")]
    if chunk.mem:
        words.append(f"{format_size(chunk.mem)} memory")
    words += [f"feature {feature}" for feature in chunk.features]
    if chunk.host:
        words.append(f"on host {chunk.host}")
    return f"{chunk.count} x {{{', '.join(words)}}}"


def _gpus(chunks: tuple[Chunk, ...]) -> int:
    return sum(chunk.count * chunk.gpus for chunk in chunks)
