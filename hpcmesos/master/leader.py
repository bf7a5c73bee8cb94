"""The leader candidate: stands by until it may lead, then leads until any doubt arises, and ends.

While another leads it keeps a picture of the queue warm. Threads of a leader: the event loop with the links (main), the
planner, the lease, the listener, the timers, the timetable, the notices. Whichever of them can not go on ends the
process at once; the supervisor starts a new candidate. Jobs and agents do not mind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import uvloop

from hpcmesos import wire
from hpcmesos.config import MasterSettings
from hpcmesos.errors import DatabaseUnavailable, Unavailable
from hpcmesos.master import child, notices
from hpcmesos.master.events import Event, InboxHint, Stop
from hpcmesos.master.identity import Identity, keep_fresh
from hpcmesos.master.links import Links, bind
from hpcmesos.master.listener import listen
from hpcmesos.master.planner import Planner
from hpcmesos.master.standby import Standby
from hpcmesos.master.timers import Timers
from hpcmesos.master.timetable import TimetableThread
from hpcmesos.priority import come_first
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.servers import look_after

log = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds to wait for the lock, until the question is put anew
_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between two tries, while PostgreSQL does not answer
_BACKLOG = 4096  # agents that dial at once
_SWITCH_INTERVAL = 0.0005  # the planner computes; links and the lease must not wait for it
_STOP_TIMEOUT = 5.0
_CHORES_TIMEOUT = 0.2  # seconds; what they have not committed then, the next leader does
_REVOKED = 2.0  # seconds between two looks for certificates that are good no more
_SUCCESSOR = 1.5  # seconds that a leader that steps down waits for the next one's address
_FAREWELL = 0.2  # seconds that agents may take to close their links


def die(why: str) -> NoReturn:
    """Ends this process at once: what is not committed never happened."""
    log.critical("ending: %s", why)
    logging.shutdown()
    os._exit(1)


class Lease:
    """Renews the leadership in its own thread; ``check()`` from another one sees that it does."""

    def __init__(self, leadership: Leadership, seconds: float) -> None:
        self._leadership = leadership
        self._seconds = seconds
        self._good_until = time.monotonic() + seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=guarded(self._run, self._stop), name="lease")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            began = time.monotonic()
            self._leadership.renew(self._seconds)
            self._good_until = (
                began + self._seconds
            )  # counted from its start: the database's clock began later

    def check(self) -> None:
        """Ends the process when the lease has run out, e.g. because renewing hangs."""
        if time.monotonic() > self._good_until:
            die("the lease ran out")

    def give_up(self) -> bool:
        """Steps down; whether there is somebody who may lead now."""
        self._stop.set()
        self._thread.join(_STOP_TIMEOUT)
        try:
            return self._leadership.rivals()
        except DatabaseUnavailable:
            return False
        finally:
            self._leadership.release()

    def successor(self, term: int) -> str:
        """As Leadership.successor(), after giving up."""
        return self._leadership.successor(term)


def guarded(run: Callable[[], None], stopped: threading.Event) -> Callable[[], None]:
    """``run`` as the body of a thread without which this process cannot lead, unless it has ``stopped`` leading."""

    def body() -> None:
        try:
            run()
        except BaseException as error:
            if stopped.is_set():
                return
            name = threading.current_thread().name
            if not isinstance(error, Unavailable):  # else nothing of ours has failed: a line says it all
                log.exception("thread %s failed", name)
            die(f"{type(error).__name__} in thread {name}: {error}")

    return body


def acquire(leadership: Leadership, settings: MasterSettings) -> tuple[int, socket.socket]:
    """Waits until this process leads; answers the term and the socket whose address is published."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    said, pause = "", _PAUSE
    bound: tuple[socket.socket, str] | None = None
    while True:
        try:
            bound = bound or bind(settings.link)
            term = leadership.try_acquire(holder, bound[1], settings.lease, 0.0 if not said else _PATIENCE)
            if term is not None:
                bound[0].listen(
                    _BACKLOG
                )  # who hears of the address now waits in line, and need not dial twice
                log.info("leading term=%d address=%s", term, bound[1])
                return term, bound[0]
            text, level, pause = "another candidate leads", logging.INFO, _PAUSE
        except (DatabaseUnavailable, OSError) as error:
            text = getattr(error, "strerror", None) or str(error)
            level, pause = logging.WARNING, min(_LONGEST_PAUSE, 2 * pause)
            time.sleep(pause)
        if text != said:
            log.log(level, "waiting: %s", text)
            said = text


class Leader:
    """One term of leadership."""

    def __init__(
        self, config: child.Child, store: LeaderStore, lease: Lease, standby: Standby, timeline: int
    ) -> None:
        self._config = config
        self._timeline = timeline
        self._settings = config.settings
        self._store = store
        self._lease = lease
        self._standby = standby
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._stopped = threading.Event()

    async def run(self, bound: socket.socket) -> None:
        """Until SIGTERM or SIGINT; then steps down and sends the agents to the next leader, if there is one."""
        settings, store = self._settings, self._store
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        watch = asyncio.create_task(self._watch_lease())
        welcome = wire.Welcome(
            protocol=wire.PROTOCOL,
            cluster=settings.cluster,
            timeline=self._timeline,
            term=store.term,
        )
        links = Links(welcome, settings.node_silence, self._events.put)
        identity = Identity(self._config.certificate, self._config.key, self._config.ca)
        tls = identity.server(require_client=True)
        links.trusts = identity.trusts
        fresh = asyncio.create_task(keep_fresh(identity, lambda: setattr(links, "trusts", identity.trusts)))
        guard = asyncio.create_task(self._part_from_revoked(links))
        await links.start(bound, tls)  # before the picture is there: agents need not dial twice
        connected = asyncio.create_task(asyncio.to_thread(store.leader))  # while the picture is read
        planner = await asyncio.to_thread(self._planner, links)
        await connected
        deciding = self._thread("planner", planner.run)
        chores = [
            self._thread("timers", lambda: Timers(store, settings).run(self._stopped)),
            self._thread("timetable", lambda: TimetableThread(store, self._hint).run(self._stopped)),
        ]
        if (told := notices.made(store, settings)) is not None:
            self._thread("notices", lambda: told.run(self._stopped))
        self._thread("listener", self._listen)
        log.info("serving term=%d", store.term)
        await stop.wait()
        for task in (watch, fresh, guard):
            task.cancel()
        self._stopped.set()
        self._events.put(Stop())
        await asyncio.to_thread(deciding.join, _STOP_TIMEOUT)
        for thread in chores:
            await asyncio.to_thread(thread.join, _CHORES_TIMEOUT)
        await self._part(links)

    def _planner(self, links: Links) -> Planner:
        """What is loaded stays: the collector need not walk through it, now or later."""
        picture = self._standby.take_over()  # which may use the collector's switch until it is over
        gc.disable()
        planner = Planner(self._settings, self._store, links, self._events, picture=picture)
        gc.freeze()
        gc.enable()
        return planner

    async def _part(self, links: Links) -> None:
        self._store.close()  # else the next leader ends its sessions first, and waits for that
        if await asyncio.to_thread(self._lease.give_up) and (next_one := await self._successor()):
            links.hand_over(next_one)
            deadline = time.monotonic() + _FAREWELL
            while links.nodes and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        links.close()

    async def _successor(self) -> str:
        """The next leader's address; empty: there is none yet."""
        deadline = time.monotonic() + _SUCCESSOR
        while time.monotonic() < deadline:
            with contextlib.suppress(DatabaseUnavailable):
                if address := await asyncio.to_thread(self._lease.successor, self._store.term):
                    return address
            await asyncio.sleep(0.02)
        return ""

    def _thread(self, name: str, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=guarded(run, self._stopped), name=name, daemon=True)
        thread.start()
        return thread

    def _hint(self) -> None:
        self._events.put(InboxHint())

    def _listen(self) -> None:
        listen(leader_url(self._settings), self._events.put, self._stopped)

    async def _part_from_revoked(self, links: Links) -> None:
        """Nodes whose certificates are revoked lose their links, and get no new ones."""
        while True:
            with contextlib.suppress(DatabaseUnavailable):  # what is known goes on
                links.refuse(await asyncio.to_thread(self._store.revoked))
            await asyncio.sleep(_REVOKED)

    async def _watch_lease(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease / 6)
            self._lease.check()


def leader_url(settings: MasterSettings) -> str:
    return settings.leader_database_url or settings.database_url


def main() -> int:
    """``python -m hpcmesos.master.leader``, started by the supervisor."""
    config = child.Child.read(Path(os.environ[child.LEADER_CONFIG]))
    child.die_with_parent(int(os.environ["HPCMESOS_SUPERVISOR"]))
    child.log_to_stderr(config.settings.log_level)
    come_first()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    look_after(leader_url(config.settings))
    leadership = Leadership(leader_url(config.settings))
    standby = Standby(leader_url(config.settings), config.settings.server)
    term, bound = acquire(leadership, config.settings)
    lease = Lease(leadership, config.settings.lease)
    try:
        store = LeaderStore(leader_url(config.settings), term, leadership.timeline)
        uvloop.run(
            Leader(config, store, lease, standby, leadership.timeline).run(bound)
        )  # asyncio's own TLS costs more than all decisions
    except BaseException as error:
        log.exception("the leader failed")
        die(f"{type(error).__name__}: {error}")
    log.info("stepped down term=%d", term)
    logging.shutdown()
    os._exit(0)  # threads that wait for the database must not hold us up


if __name__ == "__main__":
    sys.exit(main())
