"""The site's prolog: runs on every node of an attempt, as the shepherd's user, before anything of the job does."""

from __future__ import annotations

import os

from hpcmesos.launch import helper
from hpcmesos.launch.settings import Refusal
from hpcmesos.launch.workspace import Workspace

_LONGEST = 500
"""Characters of its last line that are told."""


async def run(workspace: Workspace) -> None:
    """As Slurm's Prolog: a node on which it fails is not fit for the job.

    Raises:
        Refusal: it returned something else than 0, or has not ended in time.
    """
    config, spec = workspace.services.config, workspace.spec
    assert config.prolog
    gpus = spec["members"][spec["me"]]["gpus"]
    environ = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "PBS_JOBID": spec["job"],
        "PBS_JOBNAME": spec["name"],
        "PBS_QUEUE": spec["queue"],
        "HPCMESOS_ATTEMPT": workspace.id,
        "HPCMESOS_NODE": config.node,
        "HPCMESOS_GPUS": ",".join(gpu["uuid"] for gpu in gpus),
        "HPCMESOS_OWNER": workspace.owner.name,
        "HPCMESOS_NODES": ",".join(member["node"] for member in spec["members"]),
    }
    words = [config.prolog]
    try:
        status, output = await helper.run(workspace.services.children, words, environ, config.prolog_timeout)
    except TimeoutError:
        raise Refusal(f"the prolog has not ended within {config.prolog_timeout:g} s") from None
    except OSError as error:
        raise Refusal(f"the prolog cannot be started: {error.strerror}") from error
    if status:
        code = os.waitstatus_to_exitcode(status)
        how = f"exited with {code}" if code >= 0 else f"was killed by signal {-code}"
        said = output.decode(errors="replace").strip().rpartition("\n")[2][:_LONGEST]
        raise Refusal(f"the prolog {how}{': ' if said else ''}{said}")
