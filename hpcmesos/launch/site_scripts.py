"""Prologue and epilogue: what a site, or a job's owner, has run on the nodes before and after a job.

Names, arguments and exit codes are those of Torque (T:src/resmom/prolog.c). In the directory of the site's scripts:

    prologue, epilogue              on the head, as root
    prologue.parallel, ...          on every other node, as root
    prologue.user.parallel, ...     on every other node, as the job's owner, after that
    prologue.NAME, epilogue.NAME    on the head, as root, after the plain one, for jobs of ``qsub -T NAME``
    prologue.user, epilogue.user    on the head, as the job's owner

and ``-l prologue=PATH``, ``-l epilogue=PATH`` on the head, as the owner. All are over before the script begins, or
begin when all its processes are gone. Whoever runs the shepherd has to own the site's scripts, and nobody else may
write them.
"""

from __future__ import annotations

import asyncio
import grp
import os
import signal
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpcmesos.gang import mpi
from hpcmesos.launch import streams
from hpcmesos.launch.container import TEMPORARY, PrivateTmp
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Launch, Report, read_report
from hpcmesos.launch.workspace import Workspace

ABORT = 1
"""Exit code by which a prologue refuses the job for good; any other but 0 means: run it again, elsewhere."""
NOT_SAFE, NO_END, TIMED_OUT = -1, -3, -4
"""Torque's codes for a script that others may write, one that was interrupted, and one that took too long."""

_UNKILLABLE = 10.0
"""Seconds that the end of a killed script is waited for."""
_STAGING = 3600.0
"""Seconds that one transfer of a file may take."""
_LARGEST = 64 * 1024
"""Bytes of each stream that are kept."""
_LAST_WORDS = 0.5
"""Seconds for output once a script has ended: what it left behind may hold its pipes."""
_PASSED_ON = (
    "PBS_NUM_NODES",
    "PBS_NUM_PPN",
    "PBS_NP",
    "PBS_NODEFILE",
    "PBS_NODENUM",
    "PBS_GPUFILE",
    "TMPDIR",
)
_UMASK = 0o022


@dataclass(slots=True)
class Result:
    """How one script ended. ``code``: its exit code, 128 + N after signal N, or one of ours below 0."""

    name: str
    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    trouble: str = ""
    staging: bool = False  # no script, but a file that comes or goes
    told: bool = False  # ``name`` is all that there is to say

    def __str__(self) -> str:
        if self.told:
            return self.name
        last = self.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        return f"{self.name}: {self.trouble or f'exit code {self.code}'}{f': {last}' if last else ''}"


class Scripts:
    """Those of one attempt on this node."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._directory: str = workspace.services.config.site_scripts
        self._limit: float = workspace.services.config.site_script_timeout
        self._pid = 0
        self._stopped = False
        self.begun = False
        """Whether a prologue was begun, or the script was: then there is an epilogue."""

    def wanted(self, kind: str) -> bool:
        """Whether this node has anything to run; ``kind``: prologue or epilogue."""
        return bool(self._chosen(kind) or self._transfers(kind))

    async def prologue(self) -> list[Result]:
        """All in their order, up to the first that does not end with 0."""
        self.begun = True
        results = []
        for path, as_owner in self._chosen("prologue"):
            results.append(await self._run(path, self._prologue_arguments(), as_owner=as_owner))
            if results[-1].code:
                return results
        for transfer in self._transfers("prologue"):
            results.append(await self._stage("stagein", transfer))
            if results[-1].code:
                break
        return results

    async def epilogue(self, exit_status: int, usage: dict[str, Any], *, lost: bool) -> list[Result]:
        """All in their order; their codes change nothing.

        ``lost``: the gang has lost a node, so the job may run again elsewhere by now: nothing of its owner's runs, and
        no file goes out that the next attempt writes.
        """
        self._stopped = False
        arguments = self._epilogue_arguments(exit_status, usage)
        results = []
        for path, as_owner in self._chosen("epilogue"):
            if not (as_owner and lost):
                results.append(await self._run(path, arguments, as_owner=as_owner))
        for transfer in self._transfers("epilogue") if usage["session"] and not lost else []:
            results.append(await self._stage("stageout", transfer))
        return results

    def stop(self) -> None:
        """What still runs is killed, and nothing more begins until an epilogue does."""
        self._stopped = True
        _kill(self._pid)

    def _ending(self) -> bool:
        return self._stopped

    # --- which --------------------------------------------------------------------------------------------------

    def _chosen(self, kind: str) -> list[tuple[str, bool]]:
        """Paths, each with whether it runs as the owner."""
        spec, found = self._workspace.spec, []
        if self._workspace.head:
            names = [(kind, False), (f"{kind}.user", True)]
            if suffix := spec.get("prologue"):
                names.insert(1, (f"{kind}.{suffix}", False))
        else:
            names = [(f"{kind}.parallel", False), (f"{kind}.user.parallel", True)]
        if self._directory and os.path.isdir(self._directory):
            paths = [(os.path.join(self._directory, name), as_owner) for name, as_owner in names]
            found = [(path, as_owner) for path, as_owner in paths if os.path.lexists(path)]
        own = spec.get("resource_list", {}).get(kind) if self._workspace.head else None
        if own:
            found.append((os.path.join(spec["workdir"] or self._workspace.owner.home, own), True))
        return found

    def _transfers(self, kind: str) -> list[dict[str, str | None]]:
        """Files that come before the script, or go after it: {local, host (None: seen from here), remote}."""
        name = "stagein" if kind == "prologue" else "stageout"
        return list(self._workspace.spec.get(name, ())) if self._workspace.head else []

    async def _stage(self, name: str, transfer: dict[str, str | None]) -> Result:
        """Copies as the owner, in his home; what lies on another host with scp.

        ``local`` is what the job means by it, ``remote`` what the host does, where /tmp is the job's own.
        """
        remote, host = transfer["remote"] or "", transfer["host"]
        local = in_private_tmp(self._workspace, transfer["local"] or "")
        far = f"{host}:{remote}" if host else remote
        ends = [far, local] if name == "stagein" else [local, far]
        words = ["scp", "-Brpq", "--"] if host else ["cp", "-rp", "--"]
        result = await self._execute([*words, *ends], self._workspace.owner, _STAGING, in_job=True)
        result.name, result.staging = f"{name} of {ends[0]}", True
        return result

    def _unsafe(self, path: str) -> str:
        """Why a script of the site must not be run; empty: it may."""
        try:
            status = os.stat(path)
        except OSError as error:
            return str(error.strerror)
        if not stat.S_ISREG(status.st_mode):
            return "it is no file"
        if status.st_uid != os.geteuid():
            return "its owner is not the one who runs the agent"
        if status.st_mode & 0o022:
            return "others may write it"
        return "" if status.st_mode & 0o100 else "it is not executable"

    # --- with what ----------------------------------------------------------------------------------------------

    def _common(self) -> list[str]:
        spec, owner = self._workspace.spec, self._workspace.owner
        return [spec["job"], owner.name, spec.get("group") or _group(owner.gid), spec["name"]]

    def _asked(self) -> str:
        asked = self._workspace.spec.get("resource_list", {})
        return ",".join(f"{name}={value}" for name, value in sorted(asked.items()))

    def _script(self) -> str:
        return os.path.join(self._workspace.paths.directory, "script")

    def _prologue_arguments(self) -> list[str]:
        spec = self._workspace.spec
        rest = [self._asked(), spec["queue"], spec.get("account") or "", self._script()]
        return [*self._common(), *rest]

    def _epilogue_arguments(self, exit_status: int, usage: dict[str, Any]) -> list[str]:
        spec = self._workspace.spec
        used = f"cput={_clock(usage['cput'])},mem={int(usage['mem']) // 1024}kb,walltime={_clock(usage['walltime'])}"
        rest = [spec["queue"], spec.get("account") or "", str(exit_status), self._script()]
        return [*self._common(), str(usage["session"]), self._asked(), used, *rest]

    def _environment(self, owner: Owner) -> dict[str, str]:
        workspace = self._workspace
        job = mpi.job_environment(workspace.spec, workspace.paths)
        asked = workspace.spec.get("resource_list", {})
        return {
            **owner.environment(),
            **{name: job[name] for name in _PASSED_ON if name in job},
            "PBS_RESOURCE_NODES": asked.get("nodes") or asked.get("select") or "1",
            "PBS_RESOURCE_GRES": asked.get("gres", ""),
            "PBS_MSHOST": workspace.spec["members"][0]["node"],
            "PBS_O_WORKDIR": workspace.spec["environment"].get("PBS_O_WORKDIR", ""),
            "HPCMESOS_GPUS": job["HPCMESOS_GPUS"],
        }

    # --- one ----------------------------------------------------------------------------------------------------

    async def _run(self, path: str, arguments: list[str], *, as_owner: bool) -> Result:
        name = os.path.basename(path)
        in_site = os.path.dirname(path) == self._directory
        if in_site and (why := self._unsafe(path)):
            return Result(name, NOT_SAFE, trouble=f"not run, for {why}")
        ours = (
            self._workspace.owner
            if as_owner
            else Owner("root", os.geteuid(), os.getegid(), (), "/", "", switch=False)
        )
        view = self._workspace.private_tmp if as_owner else None
        return await self._execute([path, *arguments], ours, self._limit, in_job=as_owner, view=view)

    async def _execute(
        self, argv: list[str], owner: Owner, limit: float, *, in_job: bool, view: PrivateTmp | None = None
    ) -> Result:
        name = os.path.basename(argv[0])
        if self._ending():
            return Result(name, NO_END, trouble="not run: the job ends")
        try:
            exited, report, outputs = self._start(argv, owner, in_job, view)
        except OSError as error:
            return Result(name, NO_END, trouble=f"cannot be started: {error.strerror}")
        pid, opened = self._pid, Report()
        reading = asyncio.gather(*(streams.read(fd, _LARGEST, first=True) for fd in outputs))
        in_time, _ = await asyncio.wait({exited}, timeout=limit)
        if not in_time:
            _kill(pid)
            await asyncio.wait({exited}, timeout=_UNKILLABLE)
        if self._pid == pid:  # else the next one runs already
            self._pid = 0
        if not exited.done():  # it hangs in the kernel; the job does not wait for that
            reading.cancel()
            report.close()
            return Result(name, TIMED_OUT, trouble=f"cannot be killed after {limit:g} s")
        status = os.waitstatus_to_exitcode(exited.result())
        read_report(report, opened)
        report.close()
        code, trouble = (status if status >= 0 else 128 - status), ""
        if not in_time:
            code, trouble = TIMED_OUT, f"killed after {limit:g} s"
        buffers = [b"", b""]
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                buffers = list(await reading)
        if self._ending() and code:
            code, trouble = NO_END, "interrupted"
        stdout, stderr = buffers
        return Result(name, code, stdout, stderr, opened.failure or trouble)

    def _start(
        self, argv: list[str], owner: Owner, in_job: bool, view: PrivateTmp | None
    ) -> tuple[Any, Any, list[int]]:
        """What tells of its end, what tells of its start, and the reading ends of its output."""
        workspace = self._workspace
        pipes = [os.pipe(), os.pipe()]
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        launch = Launch(
            program=argv[0],
            argv=argv,
            environ=self._environment(owner),
            directories=(owner.home, "/"),
            owner=owner,
            umask=_UMASK,
            # A site's script would count, and be killed, with the job.
            cgroups=workspace.enclosure.procs if in_job else (),
            stdio=(None, pipes[0][1], pipes[1][1]),
            view=view,
        )
        try:
            self._pid, report = workspace.services.children.spawn(
                launch, lambda status, usage: None if exited.done() else exited.set_result(status)
            )
        except OSError:
            for reading, _ in pipes:
                os.close(reading)
            raise
        finally:
            for _, writing in pipes:
                os.close(writing)
        return exited, report, [reading for reading, _ in pipes]


def joined(results: list[Result]) -> tuple[bytes, bytes]:
    """What they have written, stdout and stderr."""
    return b"".join(result.stdout for result in results), b"".join(result.stderr for result in results)


def in_private_tmp(workspace: Workspace, path: str) -> str:
    """Where the job's ``path``, absolute or below its owner's home, lies on the host."""
    if workspace.private_tmp:
        whole = os.path.normpath(os.path.join(workspace.owner.home, path))
        for place in TEMPORARY:
            if whole == place or whole.startswith(place + "/"):
                return workspace.private_tmp.directory + whole.removeprefix(place)
    return path


def _kill(pid: int) -> None:
    """The session of a script; 0: none runs."""
    if pid:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
