"""Attacks on a node: by jobs on the shepherd and on other users' jobs, by other nodes, by names and links."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcmesos import pidfile
from hpcmesos.agent import isolation
from hpcmesos.launch import enclosure, protocol
from tests.integration import shepherd_kit as kit
from tests.security.cases import Case, Switch, Told, Try, check, replaced

IS_ROOT = os.geteuid() == 0
OWNER = "nobody" if IS_ROOT else kit.ME
STRANGER = "daemon"
_code = {"of the shepherd": ""}
_UNGUARDED = str(Path(__file__).with_name("unguarded.py"))


def without(code: str) -> Switch:
    """``code`` runs in the shepherd before it begins."""
    return lambda patch: patch.setitem(_code, "of the shepherd", code)


@dataclass
class NodeStage:
    """Shepherds that are started anew for every try. ``home``: the owner's; ``root``: what he may only pass."""

    root: Path
    home: Path = field(init=False)

    def renew(self) -> None:
        for left in self.root.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        self.home = self.root / "home"
        self.home.mkdir()
        (self.root / "private").mkdir(mode=0o700)
        (self.root / "private" / "secret").write_text("secret")
        if IS_ROOT:
            os.chown(self.home, pwd.getpwnam(OWNER).pw_uid, pwd.getpwnam(OWNER).pw_gid)

    def counts(self) -> Any:
        return sorted(str(path) for path in (self.root / "private").iterdir()), (
            self.root / "private" / "secret"
        ).read_text()

    @contextlib.contextmanager
    def nodes(self, count: int = 1, cgroups: bool = False, **settings: Any) -> Iterator[list[kit.Node]]:
        def prefix(words: list[str]) -> list[str]:
            return [sys.executable, "-IS", _UNGUARDED, _code["of the shepherd"], *words[3:]]

        names = [f"node{number + 1}" for number in range(count)]
        with kit.cluster(self.root, names, cgroups, prefix=prefix, **settings) as nodes:
            yield nodes

    def run(self, node: kit.Node, script: str, **changes: Any) -> kit.Run:
        given = {"owner": OWNER, "shell": "/bin/sh", **changes}
        return kit.Run([node], kit.spec([node], self.home, script, **given))


@pytest.fixture
def node() -> Iterator[NodeStage]:
    place = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    place.chmod(0o711)
    yield NodeStage(place)
    shutil.rmtree(place)


def by_job(script: str, wanted: Callable[[str], bool], **changes: Any) -> Try[NodeStage]:
    """A job that tries something, and writes what came of it."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            words = script.replace("ROOT", str(stage.root))
            given = {name: _filled(value, stage) for name, value in changes.items()}
            run = stage.run(node, words, **given)
            ended = run.ended()
            said = run.tail("stdout")
            node.agent.send(op="forget", attempt=run.attempt)
            return Told(wanted(said), f"{ended.get('undelivered', '')}")

    return run


def _filled(value: Any, stage: NodeStage) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, stage) for name, item in value.items()}
    return value.replace("ROOT", str(stage.root)) if isinstance(value, str) else value


def wrote(path: str) -> Callable[[Try[NodeStage]], Try[NodeStage]]:
    """Judges by a file that is there afterwards, and not by what the job said."""

    def judged(action: Try[NodeStage]) -> Try[NodeStage]:
        def run(stage: NodeStage) -> Told:
            told = action(stage)
            return Told((stage.root / path).exists(), told.said)

        return run

    return judged


AS_ROOT = "from hpcmesos.launch import child; child._become = lambda owner: None"
"""Nobody becomes the owner."""


def linked(target: str) -> Try[NodeStage]:
    """The output goes to a link in the owner's directory."""

    def run(stage: NodeStage) -> Told:
        (stage.home / "link").symlink_to(stage.root / target)
        return wrote(target)(by_job("echo mine\n", bool, stdout="ROOT/home/link"))(stage)

    return run


def preloaded(uid: str) -> Try[NodeStage]:
    """The job's environment names a library that tells who loads it."""

    def run(stage: NodeStage) -> Told:
        source = "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) void tell(void)"
        source += (
            '{FILE *f = fopen("%s/ids", "a"); if (f) { fprintf(f, "%%d\\n", (int)getuid()); fclose(f); }}\n'
        )
        library = stage.home / "tell.so"
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        (stage.root / "tell.c").write_text(source % stage.home)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, stage.root / "tell.c"], check=True)
        library.chmod(0o755)
        environment = {"LD_PRELOAD": str(library), "BASH_ENV": "ROOT/home/rc"}
        by_job("/bin/true; touch $TMPDIR/x; mkdir $PBS_JOBDIR/d\n", bool, environment=environment)(stage)
        found = (stage.home / "ids").read_text().split() if (stage.home / "ids").exists() else []
        return Told(uid in found, "" if uid in found else f"loaded by {sorted(set(found))}")

    return run


def sourced(uid: str) -> Try[NodeStage]:
    """The shell of the job reads a file that BASH_ENV names, as whoever it runs."""

    def run(stage: NodeStage) -> Told:
        (stage.home / "rc").write_text("id -u\n")
        (stage.home / "rc").chmod(0o644)
        return by_job(
            "true\n",
            lambda said: uid in said.split(),
            shell="/bin/bash",
            environment={"BASH_ENV": "ROOT/home/rc"},
        )(stage)

    return run


def named(attempt: str, place: str) -> Try[NodeStage]:
    """An attempt whose name is a path."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            spec = kit.spec([node], stage.home, "true\n", attempt=attempt, owner=OWNER)
            node.agent.send(op="prepare", spec=spec)
            kit.wait_until(
                lambda: node.agent.events[1:] or node.agent.wait(_answer(node), timeout=5), "an answer"
            )
            there = (node.state / place).exists()
            refused = [event["reason"] for event in node.agent.events if event["event"] == "refused"]
            node.agent.send(op="end", attempt=attempt, cause="DELETED", kill_delay=0, message="")
            return Told(there, "".join(refused)[:200])

    return run


def _answer(node: kit.Node) -> str:
    """The kind of the next event."""
    data = node.agent._socket.recv(1 << 20)
    node.agent.events += [protocol.decode(body) for _, body in node.agent._parser.feed(data)]
    return str(node.agent.events[-1]["event"])


ANY_CALLER = (
    "from hpcmesos.launch import ranks;"
    "ranks.Ranks._caller = lambda self, pid, uid: next(iter(self._attempts.values()), None)"
)


def stranger_enters(user: str, **stolen: str) -> Try[NodeStage]:
    """A process outside the job asks for a command in it; ``stolen``: of the job's environment."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            run = stage.run(node, f"until test -e {stage.home}/stop; do sleep 0.02; done\n")
            run.started()
            environ = {"HPCMESOS_SOCKET": str(node.sockets / "ranks.sock"), **stolen}
            identity = {"user": user, "extra_groups": []} if IS_ROOT else {}
            done = subprocess.run(
                [str(node.state / "bin" / "pbs_tmrsh"), "-n", "node1", "echo in"],
                env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, text=True, check=False, cwd="/",
                **identity,  # type: ignore[call-overload]  # as a user
            )  # fmt: skip
            (stage.home / "stop").touch()
            run.ended()
            return Told(done.stdout == "in\n", done.stderr)

    return run


ENTERS = by_job(
    '"$(dirname $(command -v mpiexec))/pbs_tmrsh" -n node1 "echo in"\n', lambda said: said == "in\n"
)

ANY_NAME = """
import os
from hpcmesos.launch import files
files.attempt_directory = lambda config, attempt: os.path.join(config.state, "attempts", attempt)
"""
OUR_ENVIRONMENT = """
import os
from hpcmesos.launch import attempt
real = attempt.Attempt._script_environment
attempt.Attempt._script_environment = lambda self: {**os.environ, "SECRET": "42x", **real(self)}
"""
OUR_DESCRIPTORS = """
import os
from hpcmesos.launch import child
real = child._execute
def execute(launch):
    for fd in range(3, 64):
        try:
            os.set_inheritable(fd, True)
        except OSError:
            pass
    return real(launch)
child._execute = execute
"""
WORLD_DOOR = """
from hpcmesos.launch import control
real = control.listen
control.listen = lambda path, mode, serve: real(path, 0o666, serve)
"""


# --- limits of a job


def forks(count: int) -> Try[NodeStage]:
    """A job of so many processes, on a node that allows 64 of each attempt."""

    def run(stage: NodeStage) -> Told:
        root = isolation.find_v2()
        if root is None or not kit.UNIFIED:
            pytest.skip("no cgroup v2")
        limits = isolation.limits(("pids=64",), root, "attacks", str(os.getpid()))
        if not limits.get("pids"):
            pytest.skip("no pids controller")
        fork = f"import os, time; [os.fork() or time.sleep(30) for _ in range({count})]; print(1, flush=True)"
        script = f"{sys.executable} -c '{fork}'; kill -9 0\n"
        try:
            with stage.nodes(cgroups=True, limits=limits) as [node]:
                run = stage.run(node, script)
                run.ended()
                node.agent.send(op="forget", attempt=run.attempt)
                said = run.tail("stderr").strip().splitlines()[-1:]
                return Told(run.tail("stdout") == "1\n", "".join(said))
        finally:
            for group in limits["v1"].values():
                isolation.remove(Path(group))

    return run


# --- other nodes at this one's door


def asks(organization: str, name: str, request: dict[str, Any], foreign: bool = False) -> Try[NodeStage]:
    """A peer asks something of a gang on node1 and node2."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes(2) as nodes:
            script = f"echo inside; until test -e {stage.home}/stop; do sleep 0.02; done\n"
            value = kit.spec(nodes, stage.home, script, owner=OWNER)
            gang = kit.Run(nodes, value)
            gang.started()
            kit.wait_until(lambda: (stage.home / "out").read_text(), "the first line")
            authority = kit.Authority(stage.root / "private") if foreign else nodes[0].authority
            said = _ask(nodes[0], authority.issue(organization, name), {**request, "attempt": gang.attempt})
            for made in (stage.root / "private").glob("*.[pk]e[my]"):
                made.unlink()
            (stage.home / "stop").touch()
            gang.ended()
            return Told(b"inside" in said or b"joined" in said, "refused" if said else "")

    return run


def _ask(node: kit.Node, tls: dict[str, str], request: dict[str, Any]) -> bytes:
    context = ssl.create_default_context(cafile=node.authority.ca)
    context.check_hostname = False
    context.load_cert_chain(tls["certificate"], tls["key"])
    said = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((node.address, node.agent.hello["peer_port"]), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.settimeout(1.0)
        connection.sendall(protocol.message(request))
        while b'"exit"' not in said and (data := connection.recv(65536)):
            said += data
    return said


SHELL = {"op": "shell", "command": "echo inside"}
LOG = {"op": "log", "stream": "stdout"}


def taken_for(organization: str, name: str, when: str, before: str = "") -> Switch:
    """Who asks for ``when`` (of ``request`` and ``identity``) is taken for the holder of that certificate."""
    return without(
        f"{before}\nfrom hpcmesos.launch import peers, shepherd\n"
        "real = shepherd.Shepherd._answer_peer\n"
        f"forged = peers.Identity(({organization!r}, {name!r}))\n"
        "shepherd.Shepherd._answer_peer = lambda self, channel, identity, request: real("
        f"self, channel, forged if {when} else identity, request)"
    )


NO_CERTIFICATES = """
import ssl
from hpcmesos.launch import peers
strict = peers.Peers._contexts
def lax(self):
    server, client = strict(self)
    server.verify_mode = ssl.CERT_NONE
    return server, client
peers.Peers._contexts = lax
"""

PEERS = [
    Case(
        "a shell by a node without a part",
        asks("agent", "node3", SHELL),
        asks("agent", "node2", SHELL),
        without("from hpcmesos.launch import shepherd; shepherd._is_member = lambda attempt, node: True"),
    ),
    Case(
        "a shell by a master",
        asks("master", "m1", SHELL),
        asks("agent", "node2", SHELL),
        taken_for("agent", "node2", "request['op'] == 'shell'"),
    ),
    Case(
        "a log by a node",
        asks("agent", "node2", LOG),
        asks("master", "m1", LOG),
        taken_for("master", "m1", "request['op'] == 'log'"),
    ),
    Case(
        "a join under another node's name",
        asks("agent", "node3", {"op": "join", "node": "node2"}),
        asks("agent", "node2", {"op": "join", "node": "node2"}),
        taken_for("agent", "node2", "identity == ('agent', 'node3')"),
    ),
    Case(
        "a shell with a certificate of another authority",
        asks("agent", "node2", SHELL, foreign=True),
        asks("agent", "node2", SHELL),
        taken_for("agent", "node2", "identity == ('', '')", NO_CERTIFICATES),
        silent=True,
    ),
]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: case.name)
def test_peer(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)


# --- the agent's door, and what a dead shepherd left


def commands(user: str) -> Try[NodeStage]:
    """A user of the node says hello where only the agent may."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            program = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]);"
                's.sendall(bytes([0, 0, 0, 15]) + b\'J{"op":"hello"}\'[:15]); sys.stdout.write(str(s.recv(100)))'
            )
            identity = {"user": user, "extra_groups": []} if user else {}
            done = subprocess.run(
                [sys.executable, "-IS", "-c", program, node.control_socket],
                capture_output=True, text=True, check=False, cwd="/", **identity,
            )  # fmt: skip
            return Told("hello" in done.stdout, done.stderr.strip().splitlines()[-1] if done.stderr else "")

    return run


def recovered(target: str) -> Try[NodeStage]:
    """The owner puts a link in place of his output, and the shepherd dies: the next one reads its end."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            run = stage.run(node, "sleep 600\n")
            run.started()
            (stage.home / "out").unlink()
            (stage.home / "mine").write_text("mine")
            (stage.home / "mine").chmod(0o644)
            (stage.home / "out").symlink_to(stage.root / target)
            node.kill()
            node.start()
            ended = node.agent.wait("ended", run.attempt)
            node.agent.send(op="forget", attempt=run.attempt)
            tail = base64.b64decode(ended["stdout_tail"]).decode()
            return Told(tail == (stage.root / target).read_text(), "")

    return run


LEFT = [
    Case(
        "a hello at control.sock by a user",
        commands(STRANGER),
        commands(""),
        without(WORLD_DOOR),
    ),
    Case(
        "a link that a dead shepherd's heir reads",
        recovered("private/secret"),
        recovered("home/mine"),
        without(AS_ROOT),
        silent=True,
    ),
    Case(
        "more processes than the limit",
        forks(100),
        forks(5),
        without("from hpcmesos.launch import attempt, limits; limits.wanted = lambda config, spec: {}"),
    ),
]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("case", LEFT, ids=lambda case: case.name)
def test_left(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)


# --- numbers of processes that came round again


class Numbers:
    """A process that has the number of another one that is over."""

    def renew(self) -> None:
        pass

    def counts(self) -> Any:
        return None

    def signals(self, ours: bool) -> Told:
        """The attempt to whom the process belonged before (``ours``: to whom it belongs) is told to end."""
        trees = enclosure.Trees("HPCMESOS_SOCKET=/of/this/test")
        before, now = (enclosure.Tree(trees, f"{number}.hpcm#1", os.getuid()) for number in (1, 2))
        with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
            before.adopt(process.pid)
            now.adopt(process.pid)
            (now if ours else before).signal(signal.SIGTERM)
            try:
                process.wait(timeout=5 if ours else 0.5)
            except subprocess.TimeoutExpired:
                process.kill()
                return Told(False)
        return Told(True)

    def ends(self, started: int) -> Told:
        """A daemon of a pid file is stopped; ``started``: ticks by which its start differs from the process'."""
        with subprocess.Popen(["/bin/sleep", "60"]) as process:
            begun = pidfile.start_time(process.pid)
            assert begun is not None
            pidfile.end(pidfile.Daemon(process.pid, begun + started), 5.0)
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                process.kill()
                return Told(False)
        return Told(True)


def adopt_alone(self: enclosure.Tree, pid: int) -> None:
    self._sessions.add(pid)


NUMBERS: list[Case[Numbers]] = [
    Case(
        "a signal to a number that came round again",
        lambda n: n.signals(False),
        lambda n: n.signals(True),
        replaced(enclosure.Tree, "adopt", adopt_alone),
        silent=True,
    ),
    Case(
        "a stale pid file",
        lambda n: n.ends(-7),
        lambda n: n.ends(0),
        replaced(pidfile, "start_time", lambda pid: _Any()),
        silent=True,
    ),
]


class _Any(int):
    """A start time that is like any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __add__(self, other: int) -> int:
        return self

    __hash__ = int.__hash__


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case.name)
def test_number(case: Case[Numbers], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, Numbers(), monkeypatch)


CASES = [
    Case(
        "an attempt whose name is a path",
        named("../../evil#1", "../evil#1"),
        named("1.hpcm#1", "attempts/1.hpcm#1"),
        without(ANY_NAME),
    ),
    Case("a process of no job at ranks.sock", stranger_enters(OWNER), ENTERS, without(ANY_CALLER)),
    Case(
        "the shepherd's environment",
        by_job("echo ${SECRET:-none}\n", lambda said: "42x" in said),
        by_job("echo $MINE\n", lambda said: "mine" in said, environment={"MINE": "mine"}),
        without(OUR_ENVIRONMENT),
        silent=True,
    ),
    Case(
        "the shepherd's descriptors",
        by_job("ls -l /proc/$$/fd\n", lambda said: "socket:" in said),
        by_job("ls -l /proc/$$/fd\n", lambda said: "/home/out" in said),
        without(OUR_DESCRIPTORS),
        silent=True,
    ),
]

OF_ROOT = [
    Case(
        "an output that is a link",
        linked("private/made"),
        wrote("home/made")(by_job("echo mine\n", bool, stdout="ROOT/home/made")),
        without(AS_ROOT),
    ),
    Case(
        "an output by a path that climbs",
        wrote("private/made")(by_job("echo mine\n", bool, stdout="ROOT/home/../private/made")),
        wrote("home/made")(by_job("echo mine\n", bool, stdout="ROOT/home/../home/made")),
        without(AS_ROOT),
    ),
    Case("BASH_ENV", sourced("0"), sourced(str(pwd.getpwnam(OWNER).pw_uid)), without(AS_ROOT), silent=True),
    Case("LD_PRELOAD", preloaded("0"), preloaded(str(pwd.getpwnam(OWNER).pw_uid)), without(AS_ROOT)),
    Case(
        "the shepherd's groups",
        by_job("id -G\n", lambda said: "4" in said.split()),
        by_job("id -G\n", lambda said: str(pwd.getpwnam(OWNER).pw_gid) in said.split()),
        without("import os; os.setgroups = lambda groups: None"),
        silent=True,
    ),
    Case(
        "a private file",
        by_job("cat ROOT/private/secret\n", lambda said: said == "secret"),
        by_job("echo secret >x; cat x\n", lambda said: said == "secret\n", workdir="ROOT/home"),
        without(AS_ROOT),
        silent=True,
    ),
    Case(
        "another user with a job's environment at ranks.sock",
        stranger_enters(STRANGER, HPCMESOS_ATTEMPT="12.hpcm#1"),
        ENTERS,
        without(ANY_CALLER),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.root
@pytest.mark.parametrize("case", OF_ROOT, ids=lambda case: case.name)
def test_node_of_root(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)
