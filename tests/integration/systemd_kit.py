"""A real systemd as process 1 of namespaces of its own, with nothing but cgroup v2; it starts no service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.shepherd_kit import UNIFIED, wait_until

_SYSTEMD = "/lib/systemd/systemd"
_INTO = ("sh", "-c", 'echo $$ >"$1"/cgroup.procs; shift; exec "$@"', "sh")
_NODES = (
    *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)),
    *(("nvidia0", 195, 0), ("nvidia1", 195, 1), ("nvidiactl", 195, 255)),
)
_INIT = f"""set -e
mount --make-rprivate /
mount --bind /etc /etc
mount -o remount,ro,bind /etc
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount -t tmpfs -o mode=755 tmpfs /dev
cd /dev
{"; ".join(f"mknod -m 666 {name} c {major} {minor}" for name, major, minor in _NODES)}
mkdir pts shm
cd /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/hpcm.target
exec env container=hpcm {_SYSTEMD} --system --unit=hpcm.target --log-target=console
"""


def missing() -> str:
    """Why there is none here; empty: there is."""
    if os.getuid() != 0:
        return "needs root: systemd as process 1 of a namespace"
    if not os.access(_SYSTEMD, os.X_OK) or shutil.which("systemd-run") is None:
        return "no systemd"
    return "" if UNIFIED else "no cgroup v2"


class Systemd:
    """``cards``: device files inside, as the driver's own, that nobody drives: who may open them gets ENXIO."""

    cards = ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl")

    def __init__(self, log: Path) -> None:
        self.log = log
        self.group = Path(UNIFIED, f"hpcmesos-systemd-{os.getpid()}")
        self.group.mkdir()
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc"]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*_INTO, str(self.group), "unshare", *namespaces, "sh", "-c", _INIT],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def start(self) -> None:
        wait_until(self._ready, f"systemd runs; see {self.log.read_text(errors='replace')[-500:]}", 60)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        if not (self.group / "init.scope").is_dir():
            return False
        done = subprocess.run(
            self.inside(["systemctl", "is-system-running"]), capture_output=True, check=False
        )
        return done.stdout.strip() in (b"running", b"degraded")

    @property
    def init(self) -> int:
        """Its pid, as seen from here."""
        return child_of(self._process.pid)

    def inside(self, words: list[str]) -> list[str]:
        """The command that runs ``words`` as a process of that host."""
        return ["nsenter", "-t", str(self.init), "-m", "-p", "-C", "--", *words]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        (self.group / "cgroup.kill").write_text("1")
        wait_until(lambda: "populated 0" in (self.group / "cgroup.events").read_text(), "all are gone")
        for directory in sorted(self.group.rglob("*/"), reverse=True):
            directory.rmdir()
        self.group.rmdir()


def child_of(pid: int) -> int:
    """The only child of a process; 0: none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@contextmanager
def systemd() -> Iterator[Systemd]:
    """Up, and everything gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="hpcm-systemd-"))
    one = Systemd(place / "log")
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(place)
