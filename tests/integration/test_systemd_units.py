"""The units that docs/systemd offers, under a real systemd."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import systemd_kit
from tests.integration.shepherd_kit import wait_until
from tests.integration.systemd_kit import Systemd

UNITS = Path(__file__).parents[2] / "docs" / "systemd"


@pytest.fixture
def host() -> Iterator[Systemd]:
    if why := systemd_kit.missing():
        pytest.skip(why)
    with systemd_kit.systemd() as one:
        yield one


def systemctl(host: Systemd, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        host.inside(["systemctl", *words]), capture_output=True, text=True, check=False, timeout=30
    )


def install(host: Systemd, unit: str) -> None:
    """Without the rest of a host's boot, for which there is no room here."""
    place = Path(f"/proc/{host.init}/root/run/systemd/system")
    shutil.copy(UNITS / unit, place)
    (place / f"{unit}.d").mkdir()
    (place / f"{unit}.d" / "alone.conf").write_text("[Unit]\nDefaultDependencies=no\n")
    assert systemctl(host, "daemon-reload").returncode == 0


def test_the_jobs_unit_is_not_stopped_under_jobs(host: Systemd) -> None:
    install(host, "hpcmesos-jobs.service")
    assert systemctl(host, "start", "hpcmesos-jobs").returncode == 0
    attempts = host.group / "hpcmesos.slice" / "hpcmesos-jobs.service" / "attempts"
    wait_until(attempts.is_dir, "the unit has made the place of the jobs")
    (attempts / "1.hpcm#1").mkdir()
    with subprocess.Popen(["sleep", "600"]) as job:
        try:
            (attempts / "1.hpcm#1" / "cgroup.procs").write_text(str(job.pid))
            for verb in ("restart", "stop", "try-restart"):
                refused = systemctl(host, verb, "hpcmesos-jobs")
                assert refused.returncode != 0, verb
                assert "refuse" in refused.stderr
            assert systemctl(host, "is-active", "hpcmesos-jobs").stdout == "active\n"
            assert Path(f"/proc/{job.pid}/cgroup").read_text().rstrip().endswith("/attempts/1.hpcm#1")
        finally:
            job.kill()
