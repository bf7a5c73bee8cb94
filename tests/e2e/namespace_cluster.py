"""A cluster over hosts made of namespaces, and the MPI stacks with which its jobs are launched.

    with NamespaceCluster(["node1", "node2"]) as cluster:
        job = cluster.submit(MPICH.script("mpiexec hostname"), "-l", "nodes=2:ppn=4")

PostgreSQL runs on the machine itself, behind a unix socket; the master on the host "head", an agent on each other
host, joined over TLS with a one-time token. The hosts share files and processes: cgroups keep the nodes' attempts
apart. The commands work as with any embedded cluster.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpcmesos import api_schema, pidfile
from hpcmesos.agent import isolation
from hpcmesos.agent.control import stop_shepherd
from hpcmesos.cli import commands_dir
from hpcmesos.cli.daemons import write_settings
from hpcmesos.cli.embedded import Cluster
from hpcmesos.client import Client
from hpcmesos.config import AgentSettings, MasterSettings
from hpcmesos.errors import HpcmesosError
from hpcmesos.master import pki
from hpcmesos.queue import postgres
from hpcmesos.queue.records import AttemptRecord
from hpcmesos.queue.store import Store
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until
from tests.e2e.namespace_kit import Host, Hosts

ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parent
CPUS, MEMORY = 16, 8 * 1024**3
API_PORT = 15443
"""Fixed, for agents have it in their settings: a master that starts again has to be found there."""
PREPARE_TIMEOUT = 12.0
"""Seconds; above those of one try to reach a peer."""
LITTER = ("hydra_hwloc_xmlfile_", "prted.", "ompi.", "openmpi-sessions-", "(null).", "pmix")


@dataclass
class Job:
    """A job of ``NamespaceCluster.submit``, with its own working directory."""

    cluster: NamespaceCluster
    id: str
    directory: Path

    @property
    def status(self) -> api_schema.JobStatus:
        return self.cluster.api.job(self.id)

    def wait(self, timeout: float = 60) -> api_schema.JobStatus:
        """The status at the end of the job."""
        status = self.cluster.api.wait(self.id, timeout)
        assert status.state == "C", f"{status}\n{self.said}"
        return status

    def wait_file(self, name: str, timeout: float = 30) -> Path:
        """A file that its program makes."""
        path = self.directory / name

        def there() -> bool:
            status = self.status  # as it was before the file is looked for
            found = path.exists()
            assert found or status.state != "C", f"{name} is missing: {status}\n{self.said}"
            return found

        wait_until(path.exists if path.exists() else there, f"{name}; {self.said}", timeout)
        return path

    def read(self, kind: str) -> str:
        path = self.directory / f"STDIN.{kind}{self.id.split('.')[0]}"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def output(self) -> str:
        return self.read("o")

    @property
    def nodes(self) -> list[str]:
        return self.status.nodes

    @property
    def said(self) -> str:
        """Both streams, for a person."""
        return f"--- stdout\n{self.output}\n--- stderr\n{self.read('e')}"

    def attempts(self) -> list[AttemptRecord]:
        """As the database has them, with codes of ranks and steps."""
        store = Store(self.cluster.database_url, pool=1)
        try:
            found = store.attempts([int(self.id.split(".")[0])])
        finally:
            store.close()
        return sorted(found, key=lambda attempt: attempt.key.number)

    def processes(self, node: str = "") -> dict[int, list[str]]:
        """Living processes of the job, on one node or all, by pid, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environ = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue
            on_node = not node or f"HPCMESOS_NODE={node}" in environ
            ours = any(word.startswith(f"HPCMESOS_ATTEMPT={self.id}#") for word in environ)
            here = any(str(self.cluster.described.sockets) in word for word in environ)
            if ours and here and on_node and words:
                found[int(entry.name)] = words
        return found


class NamespaceCluster(LiveCluster):
    """Hosts, PostgreSQL, one master, an agent on each of the nodes.

    ``others``: hosts on which nothing runs yet; ``site``: settings of the masters.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        gpus: int = 4,
        cpus: int = CPUS,
        masters: int = 1,
        others: Sequence[str] = (),
        site: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(len(nodes), gpus * len(nodes))
        self.nodes = list(nodes)
        self.gpus = gpus
        self.cpus = cpus
        self.heads = {"master": "head"} | {f"master{n}": f"head{n}" for n in range(2, masters + 1)}
        self.hosts = Hosts([*self.heads.values(), *nodes, *others])
        self.site = site or {}
        self.agents: dict[str, AgentSettings] = {}
        self.count = 0

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.hosts.__enter__()
            self.up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def up(self) -> str:
        """Every agent is linked to the leader."""
        self.state.mkdir(mode=0o711)
        (self.state / "log").mkdir()
        self.lend_memory()
        cluster = Cluster.create(
            self.state,
            len(self.nodes),
            self.gpus * len(self.nodes),
            self.cpus,
            MEMORY,
            "hpcm",
            len(self.heads),
        )
        cluster.sockets.mkdir(parents=True, mode=0o755)
        database = postgres.start(self.state / "postgres", cluster.sockets / "pg")
        for name, socket in zip(self.heads, cluster.api_sockets, strict=True):
            self._start_master(cluster, name, socket, database)
        commands_dir.write(
            self.state / "bin", *cluster.api_sockets, submit_filter=self.state / "submitfilter"
        )
        self.api = Client(socket=cluster.api_sockets)
        wait_until(self._leads, "a leader", 60)
        for name in self.nodes:
            self._start_agent(cluster, name)
        wait_until(lambda: self.up_nodes() == set(self.nodes), "the agents", 60)
        return ""

    def _start_master(
        self, cluster: Cluster, name: str, socket: Path, database: postgres.EmbeddedPostgres
    ) -> None:
        """The masters have one certificate authority, the first one's."""
        head = self.hosts[self.heads[name]]
        state = self.state / name
        state.mkdir(mode=0o711)
        if name != "master":
            shutil.copytree(self.state / "master" / "ca", state / "ca")
        pki.ensure_ca(state)
        settings = MasterSettings(
            database_url=database.url,
            leader_database_url=database.leader_url,
            api_database_url=database.api_url,
            state=state,
            socket=socket,
            listen=f"{head.address}:{API_PORT}",
            link=f"{head.address}:0",
            api_processes=1,
            cluster=cluster.identity,
            managers=(cluster.user,),
            root_jobs=True,
            prepare_timeout=PREPARE_TIMEOUT,
            migrate=True,
            **self.site,
        )
        write_settings(settings, state / "master.toml")
        self._spawn(head, "master", state / "master.toml")

    def api_urls(self) -> str:
        """Where agents find a master."""
        return ",".join(f"https://{self.hosts[host].address}:{API_PORT}" for host in self.heads.values())

    def _start_agent(self, cluster: Cluster, name: str) -> None:
        state = self.state / "agents" / name
        state.mkdir(parents=True, mode=0o711)
        (self.state / "agents").chmod(0o711)
        token = state / "join-token"
        token.touch(mode=0o600)
        token.write_text(self.api.create_token("join", node=name).token)
        settings = self.agents[name] = AgentSettings(
            node=name,
            master=self.api_urls(),
            state=state,
            sockets=cluster.sockets / name,
            address=self.hosts[name].address,
            cpus=self.cpus,
            memory=MEMORY,
            gpus=f"simulated:{self.gpus}",
            cluster=cluster.identity,
            join_token_file=token,
        )
        write_settings(settings, state / "agent.toml")
        self._spawn(self.hosts[name], "agent", state / "agent.toml")

    def _spawn(self, host: Host, daemon: str, config: Path) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")}
        with (self.state / "log" / f"{host.name}.log").open("ab") as log:
            host.popen(
                [*HPCMESOS, daemon, "--config", config],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )

    def _leads(self) -> bool:
        try:
            return self.api.leader().address is not None
        except HpcmesosError:
            return False

    def up_nodes(self) -> set[str]:
        return {node.name for node in self.api.nodes() if node.state not in ("down", "gone")}

    def down(self) -> None:
        """By pid files; the agents first, so that they start no new shepherds."""
        with ThreadPoolExecutor() as pool:
            assert all(pool.map(self._stop_agent, self.agents.values())), "a shepherd does not end"
        for name in self.heads:
            assert pidfile.stop(str(self.state / name / "master.pid"), term_timeout=10)
        postgres.stop(self.state / "postgres")
        if "api" in vars(self):
            self.api.close()

    def _stop_agent(self, settings: AgentSettings) -> bool:
        pidfile.stop(str(settings.state / "agent.pid"), term_timeout=5)
        return stop_shepherd(settings, force=True)

    def crash(self, name: str) -> None:
        """Everything on that node dies at once; its kernel lives and resets the connections."""
        self.hosts[name].crash()

    def restart(self, name: str) -> None:
        """The agent of a node that crashed."""
        self._spawn(self.hosts[name], "agent", self.agents[name].state / "agent.toml")

    def stop(self) -> None:
        """Nothing is left: no daemon, cgroup, namespace or file."""
        try:
            if (self.state / "cluster.json").exists():
                self.hosts.mend()
                self.down()
                wait_until(lambda: not self.processes(), f"no process left: {self.processes()}", 5)
                assert not (groups := self.cgroups()), groups
        finally:
            self.hosts.close()
            if (self.state / "cluster.json").exists():
                shutil.rmtree(self.described.sockets, ignore_errors=True)
            self.remove()

    # --- jobs ---------------------------------------------------------------------------------------------------

    def submit(self, script: str, *options: str, files: dict[str, str] | None = None) -> Job:
        """As a user, in a new directory with these files, where the script begins."""
        self.count += 1
        directory = self.work() / str(self.count)
        directory.mkdir()
        for name, text in (files or {}).items():
            (directory / name).write_text(text)
        status = self.work().stat()
        os.chown(directory, status.st_uid, status.st_gid)
        text = f'#!/bin/sh\ncd "$PBS_O_WORKDIR" || exit\n{script}\n'
        done = self.run("qsub", *options, stdin=text, check=True, cwd=directory)
        assert done.stderr == "", done.stderr
        return Job(self, done.stdout.strip(), directory)

    # --- what must not be there ---------------------------------------------------------------------------------

    def cgroups(self) -> list[str]:
        """Those of attempts, and once the cluster is down all of it."""
        root = isolation.find_v2()
        if root is None:
            return []
        ours = root / "hpcmesos" / self.described.identity
        return sorted(str(path) for path in ours.glob("*/*/")) if ours.exists() else []

    def litter(self, since: float) -> list[str]:
        """What launchers of jobs' owners left in /tmp."""
        owner, found = self.work().stat().st_uid, []
        with os.scandir("/tmp") as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                ours = status.st_uid == owner and status.st_mtime >= since
                ours &= not stat.S_ISSOCK(status.st_mode) and entry.name.startswith(LITTER)
                if ours and self._of_our_hosts(entry):
                    found.append(entry.path)
        return found

    def _of_our_hosts(self, entry: os.DirEntry[str]) -> bool:
        """Hydra's files name the host, by which those of other tests on this machine are told."""
        if not entry.name.startswith("hydra_"):
            return True
        try:
            text = Path(entry.path).read_text(errors="replace")
        except OSError:
            return False
        return any(f'name="HostName" value="{name}"' in text for name in self.nodes)

    def check_nothing_left(self, timeout: float = 5.0) -> None:
        """On no node a process or a cgroup of an attempt."""
        wait_until(
            lambda: not (self.job_processes() or self.cgroups()),
            f"nothing left: {self.job_processes()} {self.cgroups()}",
            timeout,
        )


# --- MPI stacks


@cache
def _install(installer: str, place: Path) -> str:
    """Makes an environment; why it is missing, or nothing."""
    program = f"source {ROOT}/scripts/lib.sh; {installer} {place}"
    done = subprocess.run(["bash", "-c", program, "tests"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    assert "could not" in done.stderr, done.stderr
    return f"no {place.name} of wheels: {done.stderr.splitlines()[-1]}"


@dataclass(frozen=True)
class Stack:
    """An MPI: where its launcher lies, and the Python whose mpi4py uses it."""

    name: str
    directory: Path
    library: str
    """Vendor and major version, as mpi4py has them."""
    python: Path = VENV / "python"
    launch: str = "mpiexec"
    environ: dict[str, str] = field(default_factory=dict)
    proxy: str = ""
    missing: str = ""
    installer: str = ""
    """Function of scripts/lib.sh."""

    def why_missing(self) -> str:
        """The reason to skip, or nothing; installs what can be installed."""
        return _install(self.installer, self.directory.parent) if self.installer else self.missing

    def script(self, lines: str) -> str:
        """Shell lines with this stack's launcher behind our front in PATH, as a job_path would put it."""
        exports = "".join(f"export {key}='{value}'\n" for key, value in self.environ.items())
        return f"PATH=${{PATH%%:*}}:{self.directory}:$PATH\n{exports}{lines}"

    def run(self, program: str) -> str:
        """The command that launches a Python program."""
        return f"{self.launch} {self.python} {program}"

    def by_path(self) -> Stack:
        """The same without the front."""
        return replace(self, name=f"{self.name}-by-path", launch=str(self.directory / "mpiexec"))

    def under_run(self) -> Stack:
        """Its ranks started by the shepherds themselves."""
        return replace(self, name=f"{self.name}-run", launch="hpcmesos run", proxy="")

    def __str__(self) -> str:
        return self.name


DEBIAN = Path("/usr/bin")
_LIBRARIES = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"

MPICH = Stack(
    "mpich",
    VENV,
    "MPICH-5",
    proxy="hydra_pmi_proxy",
    missing="" if (VENV / "mpiexec").exists() else "no MPICH wheel",
)
RUN = MPICH.under_run()


def debian(
    name: str, version: str, programs: Sequence[str], library: str, proxy: str, **environ: str
) -> Stack:
    """An MPI among Debian's, whichever of them the alternatives choose: a directory of links with plain names.

    ``programs``: "plain=real" or a name that stays.
    """
    pairs = [word.partition("=")[::2] for word in programs]
    real = {plain: DEBIAN / (other or plain) for plain, other in pairs}
    place = ROOT / ".cache" / name / "bin"
    found = all(path.exists() for path in (*real.values(), _LIBRARIES / library, DEBIAN / "gcc"))
    if found:
        place.mkdir(parents=True, exist_ok=True)
        for plain, path in real.items():
            _link(place / plain, path)
    if found and proxy == "hydra_pmi_proxy":  # mpi4py knows the library by another name than Debian
        (place.parent / "lib").mkdir(exist_ok=True)
        _link(place.parent / "lib" / "libmpi.so.12", _LIBRARIES / library)
        environ["LD_LIBRARY_PATH"] = str(place.parent / "lib")
        environ["LD_PRELOAD"] = str(_undisconnected(place.parent / "lib"))
    environ["MPI4PY_LIBMPI"] = str(_LIBRARIES / library)
    missing = "" if found else f"no {name} of Debian"
    return Stack(name, place, version, environ=environ, proxy=proxy, missing=missing)


def _link(path: Path, target: Path) -> None:
    """Two test processes may be at it at once."""
    with suppress(FileExistsError):
        path.symlink_to(target)


def _undisconnected(directory: Path) -> Path:
    """A library without which Debian's MPICH hangs in MPI_Finalize over TCP, launched by whomever; see docs/mpi.md.

    A rank closes its UCX endpoints and waits for peers that wait in a barrier of PMI (pmodels/mpich, pull 6596).
    """
    library = directory / "undisconnected.so"
    if not library.exists() and (compiler := shutil.which("gcc")):
        source = "void *ucp_disconnect_nb(void *endpoint) { (void)endpoint; return (void *)0; }\n"
        draft = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", draft, "-"]
        subprocess.run(command, input=source, text=True, check=True)
        draft.rename(library)
    return library


MPICH4 = debian(
    "mpich4",
    "MPICH-4",
    ["mpiexec=mpiexec.mpich", "mpirun=mpirun.mpich", "mpicc=mpicc.mpich", "hydra_pmi_proxy"],
    "libmpich.so.12",
    "hydra_pmi_proxy",
    # Hosts of one kernel have one boot id: UCX would try to share memory with other hosts.
    UCX_TLS="tcp,self",
    UCX_NET_DEVICES="eth0",
)
OPENMPI4 = debian(
    "openmpi4",
    "OpenMPI-4",
    ["mpiexec=mpiexec.openmpi", "mpirun=mpirun.openmpi", "mpicc=mpicc.openmpi", "orted"],
    "libmpi.so.40",
    "orted",
    OMPI_MCA_mpi_yield_when_idle="1",
)


def apart(name: str, library: str, installer: str, environ: dict[str, str], proxy: str) -> Stack:
    """An MPI of wheels that need an environment of their own, which a function of scripts/lib.sh installs."""
    place = ROOT / ".cache" / name
    return Stack(
        name,
        place / "bin",
        library,
        place / "bin" / "python",
        environ=environ,
        proxy=proxy,
        installer=installer,
    )


OPENMPI5 = apart(
    "openmpi5",
    "OpenMPI-5",
    "install_openmpi",
    {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_btl": "self,sm,tcp"},
    "prted",
)
IMPI = apart(
    "impi",
    "IntelMPI-2021",
    "install_intel_mpi",
    {"FI_PROVIDER": "tcp", "I_MPI_ROOT": str(ROOT / ".cache" / "impi")},
    "hydra_pmi_proxy",
)


def now() -> float:
    """Files' times may be a clock tick early."""
    return time.time() - 0.02
