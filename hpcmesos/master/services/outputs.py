"""Output on its way: from the node to the log store, from there to the gateway of the host where it belongs."""

from __future__ import annotations

import asyncio
import os
import posixpath
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import msgspec

from hpcmesos.api_schema import Delivery, OutputReply
from hpcmesos.errors import InvalidValue, Unauthorized, UnknownJob
from hpcmesos.master.auth import USER_NAME, Caller
from hpcmesos.master.peercred import Peer
from hpcmesos.master.services import output_paths, shepherds
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.wait import Pace, in_thread
from hpcmesos.model import AttemptId, JobId, Role
from hpcmesos.pbs.paths import PathTemplate
from hpcmesos.queue.deliveries import DeliveryRecord
from hpcmesos.queue.records import JobRecord

_CHUNK = 65536
_ALIVE = 45.0  # seconds since a gateway asked last; it asks each 20
_BACKLOG = 50  # deliveries, some for each of a gateway's threads
_LONGEST_WAIT = 20.0
_DEFAULT_UMASK = 0o077


def vouch(caller: Caller, peer: Peer, user: str) -> None:
    """From now on the connection is of ``user``, on the word of the gateway at its other end.

    Raises:
        Unauthorized: the caller is no gateway that asks for itself. InvalidValue: no user's name.
    """
    if caller.gateway is None:
        raise Unauthorized("only gateways vouch for users, once for each connection")
    if not USER_NAME.fullmatch(user):
        raise InvalidValue(f"'{ascii(user[:40])[1:-1]}' is no user name")
    peer.vouched.append(user)
    peer.reckon(user)


def gateways_of(site: Site, templates: Mapping[str, PathTemplate], submit_host: str) -> dict[str, str]:
    """By stream: the gateway that is to write it, for the output that nodes cannot write at its place themselves."""
    known = site.gateways.recent()
    if not known:
        return {}
    found = {}
    for stream, template in templates.items():
        gateway = next((name for name in known if _same_host(name, template.host)), None)
        here = _same_host(template.host, submit_host)
        if gateway and not (here and output_paths.in_sight(template, site.settings.shared_paths)):
            found[stream] = gateway
    return found


def _same_host(one: str, other: str) -> bool:
    """Names with and without a domain may be of one host; two domains differ."""
    first, second = one.lower().partition("."), other.lower().partition(".")
    return first[0] == second[0] and (not first[2] or not second[2] or first[2] == second[2])


def take(
    site: Site, caller: Caller, attempt: str, stream: str, where: tuple[int, int], data: bytes
) -> OutputReply:
    """A piece of what an attempt has written, from the node that ran its script. ``where``: its offset, and the whole.

    Raises:
        Unauthorized: another caller. UnknownJob: no such attempt. InvalidValue, LogStoreUnavailable.
    """
    job, number = _attempt(site, attempt)
    if not (caller.local and caller.role is Role.MANAGER):
        head = shepherds.head_of(site, job, number)
        if head is None or caller.node != head.name:
            raise Unauthorized("only the node that ran the attempt sends its output")
    offset, total = where
    have = site.logs.take(attempt, stream, offset, data, total)
    if have < total:
        return OutputReply(have=have)
    if (record := _delivery(site, job, attempt, number, stream, total)) is None:
        return OutputReply(have=have)
    site.store.deliveries.add(record)
    outcome = site.store.deliveries.outcome(attempt, stream)
    return OutputReply(
        have=have,
        gateway=record.gateway,
        path=record.path,
        pending=outcome is None,
        trouble=outcome or "",
    )


async def settled(site: Site, reply: OutputReply, attempt: str, stream: str, seconds: float) -> OutputReply:
    """``reply`` once the gateway has done its part, or after some seconds.

    At once while it does not listen or has much to do: the end of a job need not wait for that.
    """
    deadline, pace = time.monotonic() + min(seconds, _LONGEST_WAIT), Pace()
    if not reply.pending:
        return reply
    if not await in_thread(site.store.deliveries.prompt, reply.gateway, _ALIVE, _BACKLOG):
        return msgspec.structs.replace(reply, soon=False)
    while (left := deadline - time.monotonic()) > 0:
        outcome = await in_thread(site.store.deliveries.outcome, attempt, stream)
        if outcome is not None:
            return msgspec.structs.replace(reply, pending=False, trouble=outcome)
        await pace.pause(left)
    return reply


async def waiting(site: Site, caller: Caller, timeout: float) -> list[Delivery]:
    """What the gateway that asks has to write; at once if there is something, else after ``timeout`` seconds at most.

    Raises:
        Unauthorized: the caller is no gateway.
    """
    gateway = _gateway(caller)
    deadline, pace = time.monotonic() + min(timeout, _LONGEST_WAIT), Pace()
    await in_thread(site.store.deliveries.seen, gateway)
    while True:
        found = await in_thread(site.store.deliveries.waiting, gateway)
        left = deadline - time.monotonic()
        if found or left <= 0:
            return [_as_told(one) for one in found]
        await pace.pause(left)


async def content(site: Site, caller: Caller, attempt: str, stream: str) -> AsyncIterator[bytes]:
    """The whole stream, for the gateway that has to write it.

    Raises:
        Unauthorized: it is not this caller's to write. UnknownJob: this master does not have it.
    """
    gateway = _gateway(caller)
    if not await in_thread(site.store.deliveries.waits, gateway, attempt, stream):
        raise Unauthorized(f"{stream} of {attempt[:40]} is not for gateway {gateway} to write")
    fd = await in_thread(site.logs.open, attempt, stream)
    if fd is None:
        raise UnknownJob(f"the log store has no {stream} of {attempt}")
    return _chunks(fd)


async def _chunks(fd: int) -> AsyncIterator[bytes]:
    try:
        while chunk := await in_thread(os.read, fd, _CHUNK):
            yield chunk
    finally:
        await asyncio.shield(in_thread(os.close, fd))


def finish(site: Site, caller: Caller, attempt: str, stream: str, trouble: str) -> None:
    """The gateway has written it, or says why it cannot.

    Raises:
        Unauthorized: it is not this caller's to write.
    """
    gateway = _gateway(caller)
    if not site.store.deliveries.finish(gateway, attempt, stream, trouble.replace("\0", "?")):
        raise Unauthorized(f"{stream} of {attempt[:40]} is not for gateway {gateway} to write")
    if not trouble:
        site.logs.delivered(attempt, stream)


def _gateway(caller: Caller) -> str:
    if caller.gateway is None:
        raise Unauthorized("only gateways write what is delivered")
    return caller.gateway


def _attempt(site: Site, attempt: str) -> tuple[JobRecord, int]:
    parsed = AttemptId.parse(attempt)
    job = site.store.job(parsed.job.seq, parsed.job.index)
    if (
        job is None
        or not 1 <= parsed.number <= job.attempt
        or shepherds.attempt_id(job, parsed.number) != attempt
    ):
        raise UnknownJob(f"Unknown attempt {attempt[:60]}")
    return job, parsed.number


def _delivery(
    site: Site, job: JobRecord, attempt: str, number: int, stream: str, size: int
) -> DeliveryRecord | None:
    """What the job's gateway has to do with a stream; None: nothing, no gateway is asked for it."""
    gateway = job.submission.get("gateways", {}).get(stream)
    if not gateway:
        return None
    job_id = JobId(job.seq, job.server, job.index)
    paths = dict(
        zip(output_paths.STREAMS, output_paths.final_paths(job.submission, job_id, job.name), strict=True)
    )
    path = paths[stream]
    if not path or not path.startswith("/"):
        return None
    template = PathTemplate(**job.submission[output_paths.STREAMS[stream]])
    default = replace(template, path=None).render(str(job_id), job.seq, job.index, job.name)
    return DeliveryRecord(
        attempt=attempt,
        stream=stream,
        gateway=gateway,
        owner=job.owner,
        path=path,
        name=posixpath.basename(default),
        umask=job.submission.get("umask", _DEFAULT_UMASK),
        append=number > 1,
        size=size,
    )


def _as_told(one: DeliveryRecord) -> Delivery:
    return Delivery(
        attempt=one.attempt,
        stream=one.stream,
        owner=one.owner,
        path=one.path,
        name=one.name,
        umask=one.umask,
        append=one.append,
        size=one.size,
    )
