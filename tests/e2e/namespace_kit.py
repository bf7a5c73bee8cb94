"""Hosts for tests, made of namespaces: each with its own network, name, ``/etc/hosts`` and ``/dev/shm``.

    with Hosts(["head", "mfa", "mfb"]) as hosts:
        hosts["mfa"].run(["ping", "mfb"])
        hosts.cut("mfa", "mfb")

They share processes, users and all other files. Their network is a bridge in a namespace of its own, so that nothing
appears on the machine itself, no firewall of its stands between them, and no packet leaves. Each namespace lives
by one holder, a ``cat`` that ends with the test's process: even a killed test leaves no namespace.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

NAMESPACES = ("net", "uts", "ipc", "mnt")
_UNSHARE = ("unshare", "--net", "--uts", "--ipc", "--mount")
_ENTER = ("--net", "--uts", "--ipc", "--mount")
_HOST = """
set -e
hostname "$1"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
echo ready
exec cat
"""
_SWITCH = """
set -e
ip link add br0 type bridge
ip link set br0 addrgenmode none up
echo ready
exec cat
"""
_NOBODY = "02:00:00:00:00:ff"
"""A hardware address that no host has: the bridge passes such frames on, and everyone drops them without a word."""
_networks = itertools.count(os.getpid())


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot have such hosts; None when it can."""
    if os.geteuid() != 0:
        return "needs root: hosts made of network namespaces"
    missing = [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]
    if missing:
        return f"no {' and no '.join(missing)}: hosts made of network namespaces"
    probe = subprocess.run(
        [*_UNSHARE, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return f"needs root that may make namespaces: {probe.stderr.strip()}" if probe.returncode else None


class _Holder:
    """A process that keeps its new namespaces alive."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", script, "sh", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            with self.process:
                raise RuntimeError(f"no namespaces: {self.process.communicate()[1]}")
        self.namespaces = frozenset(os.readlink(f"/proc/{self.pid}/ns/{kind}") for kind in NAMESPACES)


class Host:
    """One of ``Hosts``: a name, an address, and a way to run programs there."""

    def __init__(self, name: str, address: str, holder: _Holder) -> None:
        self.name = name
        self.address = address
        self.holder = holder
        self.started: list[subprocess.Popen[Any]] = []

    @property
    def namespaces(self) -> frozenset[str]:
        """As ``/proc/PID/ns`` shows them: ``net:[4026532288]``."""
        return self.holder.namespaces

    def command(self, argv: Sequence[str | Path], cwd: str | Path | None = None) -> list[str]:
        """The words that run ``argv`` on this host; the process is the program itself, with its pid and its end."""
        enter = shutil.which("nsenter") or "nsenter"
        place = f"--wdns={cwd or Path.cwd()}"
        return [enter, f"--target={self.holder.pid}", *_ENTER, place, "--", *map(str, argv)]

    def popen(
        self, argv: Sequence[str | Path], *, cwd: str | Path | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` on this host; what still runs when the hosts go is killed and reaped."""
        process = subprocess.Popen(self.command(argv, cwd), **options)
        self.started.append(process)
        return process

    def run(
        self, argv: Sequence[str | Path], *, cwd: str | Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """``subprocess.run`` on this host: unless told otherwise text, checked, captured, and within 60 s."""
        usual = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "check": True,
            "timeout": 60,
        }
        return subprocess.run(self.command(argv, cwd), **(usual | options))

    def processes(self) -> list[int]:
        """All that run on this host, daemons and the holder included."""
        return inhabitants(self.namespaces)

    def crash(self) -> None:
        """Kills all processes but the holder: the host stays, with its network, and resets their connections.

        All are stopped before the first is killed, for a host's processes die at once: a shepherd that sees its job's
        others die would still answer that it is there.
        """
        stopped: set[int] = set()
        while running := {pid for pid in self.processes() if pid != self.holder.pid} - stopped:
            for pid in running:
                _kill(pid, self.namespaces, signal.SIGSTOP)
            stopped |= running
        while pids := [pid for pid in self.processes() if pid != self.holder.pid]:
            for pid in pids:
                _kill(pid, self.namespaces)


class Hosts:
    """Hosts that reach each other, and nothing else, by address and by name. Skips the test where that cannot be."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        network = f"10.77.{next(_networks) % 256}"
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(names, 1)}
        self.hosts: dict[str, Host] = {}
        self._holders: list[_Holder] = []
        self._cuts: set[tuple[str, str]] = set()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def __enter__(self) -> Self:
        if reason := why_not():
            pytest.skip(reason)
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        switch = self._hold(_SWITCH)
        with tempfile.NamedTemporaryFile("w", prefix="hosts-", buffering=1) as table:
            # The bind mounts keep the file alive when its name is gone.
            table.write("127.0.0.1 localhost\n")
            table.writelines(f"{address} {name}\n" for name, address in self.addresses.items())
            table.flush()
            Path(table.name).chmod(0o644)
            for name, address in self.addresses.items():
                self.hosts[name] = Host(name, address, self._hold(_HOST, name, table.name))
        for number, host in enumerate(self):
            plug = f"port{number}"
            pair = ["type", "veth", "peer", "name", "eth0", "netns", str(host.holder.pid)]
            _ip(switch, "link", "add", plug, *pair)
            _ip(switch, "link", "set", plug, "master", "br0", "addrgenmode", "none", "up")
            _ip(host.holder, "address", "add", f"{host.address}/24", "dev", "eth0")
            # Without addresses of version 6 there is no second way past a cut.
            _ip(host.holder, "link", "set", "eth0", "addrgenmode", "none", "up")

    def _hold(self, script: str, *arguments: str) -> _Holder:
        holder = _Holder(script, *arguments)
        self._holders.append(holder)
        return holder

    def cut(self, name: str, other: str | None = None) -> None:
        """Black-holes the link between two hosts, or between one and all others: no packet, no reset, no error."""
        others = [other] if other else [each for each in self.names if each != name]
        for pair in ((name, each) for each in others):
            for here, there in (pair, pair[::-1]):
                entry = [self.addresses[there], "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent"]
                _ip(self.hosts[here].holder, "neighbour", "replace", *entry)
                self._cuts.add((here, there))

    def mend(self, name: str | None = None, other: str | None = None) -> None:
        """Undoes all cuts, or those of one host, or between two; what TCP had in flight comes by retransmission."""
        wanted = {each for each in (name, other) if each}
        for here, there in [cut for cut in self._cuts if wanted <= set(cut)]:
            _ip(self.hosts[here].holder, "neighbour", "delete", self.addresses[there], "dev", "eth0")
            self._cuts.discard((here, there))

    @contextlib.contextmanager
    def slowed(self, name: str, rate: str) -> Iterator[None]:
        """What comes to that host comes at no more than this rate, as tc has it ("16mbit"); where the kernel can."""
        port = ["dev", f"port{self.names.index(name)}", "root"]
        limit = ["tbf", "rate", rate, "burst", "128kb", "latency", "400ms"]
        done = _tc(self._holders[0], "add", *port, *limit)
        try:
            yield
        finally:
            if done:
                assert _tc(self._holders[0], "delete", *port)

    def close(self) -> None:
        """Kills whatever runs on the hosts; with the last process go namespaces, links and mounts."""
        namespaces = frozenset[str]().union(*(holder.namespaces for holder in self._holders))
        while pids := inhabitants(namespaces):
            for pid in pids:
                _kill(pid, namespaces)
        started = [process for host in self for process in host.started]
        for process in (*started, *(holder.process for holder in self._holders)):
            with contextlib.suppress(BrokenPipeError), process:
                pass
        self.hosts.clear()
        self._holders.clear()
        self._cuts.clear()


def inhabitants(namespaces: frozenset[str]) -> list[int]:
    """The processes that are in one of the namespaces."""
    return [
        int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _lives_in(int(entry), namespaces)
    ]


def _lives_in(pid: int, namespaces: frozenset[str]) -> bool:
    with contextlib.suppress(OSError):  # it has ended
        return any(os.readlink(f"/proc/{pid}/ns/{kind}") in namespaces for kind in NAMESPACES)
    return False


def _kill(pid: int, namespaces: frozenset[str], number: signal.Signals = signal.SIGKILL) -> None:
    """Sends that to the process; SIGKILL: and waits for its end. The descriptor makes sure that it is not another one
    of the same pid.
    """
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _lives_in(pid, namespaces):
                signal.pidfd_send_signal(descriptor, number)
                if number is signal.SIGKILL:
                    ended, _, _ = select.select([descriptor], [], [], 10)
                    assert ended, f"process {pid} does not end"
        finally:
            os.close(descriptor)


def _ip(holder: _Holder, *words: str) -> None:
    """Debian's ``ip`` in the network of the holder."""
    command = ["nsenter", f"--target={holder.pid}", "--net", "ip", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {result.stderr.strip()}")


def _tc(holder: _Holder, *words: str) -> bool:
    """Debian's ``tc qdisc`` in the network of the holder; False: it cannot."""
    command = ["nsenter", f"--target={holder.pid}", "--net", "tc", "qdisc", *words]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
