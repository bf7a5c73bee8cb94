"""The link to the leader: the API says who leads; dialled with mutual TLS, and again whenever it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import ssl
from asyncio.staggered import staggered_race
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from hpcmesos import api_schema, wire
from hpcmesos.agent import api
from hpcmesos.agent.events import Event, FromLeader, LinkDown, LinkUp
from hpcmesos.errors import HpcmesosError, MasterUnreachable, ProtocolError
from hpcmesos.launch.clock import boottime

log = logging.getLogger(__name__)

_ELECTION = 1.0  # s that a master waits with its answer for a leader to be elected
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # s between two dials, with jitter
_NEXT_MASTER = 0.5  # s that a master may take to say who leads until the next one is asked, too
_ASKING = 5.0  # s that a master is asked again and again, while it knows no leader
_DIAL_TIMEOUT = 5.0
_LATE_PINGS = 2  # pings that fail to come until the masters are asked whether somebody else leads
_SILENT_PINGS = 5  # the same until the link counts as dead
_HELLO = 0  # stands for the hello among the nonces of pings
_CHUNK = 256 * 1024  # bytes read at once
_MAX_UNSENT = 64 * 1024 * 1024


class Uplink:
    """At most one link at a time, numbered; ``send`` to a link that is gone is dropped.

    ``master``: one API or several, separated by commas. ``load``: (load, free memory) for the answers to pings.
    ``contact``: told when we sent (CLOCK_BOOTTIME) what the leader has heard.
    """

    def __init__(
        self,
        master: str,
        state: Path,
        sink: Callable[[Event], None],
        load: Callable[[], tuple[float, int]],
        contact: Callable[[float], None],
    ) -> None:
        self._masters = api.several(master)
        self._sink = sink
        self._load = load
        self._contact = contact
        self._sent: dict[int, float] = {}  # when a pong was sent, by its nonce; _HELLO: the hello
        self._state = state
        self.take_certificate()
        self.outdated = asyncio.Event()
        """Set while the leader trusts other certificate authorities than this node."""
        self._link = 0
        self._writer: asyncio.StreamWriter | None = None
        self._welcome: wire.Welcome | None = None
        self._last = 0.0  # when the leader was heard last, by the loop's clock
        self._doubts: asyncio.Task[None] | None = None
        self._redirect: str | None = None
        self._silence = _DIAL_TIMEOUT  # s without a word of the leader until the link counts as dead
        self._unheard = -1  # term of a leader that does not answer
        self._waited = False  # the masters have waited for an election, so the next question need not

    def send(self, link: int, message: wire.ToLeader) -> None:
        """Sends on that link, or nothing when it is not up any more: all that counts is said again on the next one."""
        if link != self._link or self._writer is None:
            return
        if isinstance(message, wire.Ended) and message.ended_boot:
            message = msgspec.structs.replace(message, ago=boottime() - message.ended_boot)
        self._writer.write(wire.encode(message))
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT:
            self.close(link, "the leader does not read")

    def take_certificate(self) -> None:
        """The next dial shows the new one; the link that is up goes on."""
        self._context = link_context(self._state)
        self._trusts = hashlib.sha256((self._state / "ca.pem").read_bytes()).hexdigest()

    def close(self, link: int, reason: str) -> None:
        """Parts; the next dial follows by itself."""
        if link == self._link and self._writer is not None:
            log.warning("link %d closed: %s", link, reason)
            self._writer.transport.abort()

    async def run(self, ready: Callable[[], bool]) -> None:
        """Until cancelled. Dials only while ``ready()``: what Hello says has to be true."""
        pause, said = FIRST_PAUSE, ""
        while True:
            sent_on = False
            if ready():
                try:
                    await self._session()
                except (OSError, EOFError, ValueError, HpcmesosError, msgspec.MsgspecError) as error:
                    text = str(error) or type(error).__name__
                    if text != said:
                        log.warning("no link to the leader: %s", text)
                    said = text
                if self._welcome is not None:
                    pause, said = FIRST_PAUSE, ""
                    self._welcome = None
                    sent_on = self._redirect is not None
            if sent_on:  # by a leader that has stepped down: who leads now listens already
                continue
            if self._waited:
                pause, self._waited = FIRST_PAUSE, False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE) if ready() else FIRST_PAUSE

    async def _session(self) -> None:
        address, term = (self._redirect, -1) if self._redirect else await self._ask_leader(self._unheard)
        self._redirect = None
        reader, writer = await self._dial(address, term)
        try:
            if api.organization(writer.get_extra_info("peercert")) != "master":
                raise ProtocolError(f"who listens at {address} is no master")
            self._link += 1
            self._writer = writer
            self._sent = {_HELLO: boottime()}
            self._sink(LinkUp(self._link))
            await self._converse(reader)
        finally:
            if self._doubts:
                self._doubts.cancel()
            self._writer = self._doubts = None
            self._sink(LinkDown(self._link))
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _dial(self, address: str, term: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT):
                connection = await asyncio.open_connection(
                    host.strip("[]"), int(port), ssl=self._context, limit=1024 * 1024
                )
        except OSError:
            self._unheard = term  # the database thinks for some seconds that it leads
            raise
        self._unheard = -1
        return connection

    def _heard(self, nonce: int) -> None:
        """The leader has had our answer to that ping."""
        if (at := self._sent.get(nonce)) is not None:
            self._contact(at)
            self._sent = {sent: when for sent, when in self._sent.items() if sent > nonce}

    async def _ask_leader(self, after: int) -> tuple[str, int]:
        """The leader's address and term, from the first master that knows; a slow one does not hold up the others.

        Waits a while for one of a later term than ``after``.
        """
        questions = [partial(self._ask, master, after) for master in self._masters]
        found, _, errors = await staggered_race(questions, _NEXT_MASTER)
        if found is None:
            raise MasterUnreachable("; ".join(dict.fromkeys(str(error) for error in errors)))
        address, term = found
        return str(address), int(term)

    async def _ask(self, master: str, after: int) -> tuple[str, int]:
        """One that knows no leader is asked again: another may just not answer, and all are waited for."""
        context = self._context if master.startswith("https") else None
        path = f"/v1/leader?after={after}&timeout={_ELECTION:g}"
        deadline = asyncio.get_running_loop().time() + _ASKING
        while True:
            answer = await asyncio.to_thread(api.call, master, "GET", path, None, context)
            reply = msgspec.convert(answer, api_schema.LeaderReply)
            self._waited = reply.address is None or reply.term <= after
            if reply.address is not None:
                return reply.address, reply.term
            if asyncio.get_running_loop().time() > deadline:
                raise MasterUnreachable("there is no leader now")
            await asyncio.sleep(FIRST_PAUSE)  # it has waited itself

    async def _doubt(self, welcome: wire.Welcome) -> None:
        """Beside a link: a leader that hangs is replaced long before its link counts as dead."""
        while True:
            await asyncio.sleep(welcome.ping_interval * random.uniform(0.25, 0.5))
            if asyncio.get_running_loop().time() - self._last < _LATE_PINGS * welcome.ping_interval:
                continue
            with contextlib.suppress(OSError, ValueError, HpcmesosError, msgspec.MsgspecError):
                _, term = await self._ask_leader(welcome.term)
                if term > welcome.term:
                    self.close(self._link, f"term {welcome.term} is silent, {term} has begun")

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        self._silence = _DIAL_TIMEOUT
        buffer = bytearray()
        while True:
            async with asyncio.timeout(self._silence):
                data = await reader.read(_CHUNK)
            if not data:
                raise EOFError("the leader has closed the link")
            buffer += data
            for body in wire.frames(buffer):
                self._take(wire.decode_to_agent(body))

    def _take(self, message: wire.ToAgent) -> None:
        self._last = asyncio.get_running_loop().time()
        match message:
            case wire.Ping(nonce=nonce, heard=heard, trusts=trusts):
                self._heard(heard)
                if trusts not in ("", self._trusts):
                    self.outdated.set()
                self._sent[nonce] = boottime()
                load, memory = self._load()
                self.send(self._link, wire.Pong(nonce=nonce, load=load, memory_free=memory))
            case wire.Rejected(reason=reason, leader=leader):
                self._redirect = leader
                raise ProtocolError(f"the leader rejects this agent: {reason}")
            case wire.Welcome():
                if message.protocol not in wire.SPOKEN:
                    raise ProtocolError(
                        f"the leader speaks protocol {message.protocol}, this agent {wire.PROTOCOL}"
                    )
                self._silence = max(_DIAL_TIMEOUT, _SILENT_PINGS * message.ping_interval)
                self._welcome = message
                self._doubts = asyncio.create_task(self._doubt(message))
                log.info("link %d: cluster=%s term=%d", self._link, message.cluster, message.term)
                self._sink(FromLeader(self._link, message))
                self._heard(_HELLO)
            case _:
                self._sink(FromLeader(self._link, message))


def link_context(state: Path) -> ssl.SSLContext:
    """TLS with the node's certificate; host names are not compared: the caller looks at O of the peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(state / "ca.pem")
    context.load_cert_chain(state / "agent.pem", state / "agent.key")
    return context
