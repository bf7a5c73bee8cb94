"""Jobs of another user than the shepherd's: identity, files, and what he cannot reach."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos.launch import enclosure

from . import shepherd_kit as kit

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
USER = pwd.getpwnam("nobody")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user's that he can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    directory.chmod(0o711)
    home = directory / "home"
    home.mkdir()
    os.chown(home, USER.pw_uid, USER.pw_gid)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("cgroups", [True, False])
def test_everything_is_the_owners(place: Path, cgroups: bool) -> None:
    if cgroups and not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    script = "id -un; id -G; umask; echo $HOME $USER; cat $PBS_NODEFILE; touch $TMPDIR/x; ls -ld $PBS_JOBDIR; exit 3\n"
    with kit.cluster(place, ["node1", "node2"], cgroups) as nodes:
        node = nodes[0]
        home = place / "home"
        run = kit.Run(nodes, kit.spec(nodes, home, script, owner="nobody", umask=0o077, shell="/bin/sh"))
        assert run.ended()["code"] == 3, run.tail("stderr")
        lines = run.tail("stdout").splitlines()
        assert lines[0] == "nobody"
        assert set(lines[1].split()) == {str(g) for g in os.getgrouplist("nobody", USER.pw_gid)}
        assert lines[2:4] == ["0077", f"{USER.pw_dir} nobody"]
        assert lines[6].startswith("drwx------") and " nobody " in lines[6]
        for name in ("out", "err"):
            status = (home / name).stat()
            assert (status.st_uid, status.st_mode & 0o777) == (USER.pw_uid, 0o600)
        assert (node.state / "journal").stat().st_mode & 0o777 == 0o700
        far = '"$(dirname $(command -v mpiexec))/pbs_tmrsh" -n node2 "id -un; id -G"\n'
        run = kit.Run(nodes, kit.spec(nodes, home, far, owner="nobody", attempt="13.hpcm#1"))
        assert run.ended()["code"] == 0, run.tail("stderr")
        assert run.tail("stdout").splitlines()[0] == "nobody"
        for one in ("12.hpcm#1", "13.hpcm#1"):
            node.agent.send(op="forget", attempt=one)
        attempts = node.state / "attempts"
        kit.wait_until(lambda: not list(attempts.glob("[!.]*")), "the directories are removed")


def test_output_is_opened_with_the_owners_rights(place: Path) -> None:
    with kit.cluster(place, ["node1"], False) as [node]:
        value = kit.spec(
            [node], place / "home", "echo text\n", owner="nobody", stdout=str(place / "forbidden")
        )
        run = kit.Run([node], value)
        ended = run.ended()
        assert f"{place}/forbidden: Permission denied" in ended["undelivered"]
        assert run.tail("stdout") == "text\n"
        assert not (place / "forbidden").exists()


def test_strangers_cannot_enter_a_job(place: Path) -> None:
    """Another user who copies a job's environment is nobody to the shepherd."""
    with kit.cluster(place, ["node1"], False) as [node]:
        value = kit.spec([node], place / "home", "until test -e stop; do sleep 0.01; done\n", owner="nobody")
        run = kit.Run([node], value)
        pid = run.started()["pid"]

        def environ() -> dict[str, str]:
            words = Path(f"/proc/{pid}/environ").read_text().split("\0")
            return dict(word.split("=", 1) for word in words if "=" in word)

        # The start is told before the shell is there.
        kit.wait_until(lambda: "HPCMESOS_ATTEMPT" in environ(), "the shell of the job")
        stolen = environ()
        shell = str(node.state / "bin" / "pbs_tmrsh")
        user = pwd.getpwnam("daemon")
        result = subprocess.run(
            [shell, "-n", "node1", "id"],
            env=stolen,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert (result.returncode, result.stdout) == (255, "")
        assert "belongs to no job" in result.stderr
        (place / "home" / "stop").touch()
        run.ended()


def test_nobody_belongs_to_anothers_attempt_for_what_he_says() -> None:
    """Without cgroups a process is known by its environment, which anybody writes as he likes."""
    marker = "HPCMESOS_SOCKET=/of/this/test"
    trees = enclosure.Trees(marker)
    victim = enclosure.Tree(trees, "1.hpcm#1", 0)
    own = enclosure.Tree(trees, "2.hpcm#1", USER.pw_uid)
    name, _, value = marker.partition("=")
    environ = {name: value, "HPCMESOS_ATTEMPT": "1.hpcm#1"}
    with subprocess.Popen(
        ["/bin/sleep", "60"], env=environ, user=USER.pw_uid, start_new_session=True
    ) as liar:
        try:
            own.adopt(liar.pid)
            kit.wait_until(lambda: kit.environment_of(liar.pid) and trees.owner_of(liar.pid), "the program")
            assert (liar.pid in victim.pids(), liar.pid in own.pids()) == (False, True)
            assert trees.owner_of(liar.pid) == "2.hpcm#1"
        finally:
            liar.kill()
