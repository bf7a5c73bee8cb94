"""A real Docker Engine for tests, started by them, with an image built here from this machine's own programs."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.e2e.cluster_kit import wait_until

IMAGE = "hpcmesos-test:1"
_PROGRAMS = (
    *("sh", "bash", "cat", "env", "false", "grep", "hostname", "id", "ls", "mkdir"),
    *("nohup", "rm", "setsid", "sleep", "touch", "true"),
)
_MPI = ("mpiexec", "mpirun", "mpiexec.hydra", "hydra_pmi_proxy")


class NoEngine(Exception):
    """No dockerd runs on this machine."""


class Engine:
    """One dockerd with all that is its own in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"unix://{root}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Also again, over the containers that it left running."""
        words = [
            "dockerd", "--data-root", f"{self.root}/data", "--exec-root", f"{self.root}/exec",
            "--pidfile", f"{self.root}/pid", "--host", self.url,
            "--bridge=none", "--iptables=false", "--ip6tables=false", "--live-restore",
        ]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self.answers, f"dockerd answers; see {self.root}/log", 60)

    def answers(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise OSError(f"dockerd ended with {code}: {self.log()[-1:]}")
        try:
            return self.ask("GET", "/_ping", timeout=5) == b"OK"
        except (OSError, http.client.HTTPException):
            return False

    def log(self) -> list[str]:
        return (self.root / "log").read_text(errors="replace").splitlines()

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 30) -> bytes:
        """One request of the Engine's API; a text is JSON. Raises OSError when there is no good answer."""
        connection = http.client.HTTPConnection("docker", timeout=timeout)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout)
            connection.sock.connect(self.url.removeprefix("unix://"))
            headers = {"Content-Type": "application/json"} if isinstance(body, str) else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise OSError(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
        return content

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(30)

    def containers(self) -> list[str]:
        """Ids of all that there are."""
        return [str(container["Id"]) for container in json.loads(self.ask("GET", "/containers/json?all=1"))]

    def remove(self) -> None:
        """Everything of it; its containers' shims outlive a dockerd."""
        for container in self.containers():
            self.ask("DELETE", f"/containers/{container}?force=1")
        self.stop()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self.root))), reverse=True):
            subprocess.run(["umount", "-l", mount], check=True)
        shutil.rmtree(self.root)


def missing() -> str:
    """Why no Docker Engine can be started here; empty: it can."""
    if os.getuid() != 0:
        return "needs root: a Docker Engine"
    return "" if shutil.which("dockerd") else "no Docker Engine: dockerd is not installed"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One for a test module, which takes this over by ``engine = docker_kit.engine``; skips where none runs."""
    if why := missing():
        pytest.skip(why)
    try:
        with started() as found:
            yield found
    except NoEngine as error:
        pytest.skip(f"no Docker Engine: {error}")


@contextmanager
def started() -> Iterator[Engine]:
    """A running one with the test's image.

    Raises:
        NoEngine: it does not start here.
    """
    found = Engine(Path(tempfile.mkdtemp(prefix="hpcm-dockerd-", dir="/var/tmp")))
    try:
        found.start()
    except (OSError, AssertionError) as error:
        found.stop(signal.SIGKILL)
        shutil.rmtree(found.root, ignore_errors=True)
        raise NoEngine(str(error)) from error
    try:
        _import_image(found)
        yield found
    finally:
        found.remove()


def _import_image(found: Engine) -> None:
    path = found.root / "image.tar"
    with tarfile.open(path, "w") as archive:
        _fill(archive)
    repository, _, tag = IMAGE.partition(":")
    variables = {
        "PATH": "/opt/mpi/bin:/usr/bin",
        "PYTHONPATH": "/opt/mpi/python",
        "LD_LIBRARY_PATH": "/opt/mpi/lib",
        "MPI4PY_LIBMPI": "/opt/mpi/lib/libmpi.so.12",
        "OF_THE_IMAGE": "yes",
    }
    changes = [f"ENV {name}={value}" for name, value in variables.items()]
    query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": changes}, doseq=True)
    with path.open("rb") as file:
        found.ask("POST", f"/images/create?{query}", file, timeout=120)
    path.unlink()


def _fill(archive: tarfile.TarFile) -> None:
    """A root directory with a shell, some programs, Python and MPICH; merged /usr, as in Debian."""
    environment = Path(sys.executable).parent.parent
    for name in ("bin", "lib", "lib64"):
        _link(archive, f"/{name}", f"usr/{name}")
    for name in ("/tmp", "/etc", "/proc", "/sys", "/dev", "/home"):
        directory = tarfile.TarInfo(name.lstrip("/"))
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "/tmp" else 0o755
        archive.addfile(directory)
    _text(archive, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    _text(archive, "/etc/group", "root:x:0:\n")
    _text(archive, "/etc/image", "this is the image\n")
    files: dict[str, Path] = {}
    for name in _PROGRAMS:
        files[f"/usr/bin/{name}"] = Path(shutil.which(name) or "").resolve()
    python = Path(sys.executable).resolve()
    files[str(python)] = python
    if str(python) != "/usr/bin/python3":
        _link(archive, "/usr/bin/python3", str(python))
    files |= _tree(Path(sysconfig.get_path("stdlib")), sysconfig.get_path("stdlib"))
    site = Path(sysconfig.get_path("purelib"))
    files |= _tree(site / "mpi4py", "/opt/mpi/python/mpi4py")
    files |= {f"/opt/mpi/bin/{name}": environment / "bin" / name for name in _MPI}
    for path in (environment / "lib").iterdir():
        if not path.name.startswith("python"):
            files |= (
                _tree(path, f"/opt/mpi/lib/{path.name}")
                if path.is_dir()
                else {f"/opt/mpi/lib/{path.name}": path}
            )
    own = {path.name for path in (environment / "lib").rglob("*.so*")}  # and no other MPI's
    libraries = {
        to: path for to, path in _libraries(files).items() if path.name not in own and "/libmpi" not in to
    }
    for target, source in {**files, **libraries}.items():
        archive.add(source.resolve(), target.lstrip("/"), recursive=False)


def _tree(directory: Path, target: str) -> dict[str, Path]:
    left_out = {"test", "tests", "__pycache__", "site-packages", "dist-packages", "idlelib", "ensurepip"}
    return {
        f"{target}/{path.relative_to(directory)}": path
        for path in directory.rglob("*")
        if path.is_file() and not left_out & set(path.relative_to(directory).parts)
    }


def _libraries(files: dict[str, Path]) -> dict[str, Path]:
    """The shared libraries that these files name, at the places where the loader found them."""
    found: dict[str, Path] = {}
    for batch in _batches([str(path) for path in files.values() if _is_elf(path)], 100):
        done = subprocess.run(["ldd", *batch], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            path = next(
                (word for word in line.split() if word.startswith("/") and not word.endswith(":")), ""
            )
            if path and not path.startswith("/opt/"):
                found[_merged(path)] = Path(path)
    return found


def _merged(path: str) -> str:
    return f"/usr{path}" if path.startswith(("/lib/", "/lib64/")) else path


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _batches(words: list[str], size: int) -> Iterable[list[str]]:
    return (words[start : start + size] for start in range(0, len(words), size))


def _link(archive: tarfile.TarFile, path: str, target: str) -> None:
    link = tarfile.TarInfo(path.lstrip("/"))
    link.type, link.linkname, link.mode = tarfile.SYMTYPE, target, 0o777
    archive.addfile(link)


def _text(archive: tarfile.TarFile, path: str, text: str) -> None:
    member = tarfile.TarInfo(path.lstrip("/"))
    member.size, member.mode = len(text), 0o644
    archive.addfile(member, io.BytesIO(text.encode()))
