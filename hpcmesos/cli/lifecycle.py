"""Brings an embedded cluster up and takes it down: PostgreSQL, one master, the agents; in that order and back.

Every step looks first whether it is done, so that ``up`` after any crash restores just what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hpcmesos import pidfile
from hpcmesos.agent.control import stop_shepherd
from hpcmesos.cli.daemons import agent_settings, write_settings
from hpcmesos.cli.embedded import Cluster
from hpcmesos.cli.real_gpus import Found, deal, find_real_gpus
from hpcmesos.client import Client
from hpcmesos.config import AgentSettings, MasterSettings, load
from hpcmesos.errors import HpcmesosError, StateError
from hpcmesos.queue import postgres

Say = Callable[[str], None]
START_TIMEOUT = 60.0
"""Seconds that a daemon may take to answer; a loaded laptop needs a few."""

NEWBORN_TIMEOUT = 10.0
"""Seconds within which a shepherd that has just been started writes its pid file."""


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """One `up` or `down` at a time.

    Raises:
        StateError: when another one is at work on ``state``.
    """
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"another `hpcmesos up` or `down` is at work on {state}") from None
        yield


def bring_up(cluster: Cluster, say: Say, interrupted: threading.Event) -> None:
    """Starts what is missing; returns when every agent is linked to the leader.

    Raises:
        StateError: something did not come up in time; names it and its log.
        KeyboardInterrupt: when ``interrupted`` was set meanwhile.
    """
    gpus = _dealt(cluster, say)
    _make_sockets(cluster)
    (cluster.state / "log").mkdir(exist_ok=True)
    database = _start_postgres(cluster, say)
    client = Client(socket=cluster.api_sockets)
    masters = _Once(lambda name: _start_master(cluster, name, database, say), cluster.master_names)
    _wait(lambda: masters.start() and _leads(client) and _all_serve(cluster), "master", cluster, interrupted)
    agents = _Once(lambda name: _start_agent(cluster, name, client, gpus, say), cluster.names)
    _wait(lambda: agents.start() and _all_run(cluster, client), "agents", cluster, interrupted)


class _Once:
    """Starts each daemon that does not run, once. One that runs may be about to stop, and is looked at again."""

    def __init__(self, start: Callable[[str], bool], names: Iterable[str]) -> None:
        self._start = start
        self._running = list(names)

    def start(self) -> bool:
        """True, for a condition to go on."""
        self._running = [name for name in self._running if not self._start(name)]
        return True


def _dealt(cluster: Cluster, say: Say) -> dict[str, str]:
    """``gpus`` of each agent that has no settings yet. Raises ConfigError."""
    settled, wanted = {}, {}
    for name in cluster.names:
        if existing := agent_settings(cluster.state / "agents" / name / "agent.toml"):
            settled[name] = existing.gpus
        else:
            wanted[name] = cluster.gpus_of(name)
    settings, said = deal(wanted, settled, find_real_gpus() if any(wanted.values()) else Found())
    if said:
        say(f"up: {said}")
    return settings


def take_down(cluster: Cluster, say: Say) -> None:
    """Ends jobs, agents, shepherds, the master and PostgreSQL; removes sockets and cgroups. Idempotent."""
    running = [name for name in cluster.names if (cluster.state / "agents" / name).exists()]
    threads = [threading.Thread(target=_stop_agent, args=(cluster, name)) for name in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in reversed(cluster.master_names):  # the first leads as a rule, and hands over to nobody
        master = cluster.state / name
        if not pidfile.stop(str(master / "master.pid"), term_timeout=10):
            say(f"down: the {name} does not end; look at its log")
        _end_newborn("master", "--config", str(master / "master.toml"))
    postgres.stop(cluster.state / "postgres")
    shutil.rmtree(cluster.sockets, ignore_errors=True)
    say("down: nothing of this cluster runs any more")


def _make_sockets(cluster: Cluster) -> None:
    cluster.sockets.mkdir(parents=True, exist_ok=True, mode=0o755)
    found = cluster.sockets.lstat()  # in /tmp anybody could have made a link of that name
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StateError(f"{cluster.sockets} belongs to somebody else; remove it")


def _start_postgres(cluster: Cluster, say: Say) -> postgres.EmbeddedPostgres:
    started = postgres.start(cluster.state / "postgres", cluster.sockets / "pg")
    say(f"up: PostgreSQL runs (pid {started.pid})")
    return started


def _start_master(cluster: Cluster, name: str, database: postgres.EmbeddedPostgres, say: Say) -> bool:
    """False: it runs."""
    state = cluster.state / name
    if pidfile.living(str(state / "master.pid")):
        return False
    state.mkdir(exist_ok=True, mode=0o711)
    _share_authority(cluster, state)
    root = os.getuid() == 0
    settings = MasterSettings(
        database_url=database.url,
        leader_database_url=database.leader_url,
        api_database_url=database.api_url,
        state=state,
        socket=cluster.api_sockets[cluster.master_names.index(name)],
        server=cluster.server,
        cluster=cluster.identity,
        managers=(cluster.user,),
        root_jobs=root,
        single_user="" if root else cluster.user,
        job_path=(str(Path(sys.executable).parent),),
        log_store=str(cluster.state / "logs"),
        migrate=True,
    )
    write_settings(_with_sites(settings, cluster.state / "site.toml"), state / "master.toml")
    process = _spawn(cluster, name, ["master", "--config", str(state / "master.toml")])
    say(f"up: the {name} started (pid {process.pid})")
    return True


def _with_sites(settings: MasterSettings, path: Path) -> MasterSettings:
    """The settings with what STATE/site.toml says, if there is one. Raises ConfigError."""
    if not path.is_file():
        return settings
    required = {name: getattr(settings, name) for name in ("database_url", "state", "socket")}
    checked = load(MasterSettings, required, {}, path)
    given = tomllib.loads(path.read_text()).keys() - required.keys()
    return replace(settings, **{name: getattr(checked, name) for name in given})


def _share_authority(cluster: Cluster, state: Path) -> None:
    """The masters of a cluster have one certificate authority: the first's, copied as an administrator would."""
    from hpcmesos.master import pki, vault  # cryptography is large; `down` and `env` need none

    first = cluster.state / cluster.master_names[0]
    if cluster.masters > 1:
        pki.ensure_ca(first)
        vault.ensure_key(first)
    if state != first and not (state / "ca").exists():
        draft = state / "ca.new"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(first / "ca", draft)
        draft.rename(state / "ca")


def _start_agent(cluster: Cluster, name: str, client: Client, gpus: dict[str, str], say: Say) -> bool:
    """False: it runs."""
    settings = settings_of(cluster, name, gpus)
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    if pidfile.living(str(settings.state / "agent.pid")):
        return False
    if not (settings.state / "agent.pem").exists():
        assert settings.join_token_file is not None
        token = client.create_token("join", node=name).token
        settings.join_token_file.touch(mode=0o600)
        settings.join_token_file.write_text(token)
    write_settings(settings, settings.state / "agent.toml")
    process = _spawn(cluster, name, ["agent", "--config", str(settings.state / "agent.toml")])
    say(f"up: {name} started (pid {process.pid}, GPUs {settings.gpus})")
    return True


def settings_of(cluster: Cluster, name: str, gpus: dict[str, str]) -> AgentSettings:
    """The settings of one agent. ``gpus``: that setting of each that is new."""
    state = cluster.state / "agents" / name
    masters = ",".join(f"unix:{socket}" for socket in cluster.api_sockets)
    if existing := agent_settings(state / "agent.toml"):
        return replace(existing, master=masters)
    sockets = cluster.sockets / name
    return AgentSettings(
        node=name,
        master=masters,
        state=state,
        sockets=sockets,
        address=cluster.address(name),
        cpus=cluster.cpus,
        memory=cluster.memory,
        gpus=gpus[name],
        cluster=cluster.identity,
        site_scripts=cluster.state / "scripts",
        join_token_file=state / "join-token",
    )


def _stop_agent(cluster: Cluster, name: str) -> None:
    """The agent first, so that it does not start a new shepherd for the one that ends."""
    state = cluster.state / "agents" / name
    pidfile.stop(str(state / "agent.pid"), term_timeout=5)
    _end_newborn("agent", "--config", str(state / "agent.toml"))
    settings = agent_settings(state / "agent.toml")
    if settings is None:
        return
    stop_shepherd(settings, force=True)
    shepherd = ("shepherd", str(state / "shepherd.json"))
    deadline = time.monotonic() + NEWBORN_TIMEOUT
    while pidfile.with_words(*shepherd) and time.monotonic() < deadline:
        time.sleep(0.02)
        stop_shepherd(settings, force=True)  # once it has written its pid file, it is asked to end
    _end_newborn(*shepherd)


def _end_newborn(*words: str) -> None:
    """Ends daemons that an interrupted `up` had just started: they have no pid file yet."""
    for daemon in pidfile.with_words(*words):
        pidfile.end(daemon, term_timeout=1)


def _spawn(cluster: Cluster, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A daemon in a session of its own; its log is STATE/log/NAME.log. HPCMESOS_* of the caller is not inherited."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HPCMESOS_")}
    with (cluster.state / "log" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcmesos.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environ,
            start_new_session=True,
        )


def _leads(client: Client) -> bool:
    return client.leader().address is not None


def _all_serve(cluster: Cluster) -> bool:
    """Every master answers by itself; one that was killed leaves a socket at which nobody listens."""
    for socket in cluster.api_sockets:
        with Client(socket=socket, patience=0.0) as client:
            client.leader()
    return True


def _all_run(cluster: Cluster, client: Client) -> bool:
    """A node stays up for a while after its agent died, so that both are asked: the process and the leader."""
    pid_files = [str(cluster.state / "agents" / name / "agent.pid") for name in cluster.names]
    return all(pidfile.living(path) for path in pid_files) and _up_nodes(client) >= set(cluster.names)


def _up_nodes(client: Client) -> set[str]:
    return {node.name for node in client.nodes() if node.state not in ("down", "gone")}


def _wait(done: Callable[[], bool], what: str, cluster: Cluster, interrupted: threading.Event) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    last = "no answer yet"
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except HpcmesosError as error:
            last = str(error)
        if interrupted.wait(0.05):
            raise KeyboardInterrupt
    logs = cluster.state / "log"
    raise StateError(
        f"{what}: not ready after {START_TIMEOUT:.0f} s ({last}); see {logs}{_last_line(logs, what)}"
    )


def _last_line(logs: Path, what: str) -> str:
    with contextlib.suppress(OSError, IndexError):
        return ": " + (logs / f"{what}.log").read_text(errors="replace").splitlines()[-1][:200]
    return ""
