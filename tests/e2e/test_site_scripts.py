"""Prologue and epilogue, as Torque runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

# What each script was told: one file a run, which is whole as soon as it is there.
TELL = """#!/bin/sh
note="NOTES/$(basename "$0").$1.$PBS_NODENUM"
{
  echo "user=$(id -un)"
  for word in "$@"; do echo "arg=$word"; done
  env | sort
} >"$note.new"
mv "$note.new" "$note"
echo "out of $(basename "$0")"
echo "err of $(basename "$0")" >&2
"""


class Site:
    """A cluster and the directory of its scripts."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster
        self.scripts = cluster.state / "scripts"
        self.notes = cluster.root / "notes"
        self.notes.mkdir(mode=0o777)
        self.notes.chmod(0o777)

    def write(self, name: str, text: str = TELL) -> Path:
        self.scripts.mkdir(exist_ok=True)
        path = self.scripts / name
        path.write_text(text.replace("NOTES", str(self.notes)))
        path.chmod(0o755)
        return path

    def note(self, name: str, job: str, node: int = 0) -> tuple[str, list[str], dict[str, str]]:
        """User, arguments and environment of a run."""
        path = self.notes / f"{name}.{job}.{node}"
        wait_until(path.exists, str(path))
        lines = path.read_text().splitlines()
        arguments = [line.removeprefix("arg=") for line in lines if line.startswith("arg=")]
        environ = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("arg="))
        return environ["user"], arguments, environ

    def clear(self) -> None:
        for path in self.scripts.glob("*"):
            path.unlink()


@pytest.fixture(scope="module")
def cluster_with_scripts() -> Iterator[Site]:
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        yield Site(cluster)


@pytest.fixture
def site(cluster_with_scripts: Site) -> Iterator[Site]:
    yield cluster_with_scripts
    cluster_with_scripts.clear()


def test_names_arguments_and_environment(site: Site) -> None:
    own = site.cluster
    for kind in ("prologue", "epilogue"):
        for suffix in ("", ".user", ".parallel", ".user.parallel", ".extra"):
            site.write(f"{kind}{suffix}")
    job = own.qsub(
        "#!/bin/sh\necho script\nexit 5\n",
        *("-N", "named", "-A", "acct", "-T", "extra", "-l", "nodes=2:ppn=1:gpus=1,walltime=300"),
    )
    ended = own.wait(job)
    assert ended["Exit_status"] == 5
    root = "root" if os.getuid() == 0 else own.run("id", "-un").stdout.strip()
    user = own.user or root
    group = own.run("id", "-gn").stdout.strip()
    asked = ",".join(f"{name}={value}" for name, value in sorted(ended["Resource_List"].items()))
    script = f"{own.state}/agents/{ended['exec_host'].split('/')[0]}/attempts/{job}#1/script"
    told, arguments, environ = site.note("prologue", job)
    assert told == root
    assert arguments == [job, user, group, "named", asked, "batch", "acct", script]
    assert (environ["PBS_NUM_NODES"], environ["PBS_NP"], environ["PBS_NODENUM"]) == ("2", "2", "0")
    assert environ["PBS_MSHOST"] == ended["exec_host"].split("/")[0]
    assert environ["PBS_O_WORKDIR"] == str(own.work())
    assert environ["PBS_RESOURCE_NODES"] == "2:ppn=1:gpus=1"
    told, arguments, _ = site.note("epilogue", job)
    assert told == root
    assert len(arguments) == 11
    assert arguments[:4] == [job, user, group, "named"]
    assert int(arguments[4]) == ended["session_id"]
    assert arguments[5] == asked
    assert [part.split("=")[0] for part in arguments[6].split(",")] == ["cput", "mem", "walltime"]
    assert arguments[7:] == ["batch", "acct", "5", script]
    for name, who, node in (
        ("prologue.user", user, 0),
        ("epilogue.user", user, 0),
        ("prologue.extra", root, 0),
        ("epilogue.extra", root, 0),
        ("prologue.parallel", root, 1),
        ("epilogue.parallel", root, 1),
        ("prologue.user.parallel", user, 1),
        ("epilogue.user.parallel", user, 1),
    ):
        told, arguments, environ = site.note(name, job, node)
        assert (told, arguments[0], environ["PBS_NODENUM"]) == (who, job, str(node)), name
    before = "out of prologue\nout of prologue.extra\nout of prologue.user\n"
    after = "out of epilogue\nout of epilogue.extra\nout of epilogue.user\n"
    assert own.output(job, name="named") == f"{before}script\n{after}"
    assert own.output(job, name="named", kind="e") == (before + after).replace("out", "err")


@pytest.mark.parametrize(("options", "code"), [([], 0), (["-j", "oe"], 0)])
def test_a_job_has_scripts_of_its_own(site: Site, options: list[str], code: int) -> None:
    own = site.cluster
    for kind in ("before", "after"):
        path = own.work() / kind
        path.write_text(f"#!/bin/sh\necho {kind} $(id -un)\n")
        path.chmod(0o755)
    path = own.work()
    job = own.qsub(
        "#!/bin/sh\necho script\n", *options, "-l", f"prologue={path}/before,epilogue={path}/after"
    )
    assert own.wait(job)["Exit_status"] == code
    user = own.user or own.run("id", "-un").stdout.strip()
    assert own.output(job) == f"before {user}\nscript\nafter {user}\n"


def test_a_prologue_that_says_1_refuses_the_job(site: Site) -> None:
    own = site.cluster
    site.write("prologue", "#!/bin/sh\necho no licence for you >&2\nexit 1\n")
    site.write("epilogue")
    job = own.qsub("#!/bin/sh\ntouch ran\n", "-d", ".")
    ended = own.wait(job)
    assert ended["Exit_status"] == -1
    assert ended["comment"].endswith("prologue: exit code 1: no licence for you")
    assert not (own.work() / "ran").exists()
    assert site.note("epilogue", job)[1][9] == "-1"


def test_any_other_code_runs_it_elsewhere(site: Site) -> None:
    own = site.cluster
    site.write("prologue", '#!/bin/sh\n[ "$PBS_MSHOST" = node1 ] && exit 2\nexit 0\n')
    job = own.qsub("#!/bin/sh\nexit 4\n", "-l", "nodes=1:ppn=1")
    ended = own.wait(job)
    assert (ended["Exit_status"], ended["exec_host"]) == (4, "node2/0")


def test_a_parallel_prologue_refuses_for_all(site: Site) -> None:
    own = site.cluster
    site.write("prologue.parallel", "#!/bin/sh\nexit 1\n")
    job = own.qsub("#!/bin/sh\ntrue\n", "-l", "nodes=2")
    ended = own.wait(job)
    assert ended["Exit_status"] == -1
    assert "prologue.parallel: exit code 1" in ended["comment"]


def test_one_that_others_may_write_is_not_run(site: Site) -> None:
    own = site.cluster
    path = site.write("prologue", "#!/bin/sh\necho ran\n")
    path.chmod(0o777)
    job = own.qsub("#!/bin/sh\ntrue\n")
    held = wait_until(lambda: (seen := own.job(job))["job_state"] == "H" and seen, "held", 60)
    assert "prologue: not run, for others may write it" in held["comment"]
    assert own.run("qdel", job).returncode == 0


def test_what_a_deleted_job_was_in_is_ended(site: Site) -> None:
    own = site.cluster
    site.write("prologue", "#!/bin/sh\necho $$ >NOTES/pid\nexec sleep 1000\n")
    job = own.qsub("#!/bin/sh\ntrue\n")
    pid = int(
        wait_until(lambda: (site.notes / "pid").exists() and (site.notes / "pid").read_text(), "it runs")
    )
    assert own.run("qdel", job).returncode == 0
    own.wait(job)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the prologue is gone")


def test_one_that_takes_too_long_is_ended() -> None:
    with running(LiveCluster(agents=1, gpus=0)) as own:
        config = own.state / "agents" / "node1" / "agent.toml"
        own.down()
        config.write_text(config.read_text() + "site_script_timeout = 5.0\n")
        own.up()
        site = Site(own)
        site.write("epilogue", "#!/bin/sh\necho begun\nexec sleep 1000\n")
        job = own.qsub("#!/bin/sh\nexit 3\n")
        assert own.wait(job)["Exit_status"] == 3
        assert own.output(job) == "begun\n"
