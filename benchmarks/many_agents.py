"""2,000 agents on one leader: heartbeats, and jobs at a steady rate; how much of a core does the leader take?

The agents are simulated: links, certificates and messages are those of real ones, but there is no process behind an
attempt; it is ready and over at once. Jobs come by `Client.submit_many`, so many a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

from kit import Bench, cpu_seconds, machine

from hpcmesos import wire
from hpcmesos.client import Client
from hpcmesos.master import pki


class Agent(asyncio.Protocol):
    """One link, from hello on."""

    def __init__(self, hello: wire.Hello, counts: dict[str, int]) -> None:
        self._hello = hello
        self._counts = counts
        self._buffer = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._say(self._hello)

    def connection_lost(self, exc: Exception | None) -> None:
        self._counts["lost"] += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) < 4 + size:
                return
            message = wire.decode_to_agent(bytes(self._buffer[4 : 4 + size]))
            del self._buffer[: 4 + size]
            self._hear(message)

    def _hear(self, message: wire.ToAgent) -> None:
        match message:
            case wire.Welcome():
                self._counts["welcome"] += 1
            case wire.Ping(nonce=nonce):
                self._say(wire.Pong(nonce=nonce, load=0.1, memory_free=1 << 30))
            case wire.Prepare(attempt=attempt):
                self._say(wire.Ready(attempt=attempt))
            case wire.Go(attempt=attempt):
                now = time.time()
                self._say(wire.Started(attempt=attempt, pid=1, started_at=now))
                usage = {"cput": 0.0, "mem": 0.0, "walltime": 0.0}
                times = {"started_at": now, "ended_at": now}
                self._say(wire.Ended(attempt=attempt, head=True, cause="OK", code=0, usage=usage, **times))
            case wire.End(attempt=attempt, cause=cause):
                self._say(wire.Ended(attempt=attempt, head=True, cause=cause))

    def _say(self, message: wire.ToLeader) -> None:
        self._transport.write(wire.encode(message))


async def simulate(address: str, state: Path, count: int, ready: Any, stop: Any) -> None:
    """Links of ``count`` agents until ``stop`` is set."""
    ca = pki.ensure_ca(state / "master")
    host, _, port = address.rpartition(":")
    counts = {"welcome": 0, "lost": 0}
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(count):
            node = f"sim{number}"
            context = credentials(ca, node, Path(directory))
            inventory = wire.Inventory(cpus=4, memory=16 << 30, declared=True)
            hello = wire.Hello(
                protocol=wire.PROTOCOL,
                node=node,
                boot_id=f"boot-{number}",
                address=f"10.{number >> 16}.{(number >> 8) & 255}.{number & 255}",
                peer_port=7000,
                version="simulated",
                inventory=inventory,
            )
            await loop.create_connection(
                lambda hello=hello: Agent(hello, counts), host, int(port), ssl=context
            )
    while counts["welcome"] < count:
        await asyncio.sleep(0.05)
    ready.set()
    while not stop.is_set():
        await asyncio.sleep(0.1)
    if counts["lost"]:
        print(f"{counts['lost']} links were lost")


def credentials(ca: pki.Ca, node: str, directory: Path) -> ssl.SSLContext:
    key, csr = pki.create_csr(node)
    certificate, key_file = directory / "certificate", directory / "key"
    certificate.write_text(pki.sign(ca, pki.read_csr(csr, node), "agent"))
    key_file.write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca.path)
    context.load_cert_chain(certificate, key_file)
    return context


def run(*arguments: Any) -> None:
    asyncio.run(simulate(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--rate", type=int, default=100, help="jobs a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="hpcmesos-bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        with bench.up(1, 0):
            figures = measure(bench, options)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    with Client(socket=bench.socket) as client:
        client.command("pbsnodes", ["-o", "node1"])  # jobs are for the simulated ones
        ready, stop = multiprocessing.Event(), multiprocessing.Event()
        address = client.leader().address
        words = (address, bench.state, options.agents, ready, stop)
        agents = multiprocessing.Process(target=run, args=words)
        agents.start()
        while not ready.wait(1.0):
            if not agents.is_alive():
                raise SystemExit("the simulated agents ended")
        idle = leader_share(bench, 10.0)
        begun, before = time.monotonic(), cpu_seconds(bench.state)
        last = ""
        for second in range(options.seconds):
            last = client.submit_many([["--", "/bin/true"]] * options.rate)[-1]
            time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
        seconds, after = time.monotonic() - begun, cpu_seconds(bench.state)
        client.wait(last, timeout=60)
        behind = time.monotonic() - begun - seconds
        count = options.rate * options.seconds
        with bench.database() as connection:
            ended = connection.execute("SELECT count(*) FROM jobs WHERE state = 'C'").fetchone()
        stop.set()
        agents.join()
    return {
        "machine": machine(),
        "agents": options.agents,
        "jobs": count,
        "jobs_ended": ended[0],
        "jobs_per_s": count / seconds,
        "last_end_after_last_submit_s": behind,
        "cores_idle": idle,
        "cores": {part: (after[part] - before[part]) / seconds for part in ("leader", "api", "postgres")},
    }


def leader_share(bench: Bench, seconds: float) -> dict[str, float]:
    """Cores that leader and PostgreSQL take while nothing but heartbeats goes on."""
    before = cpu_seconds(bench.state)
    time.sleep(seconds)
    after = cpu_seconds(bench.state)
    return {part: (after[part] - before[part]) / seconds for part in ("leader", "postgres")}


if __name__ == "__main__":
    main()
