"""The spec of an attempt that every member gets with PREPARE (docs/architecture.md). Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hpcmesos.config import MasterSettings
from hpcmesos.master.services.output_paths import STREAMS, final_paths
from hpcmesos.model import AttemptId, JobId, Request
from hpcmesos.pbs.personalities import Personality, element_name
from hpcmesos.pbs.signals import parse_warning
from hpcmesos.pbs.staging import STAGINGS, Transfer, parse_staging
from hpcmesos.queue.records import JobRecord, NodeRecord, ShareRecord

_LOG_LINE = 4096  # bytes, more than the line that says how much is left out of a stream
_SUBMITTED: Mapping[str, Any] = {
    "environment": {},
    "gpubind": "rank",
    "ring": None,
    "mps": False,
    "image": None,
    "image_pull": None,
    "image_secret": None,
    "workdir": None,
    "umask": 0o022,
    "shell": None,
    "argv": None,
    "script_args": [],
    "join": "n",
    "interactive": False,
    "x11": False,
    "secrets": [],
}
"""Keys that the submission has under the same name, and what holds when it lacks them."""


def build_spec(
    job: JobRecord,
    members: Sequence[tuple[ShareRecord, NodeRecord]],
    script: bytes | None,
    settings: MasterSettings,
    *,
    ring_demanded: bool = False,
    log_limit: int | None = None,
) -> dict[str, Any]:
    """The spec of the job's last attempt but for ``me``, in which members differ; ``members`` head first.

    ``ring_demanded``: by the job's queue, whatever the job itself says of a ring. ``log_limit``: bytes that stay of a
    stream that lies on the node alone, by the job's queue; the settings' is the most, for the log store takes no more.
    """
    common = common_part(job, script, settings, ring_demanded=ring_demanded, log_limit=log_limit)
    return common | own_part(job, members, settings)


def common_part(
    job: JobRecord,
    script: bytes | None,
    settings: MasterSettings,
    *,
    ring_demanded: bool = False,
    log_limit: int | None = None,
) -> dict[str, Any]:
    """What the specs of all attempts of all elements have in common, as long as the job itself does not change."""
    submission = job.submission
    submitted = {key: submission.get(key, default) for key, default in _SUBMITTED.items()}
    if job.request.framework and "gpubind" not in submission:
        submitted["gpubind"] = "none"  # a framework's tasks are told which GPUs are theirs
    contained = submitted["image"] is not None
    of_site = settings.log_stream_mib * 1024 * 1024
    if ring_demanded and not contained:  # the ring's program is the host's
        submitted["ring"] = "check"
    return submitted | {
        "queue": job.queue,
        "server": job.server,
        "owner": job.owner,
        "submit_host": job.submit_host,
        "walltime": job.request.walltime,
        "silence": job.request.silence,
        "warning": _warning(job),
        "kill_delay": settings.kill_delay,
        "log_limit": min(of_site, of_site if log_limit is None else log_limit) - _LOG_LINE,
        "prepare_timeout": prepare_timeout(job.request, settings),
        "framework": job.request.framework or None,
        "mpi_network": settings.mpi_network or None,
        "job_path": [] if contained else list(settings.job_path),
        "names_resolve": False,
        "script": None if script is None else base64.b64encode(script).decode(),
        **_for_scripts(job),
    }


def own_part(
    job: JobRecord, members: Sequence[tuple[ShareRecord, NodeRecord]], settings: MasterSettings
) -> dict[str, Any]:
    """What of the spec is the attempt's own."""
    job_id = JobId(job.seq, job.server, job.index)
    paths = dict(zip(STREAMS, final_paths(job.submission, job_id, job.name), strict=True))
    delivered = [s for s in job.submission.get("gateways", {}) if (paths[s] or "").startswith("/")]
    paths |= dict.fromkeys(delivered)  # into the spool: a gateway writes it at its place
    return {
        "attempt": str(AttemptId(job_id, job.attempt)),
        "job": str(job_id),
        "number": job.attempt,
        "index": job.index,
        "name": _name(job),
        "go": len(members) == 1,
        "members": [_member(share, node) for share, node in members],
        **paths,
        "delivered": delivered,
        **_staged(job, settings),
    }


def prepare_timeout(request: Request, settings: MasterSettings) -> float:
    """Seconds that the nodes of such a job have to get ready."""
    return (
        max(settings.image_timeout, settings.prepare_timeout)
        if request.contained
        else settings.prepare_timeout
    )


def _warning(job: JobRecord) -> list[int] | None:
    """``-l signal=``: the signal's number, and seconds before the end of the walltime."""
    asked = (job.submission.get("resource_list") or {}).get("signal")
    return list(parse_warning(asked)) if asked else None


def _for_scripts(job: JobRecord) -> dict[str, Any]:
    """What prologue and epilogue are told beside the rest; nothing that is not set."""
    submission = job.submission
    given = {name: submission.get(name) for name in ("account", "resource_list")} | {"group": job.egroup}
    given["prologue"] = submission.get("extra", {}).get("prologue")
    return {name: value for name, value in given.items() if value}


def _staged(job: JobRecord, settings: MasterSettings) -> dict[str, Any]:
    """Files to stage, if any."""
    asked = job.submission.get("extra", {})
    return {
        name: [_transfer(one, job, settings) for one in parse_staging(name, asked[name])]
        for name in STAGINGS
        if asked.get(name)
    }


def _transfer(transfer: Transfer, job: JobRecord, settings: MasterSettings) -> dict[str, str | None]:
    """``host`` None: nodes see that path as the submit host does (``shared_paths``)."""
    one = transfer.of_element(job.index)
    here = one.host == "localhost" or one.host.partition(".")[0] == job.submit_host.partition(".")[0]
    shared = any(PurePosixPath(one.remote).is_relative_to(tree) for tree in settings.shared_paths)
    return {"local": one.local, "host": None if here and shared else one.host, "remote": one.remote}


def _name(job: JobRecord) -> str:
    """Torque names elements of arrays by their index, too."""
    family = Personality(job.submission.get("personality", Personality.TORQUE))
    return element_name(job.name, job.index, family)


def _member(share: ShareRecord, node: NodeRecord) -> dict[str, Any]:
    known = {gpu.uuid: gpu for gpu in node.gpus} if share.gpus else {}
    return {
        "node": share.node,
        "address": node.address,
        "peer_port": node.peer_port,
        "cpus": share.cpus,
        "mem": share.mem,
        "slots": share.slots,
        "ports": list(share.ports),
        "gpus": [
            {"uuid": g.uuid, "index": g.index, "model": g.model, "simulated": g.simulated}
            for g in (known[uuid] for uuid in share.gpus)
        ],
    }
