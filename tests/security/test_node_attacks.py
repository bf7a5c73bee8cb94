"""Attacks on a node: by jobs on the shepherd and on other users' jobs, by names and links."""

from __future__ import annotations

import base64
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmesos.agent import isolation
from hpcmesos.launch import protocol
from tests.integration import shepherd_kit as kit
from tests.security.cases import Case, Told, Try, check
from tests.security.node_stage import AS_ROOT, IS_ROOT, OWNER, STRANGER, NodeStage, by_job, without, wrote

READABLE = "/etc/passwd"
"""A file that everybody may read."""


def linked(target: str) -> Try[NodeStage]:
    """The output goes to a link in the owner's directory."""

    def run(stage: NodeStage) -> Told:
        (stage.home / "link").symlink_to(stage.root / target)
        return wrote(target)(by_job("echo mine\n", bool, stdout="ROOT/home/link"))(stage)

    return run


def staged(remote: str, local: str) -> Try[NodeStage]:
    """A file that comes before the script."""
    transfer = {"local": f"ROOT/{local}", "host": None, "remote": remote}
    return wrote(local)(by_job("true\n", bool, stagein=[transfer]))


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


ANY_CALLER = """
from hpcmesos.launch import ranks

async def any_attempt(self, pid, uid):
    return next(iter(self._attempts.values()), None)

ranks.Ranks._caller = any_attempt
"""


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
                timeout=60, **identity,  # type: ignore[call-overload]  # as a user
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
from hpcmesos.launch import environment
real = environment.of_script
environment.of_script = lambda workspace: {**os.environ, "SECRET": "42x", **real(workspace)}
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
        without("from hpcmesos.launch import limits; limits.wanted = lambda config, spec: {}"),
    ),
]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("case", LEFT, ids=lambda case: case.name)
def test_left(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)


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

SWAPS = """
import os, sys, time
path, target = sys.argv[1:]
until = time.monotonic() + 30
print("ready", flush=True)
while time.monotonic() < until:
    try:
        os.rmdir(path)
        os.symlink(target, path)
        break
    except OSError:
        pass
"""
MADE_BY_ROOT = """
import os, time
from hpcmesos.launch import child
become = child._become
child._become = lambda owner: None
def make(launch):
    for path in launch.made:
        os.mkdir(path, 0o700)
        time.sleep(0.5)
        os.chown(path, launch.owner.uid, launch.owner.gid)
    become(launch.owner)
child._make = make
"""
"""Root makes the directory and gives it away, with time between."""


def served(swapped: bool) -> Try[NodeStage]:
    """MPS's directories are made in a TMPDIR of its owner's, of whom a process may put a link in their place."""

    def run(stage: NodeStage) -> Told:
        secret, owner = stage.root / "private" / "secret", pwd.getpwnam(OWNER).pw_uid
        program = stage.root / "bin" / "nvidia-cuda-mps-control"
        program.parent.mkdir(mode=0o755)
        program.write_text('#!/bin/sh\ncd "$CUDA_MPS_PIPE_DIRECTORY"\n')
        program.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
            with stage.nodes() as [node]:
                kit.give_gpus([node], 1)
                spec = kit.spec([node], stage.home, "true\n", owner=OWNER, mps=True)
                directory = node.state / "attempts" / spec["attempt"] / "tmp" / ".mps"
                words = [sys.executable, "-IS", "-c", SWAPS, str(directory), str(secret)]
                with subprocess.Popen(
                    words, stdout=subprocess.PIPE, user=OWNER, extra_groups=[], cwd="/"
                ) as other:
                    assert other.stdout and other.stdout.readline()
                    if not swapped:
                        other.kill()
                        other.wait()
                    node.agent.send(op="prepare", spec=spec)
                    answer = _answer(node)
                    other.kill()
                found = secret.stat() if swapped else directory.lstat()
                node.agent.send(op="end", attempt=spec["attempt"], cause="DELETED", kill_delay=0, message="")
        reason = "".join(event.get("reason", "") for event in node.agent.events)
        return Told(found.st_uid == owner and (swapped or answer == "ready"), reason)

    return run


TWO_NAMES = (
    "import pwd; real = pwd.getpwnam; pwd.getpwnam = lambda name: real('root' if name == 'toor' else name)"
)
"""A node on which root is also called toor."""


def called(name: str) -> Try[NodeStage]:
    """A job of who is root there; the masters have let in whom they know by this name."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes(before=TWO_NAMES) as [node]:
            given = {"owner": name, "attempt": "9.hpcm#1", "go": True}
            node.agent.send(op="prepare", spec=kit.spec([node], stage.home, "id -u\n", **given))
            end = node.agent.wait(("refused", "ended"), "9.hpcm#1")
            node.agent.send(op="forget", attempt="9.hpcm#1")
            said = base64.b64decode(end.get("stdout_tail", "")).decode()
            return Told(said == "0\n", end.get("reason", ""))

    return run


OF_ROOT = [
    Case(
        "root's job by another name that he has on a node",
        called("toor"),
        called("root"),
        without("from hpcmesos.launch import owners; owners._check_root = lambda name, uid: None"),
    ),
    Case(
        "a link in place of a directory for MPS",
        served(swapped=True),
        served(swapped=False),
        without(MADE_BY_ROOT),
        silent=True,
    ),
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
    Case(
        "a stage-in to a path that climbs",
        staged(READABLE, "home/../private/made"),
        staged(READABLE, "home/../home/made"),
        without(AS_ROOT),
    ),
    Case(
        "a stage-in of a private file",
        staged("ROOT/private/secret", "home/made"),
        staged(READABLE, "home/made"),
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
