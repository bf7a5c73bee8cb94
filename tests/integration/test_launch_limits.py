"""What holds an attempt on its node: real cgroups, with real users, device nodes and a process that wants too much."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.agent import isolation
from tests.integration import shepherd_kit as kit
from tests.integration.shepherd_kit import Node

pytestmark = pytest.mark.root
MIB = 1 << 20
OWNER = "nobody"
HOG = f"""
import sys
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * {MIB})
print(len(held), flush=True)
"""


@pytest.fixture(scope="module")
def limits() -> Iterator[dict[str, Any]]:
    if os.getuid() != 0:
        pytest.skip("needs root: limits of cgroups")
    root = isolation.find_v2()
    if root is None or not kit.UNIFIED:
        pytest.skip("no cgroup v2")
    found = isolation.limits(("memory", "cpu", "devices", "pids=64"), root, "test", str(os.getpid()))
    yield found | {"devices": [195] if "devices" in found["v1"] else []}
    for group in found["v1"].values():
        isolation.remove(Path(group))


@pytest.fixture
def place() -> Iterator[Path]:
    """Where its owner may write."""
    directory = Path(tempfile.mkdtemp(prefix="hpcm-limits-", dir="/var/lib"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def node(limits: dict[str, Any], place: Path) -> Iterator[Node]:
    state = place / "state"
    state.mkdir()
    with kit.cluster(state, ["n1"], cgroups=True, limits=limits) as (one,):
        yield one


def end(node: Node, place: Path, script: str, **changes: Any) -> dict[str, Any]:
    """Runs it as a user; the end's report."""
    changes = {"owner": OWNER, "workdir": "/"} | changes
    with kit.runs([node], place) as start:
        member = node.member() | changes.pop("member", {})
        run = start("#!/bin/sh\n" + script, members=[member], **changes)
        return run.ended(timeout=30) | {"text": run.tail("stdout"), "errors": run.tail("stderr")}


def test_memory_hog_ends_with_oom_and_nobody_else_does(
    node: Node, place: Path, limits: dict[str, Any]
) -> None:
    if not limits.get("memory"):
        pytest.skip("no memory controller")
    (place / "hog.py").write_text(HOG)
    command = f"exec {sys.executable} {place}/hog.py"
    member = node.member() | {"mem": 64 * MIB}
    with kit.runs([node], place) as start:
        hog = start(f"#!/bin/sh\n{command} 256\n", owner=OWNER, workdir="/", members=[member])
        neighbour = start(f"#!/bin/sh\n{command} 16\n", owner=OWNER, workdir="/", members=[member])
        assert (hog.ended()["cause"], hog.ended()["signal"]) == ("OOM", 9)
        assert (
            hog.ended()["message"]
            == f"it wanted more memory than it had asked for: 64 MiB on {member['node']}"
        )
        assert hog.ended()["usage"]["mem"] < 100 * MIB
        assert (neighbour.ended()["cause"], neighbour.ended()["code"]) == ("OK", 0)
    kept = end(node, place, command + " 256\n")
    assert kept["cause"] == "OK", "without -l mem= there is no limit"


def test_number_of_processes(node: Node, place: Path, limits: dict[str, Any]) -> None:
    if not limits.get("pids"):
        pytest.skip("no pids controller")
    fork = "import os, time\nfor _ in range(100):\n  os.fork() or time.sleep(30)"
    ended = end(node, place, f"{sys.executable} -c '{fork}'\n")
    assert ended["code"] == 1
    assert "BlockingIOError" in ended["errors"]


def test_cpu_shares_follow_the_cpus(node: Node, place: Path, limits: dict[str, Any]) -> None:
    group = limits["v1"].get("cpu")
    if group is None:
        pytest.skip("no cpu controller of v1")
    ended = end(node, place, f"cat {group}/1.hpcm#1/cpu.shares\n", attempt="1.hpcm#1", member={"cpus": 3})
    assert ended["text"] == "3072\n"


@pytest.fixture
def cards(place: Path) -> list[str]:
    """nvidia0, nvidia1, nvidiactl, as the driver's own; nobody drives them, so that who may open them gets ENXIO."""
    found = []
    for name, minor in (("nvidia0", 0), ("nvidia1", 1), ("nvidiactl", 255)):
        path = place / name
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(195, minor))
        path.chmod(0o666)
        found.append(str(path))
    return found


@pytest.mark.parametrize(
    ("minors", "allowed"), [((), ()), ((0,), (0, 2)), ((1,), (1, 2)), ((0, 1), (0, 1, 2))]
)
def test_a_job_opens_its_own_cards_alone(
    node: Node,
    place: Path,
    limits: dict[str, Any],
    cards: list[str],
    minors: tuple[int, ...],
    allowed: tuple[int, ...],
) -> None:
    if not limits["devices"]:
        pytest.skip("no devices controller of v1")
    (place / "open.py").write_text(kit.OPEN)
    gpus = [{"uuid": f"GPU-{minor}", "index": minor, "model": "", "simulated": False} for minor in minors]
    words = f"CUDA_VISIBLE_DEVICES=GPU-0,GPU-1 {sys.executable} {place}/open.py {' '.join(cards)}\n"
    ended = end(node, place, words, minors=list(minors), member={"gpus": gpus})
    seen = ended["text"].split()
    assert len(seen) == 3, ended
    for number, outcome in enumerate(seen):
        assert outcome in (("opened", "ENXIO") if number in allowed else ("EPERM",)), (number, seen)


def test_docker_may_make_its_groups_in_an_attempts(
    node: Node, place: Path, limits: dict[str, Any], cards: list[str]
) -> None:
    """What it writes into each (runc does so first): nothing but what follows, and every node may be made."""
    if not limits["devices"]:
        pytest.skip("no devices controller of v1")
    gpus = [{"uuid": "GPU-0", "index": 0, "model": "", "simulated": False}]
    with kit.runs([node], place) as start:
        member = node.member() | {"gpus": gpus}
        run = start("#!/bin/sh\nsleep 1000\n", owner=OWNER, workdir="/", members=[member], minors=[0])
        run.started()
        child = Path(limits["v1"]["devices"], run.attempt, "container")
        child.mkdir()
        for file, rule in (("deny", "a"), ("allow", "c *:* m"), ("allow", "b *:* m"), ("allow", "c 1:3 rwm")):
            (child / f"devices.{file}").write_text(rule)
        assert "c *:* m" in (child / "devices.list").read_text()
        with pytest.raises(PermissionError):
            (child / "devices.allow").write_text("c 195:1 r")
        run.end(kill_delay=0.0)
        run.ended()
    kit.wait_until(lambda: not child.parent.exists(), "the attempt's group is gone, with what was made in it")


CAPS = 511
"""A major that no driver has."""


def test_a_job_opens_its_own_instances_alone(limits: dict[str, Any], place: Path, cards: list[str]) -> None:
    """Of two MIG instances of a card and one of another: the card, and the devices of the granted instance.

    The others' are closed also for those that are made while it runs: gpu0/gi8. Of gpu9 there is no card.
    """
    if not limits["devices"]:
        pytest.skip("no devices controller of v1")
    told = place / "capabilities"
    files = ["gpu0/mig/gi7/access", "gpu0/mig/gi7/ci0/access", "gpu0/mig/gi9/access", "gpu1/mig/gi7/access"]
    later = ["gpu0/mig/gi8/access", "gpu9/mig/gi7/access"]
    minors = place / "mig-minors"
    lines = [f"{name.replace('mig/', '')} {minor}\n" for minor, name in enumerate(files + later, 3)]
    minors.write_text("".join(["config 1\n", "monitor 2\n", *lines]))
    for minor, name in enumerate(files + later, 3):
        if name in files:
            (told / name).parent.mkdir(parents=True, exist_ok=True)
            (told / name).write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
        path = place / f"cap{minor}"
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(CAPS, minor))
        path.chmod(0o666)
        cards.append(str(path))
    (place / "open.py").write_text(kit.OPEN)
    state = place / "state"
    state.mkdir()
    caps = limits | {"caps": {"major": CAPS, "directory": str(told), "minors": str(minors)}}
    gpus = [{"uuid": "MIG-1", "index": 0, "model": "", "simulated": False}]
    words = f"{sys.executable} {place}/open.py {' '.join(cards)}\n"
    with kit.cluster(state, ["n1"], cgroups=True, limits=caps) as (one,):
        ended = end(one, place, words, minors=[0], instances=[[0, 7, 0]], member={"gpus": gpus})
        whole = end(one, place, words, minors=[0], member={"gpus": gpus}, attempt="99.hpcm#1")
    denied = [outcome == "EPERM" for outcome in ended["text"].split()]
    assert denied == [False, True, False, False, False, True, True, True, False], ended
    closed = [o == "EPERM" for o in whole["text"].split()]
    assert closed == [False, True, False, True, True, True, True, True, False]


def test_card_without_a_known_device_is_refused(node: Node, place: Path, limits: dict[str, Any]) -> None:
    if not limits["devices"]:
        pytest.skip("no devices controller of v1")
    gpus = [{"uuid": "GPU-0", "index": 0, "model": "", "simulated": False}]
    value = kit.spec([node], place, "true\n", attempt="77.hpcm#1", members=[node.member() | {"gpus": gpus}])
    node.agent.send(op="prepare", spec=value)
    assert "NVML does not tell" in node.agent.wait("refused", "77.hpcm#1")["reason"]


def test_limits_leave_nothing(node: Node, place: Path, limits: dict[str, Any]) -> None:
    end(node, place, "true\n", member={"mem": 64 * MIB})
    for group in limits["v1"].values():
        left = [path for path in Path(group).iterdir() if path.is_dir()]
        assert not left


def test_private_tmp(limits: dict[str, Any], place: Path) -> None:
    state = place / "state"
    state.mkdir()
    with kit.cluster(state, ["n1"], cgroups=True, private_tmp=True) as (node,):
        mark = f"hpcm-{os.getpid()}"
        words = f"echo $TMPDIR > /tmp/{mark}; ls /tmp /var/tmp; cat $TMPDIR/{mark}; id -u\n"
        ended = end(node, place, words)
    own = ended["text"].splitlines()
    assert own[:4] == ["/tmp:", mark, "", "/var/tmp:"], ended
    assert own[-2].startswith(str(state))
    assert own[-1] == str(pwd.getpwnam(OWNER).pw_uid)
    assert not Path("/tmp", mark).exists()


def test_files_are_staged_into_and_out_of_the_private_tmp(limits: dict[str, Any], place: Path) -> None:
    """What the job calls /tmp/... is its own; what comes and goes there is the host's."""
    state, mark = place / "state", f"hpcm-{os.getpid()}"
    state.mkdir()
    source, target = Path("/tmp", f"{mark}.source"), Path("/var/tmp", f"{mark}.target")
    source.write_text("from the host\n")
    try:
        with kit.cluster(state, ["n1"], cgroups=True, private_tmp=True) as (node,):
            ended = end(
                node,
                place,
                f"ls /tmp; cat /tmp/{mark} && echo 'from the job' > /var/tmp/{mark}.made\n",
                stagein=[{"local": f"/tmp/{mark}", "host": None, "remote": str(source)}],
                stageout=[{"local": f"/var/tmp/../tmp/{mark}.made", "host": None, "remote": str(target)}],
            )
        assert (ended["text"], ended["code"]) == (f"{mark}\nfrom the host\n", 0), ended
        assert target.read_text() == "from the job\n"
        assert not Path("/tmp", mark).exists()
        assert not Path("/var/tmp", f"{mark}.made").exists()
    finally:
        source.unlink()
        target.unlink(missing_ok=True)


def test_the_owners_prologue_sees_the_private_tmp(limits: dict[str, Any], place: Path) -> None:
    state, mark = place / "state", f"hpcm-{os.getpid()}.prologue"
    state.mkdir()
    prologue = place / "prologue.sh"
    prologue.write_text(f"#!/bin/sh\necho prepared > /tmp/{mark}\n")
    prologue.chmod(0o755)
    with kit.cluster(state, ["n1"], cgroups=True, private_tmp=True) as (node,):
        ended = end(node, place, f"cat /tmp/{mark}\n", resource_list={"prologue": str(prologue)})
    assert ended["text"] == "prepared\n", ended
    assert not Path("/tmp", mark).exists()


def test_a_dead_shepherd_leaves_no_group(node: Node, place: Path, limits: dict[str, Any]) -> None:
    with kit.runs([node], place) as start:
        member = node.member() | {"mem": 64 * MIB}
        run = start("#!/bin/sh\nsleep 1000\n", owner=OWNER, workdir="/", members=[member])
        pid = run.started()["pid"]
        node.kill()
        node.start()
        assert run.ended()["cause"] == "NODE_LOST"
    assert not kit.is_alive(pid)
    for group in limits["v1"].values():
        assert not [path for path in Path(group).iterdir() if path.is_dir()]
