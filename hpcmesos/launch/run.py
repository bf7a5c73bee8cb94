"""``hpcmesos run [OPTIONS] PROGRAM ARGS...``: ranks over the job's slots.

The shepherds start the ranks themselves and serve PMI-1 to them. The first rank that fails ends the step; its true code
is the answer: its own, 128 + N for signal N, what it gave to MPI_Abort, 255 when a node was lost.
"""

from __future__ import annotations

import errno
import os
import select
import sys

from hpcmesos.launch import pmi, protocol, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USAGE = """usage: hpcmesos run [options] program [arguments]
  -n N              ranks; default: one for each slot of the job
  --gpus-per-rank G GPUs for each rank; default: those of its node, divided among its ranks there
  --label           every line says from which rank and node it came
  --oversubscribe   allow more ranks than slots
  --finish RULE     when it is over: all (default: once all ranks have ended, a framework's ps not counted), chief (with
                    rank 0, the first task), any (with the first that ends); what runs on then is ended
"""
LOST = 255
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_LONGEST_LINE = 65536
_FINISH = ("all", "chief", "any")
_FIRST_PORT, _PORTS = 20000, 10000  # below the ports that the kernel gives to anybody


class Refused(Exception):
    """The command line, or what it asks for, cannot be done."""


class Options:
    """What stands before the program."""

    def __init__(self) -> None:
        self.ranks = 0  # 0: one a slot
        self.gpus_per_rank = 0  # 0: the node's, divided
        self.label = self.oversubscribe = False
        self.finish = "all"
        self.command: list[str] = []


def parse(argv: list[str]) -> Options:
    """Raises Refused."""
    options, words = Options(), list(argv)
    while words and words[0].startswith("-") and words[0] != "--":
        word, _, value = words.pop(0).partition("=")
        if word in ("--label", "-l"):
            options.label = True
        elif word == "--oversubscribe":
            options.oversubscribe = True
        elif word == "--finish":
            options.finish = value or (words.pop(0) if words else "")
            if options.finish not in _FINISH:
                raise Refused(f"--finish takes one of {', '.join(_FINISH)}, not '{options.finish}'")
        elif word in ("-n", "-np", "--ranks", "--gpus-per-rank"):
            value = value or (words.pop(0) if words else "")
            if not value.isdigit() or int(value) == 0:
                raise Refused(f"{word} takes a number above 0, not '{value}'")
            if word == "--gpus-per-rank":
                options.gpus_per_rank = int(value)
            else:
                options.ranks = int(value)
        else:
            raise Refused(f"no option {word}")
    options.command = words[1:] if words[:1] == ["--"] else words
    if not options.command:
        raise Refused("a program is needed")
    return options


def place(members: list[dict[str, Any]], options: Options) -> list[int]:
    """How many ranks each member gets: slots filled block by block, head first. Raises Refused."""
    capacity = [
        min(m["slots"], m["gpus"] // options.gpus_per_rank) if options.gpus_per_rank else int(m["slots"])
        for m in members
    ]
    total = sum(capacity)
    ranks = options.ranks or total
    if ranks <= total and ranks:
        counts: list[int] = []
        for room in capacity:
            counts.append(min(room, ranks - sum(counts)))
        return counts
    if options.gpus_per_rank:
        raise Refused(
            f"{max(ranks, 1)} ranks of {options.gpus_per_rank} GPUs do not fit: the job has room for {total}"
        )
    if not options.oversubscribe:
        raise Refused(f"{ranks} ranks, but the job has {total} slots; --oversubscribe allows that")
    rounds, rest = divmod(ranks, total)
    first = place(members, _of(rest)) if rest else [0] * len(members)
    return [rounds * room + more for room, more in zip(capacity, first, strict=True)]


def _of(ranks: int) -> Options:
    options = Options()
    options.ranks = ranks
    return options


class Verdict:
    """Why the step ends, by what was heard first; a step without a trouble ends with 0."""

    def __init__(self) -> None:
        self.code = 0
        self.text = ""
        self.by_rank = False

    def fail(self, code: int, text: str, by_rank: bool = False) -> None:
        if not self.text:
            self.code, self.text, self.by_rank = code, text, by_rank


class Node:
    """The ranks of one member, as seen from here."""

    def __init__(self, index: int, member: dict[str, Any], ranks: list[int]) -> None:
        self.index = index
        self.name = str(member["node"])
        self.ranks = ranks
        self.over = False
        self.connection: Any = None
        self._parser = protocol.Parser()
        self._unsent = b""

    def start(self, path: str, request: dict[str, Any]) -> None:
        self.connection = protocol.connect(path)
        self.say({**request, "op": "crew", "host": self.name, "ranks": self.ranks})

    def fileno(self) -> int:
        return int(self.connection.fileno())

    @property
    def busy(self) -> bool:
        """Something waits to be sent."""
        return bool(self._unsent)

    def say(self, value: dict[str, Any]) -> None:
        self.send(protocol.message(value))

    def send(self, data: bytes = b"") -> None:
        """Never waits: the other side may be waiting for us."""
        self._unsent += data
        while self._unsent:
            try:
                sent = self.connection.send(self._unsent, quick.socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # its end will be read
                self._unsent = b""
                return
            self._unsent = self._unsent[sent:]

    def receive(self) -> list[tuple[bytes, bytes]] | None:
        """The frames that have come; None at the end."""
        try:
            data = self.connection.recv(4 * protocol.CHUNK)
        except OSError:
            return None
        return list(self._parser.feed(data)) if data else None


class Lines:
    """The output of one rank on one descriptor, whole lines at a time."""

    def __init__(self, target: int, label: bytes) -> None:
        self._target = target
        self._label = label
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Writes the whole lines; the rest waits for its end, unless it is very long."""
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._write(whole + newline)
        if len(self._rest) > _LONGEST_LINE:
            self.finish()

    def finish(self) -> None:
        """What has no end of line is written as it is."""
        if self._rest:
            self._write(self._rest if not self._label else self._rest + b"\n")
            self._rest = b""

    def _write(self, data: bytes) -> None:
        if self._label:
            data = b"".join(self._label + line for line in data.splitlines(keepends=True))
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]


class Step:
    """All ranks, from their start to their end."""

    def __init__(
        self, path: str, options: Options, lease: Any, answer: dict[str, Any], counts: list[int]
    ) -> None:
        self._path = path
        self._lease = lease
        self._options = options
        self.name = str(answer["step"])
        self._members: list[dict[str, Any]] = answer["members"]
        self._size = sum(counts)
        self._nodes: list[Node] = []
        self._lines: dict[tuple[int, bytes], Lines] = {}
        self._left: dict[int, Node] = {}
        self._serving: set[int] = set()  # ranks that are not waited for
        first = 0
        for member, count in zip(self._members, counts, strict=True):
            if count:
                ranks = list(range(first, first + count))
                self._nodes.append(Node(len(self._nodes), member, ranks))
                self._left |= dict.fromkeys(ranks, self._nodes[-1])
                self._warn_shared(member, count)
                first += count
        self._mapping = pmi.mapping([len(node.ranks) for node in self._nodes])
        self._barrier = pmi.Barrier(len(self._nodes))
        self._gone = False
        self._ending = False
        self._stdin: int | None = 0
        self.verdict = Verdict()
        self._wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        quick.signal.set_wakeup_fd(wake_write)
        for name in _PASSED_ON:
            quick.signal.signal(getattr(quick.signal, name), lambda number, frame: None)

    def _warn_shared(self, member: dict[str, Any], count: int) -> None:
        if 0 < member["gpus"] < count and os.environ.get("HPCMESOS_GPUBIND") != "none":
            _say(f"{count} ranks share {member['gpus']} GPUs on {member['node']}")

    def run(self) -> None:
        """Until nothing of the step is left; the verdict is there then."""
        try:
            self._run()
        except BrokenPipeError:  # nobody reads our output any more
            self.verdict = Verdict()
            self.verdict.code = 128 + int(quick.signal.SIGPIPE)

    def _run(self) -> None:
        self._start()
        while any(not node.over for node in self._nodes):
            alive = [node for node in self._nodes if not node.over]
            sources: list[Any] = [*alive, self._wake]
            if self._stdin is not None:
                sources.append(self._stdin)
            ready, writable, _ = select.select(sources, [node for node in alive if node.busy], [])
            for node in writable:
                node.send()
            for source in ready:
                if isinstance(source, Node):
                    self._hear(source)
                elif source == self._wake:
                    self._pass_signals()
                elif source == self._stdin:  # rank 0 may have ended just before
                    self._pass_stdin()
        for lines in self._lines.values():
            lines.finish()

    def _start(self) -> None:
        request = {
            "step": self.name,
            "command": self._options.command,
            "environ": {**os.environ, **self._rendezvous()},
            "cwd": os.getcwd(),
            "size": self._size,
            "mapping": self._mapping,
            # MPICH names shared memory after it: the same name twice on a host, and one job meets another's.
            "space": f"hpcmesos_{os.urandom(12).hex()}",
            "gpus_per_rank": self._options.gpus_per_rank,
            "stdin": 0,
        }
        for node in self._nodes:
            node.start(self._path, request)

    def _rendezvous(self) -> dict[str, str]:
        """Where programs without MPI find rank 0; what the user has set stays."""
        address = self._members[0]["address"]
        given = {key: os.environ[key] for key in ("MASTER_ADDR", "MASTER_PORT") if key in os.environ}
        return {"MASTER_ADDR": address, "MASTER_PORT": str(_free_port(address)), **given}

    # --- what comes -------------------------------------------------------------------------------------------------

    def _hear(self, node: Node) -> None:
        frames = node.receive()
        if frames is None:
            self._lose(node, "the connection to it was lost")
            return
        for kind, body in frames:
            if kind == protocol.MESSAGE:
                self._obey(node, protocol.decode(body))
            else:
                self._write(node, kind, body)

    def _write(self, node: Node, kind: bytes, body: bytes) -> None:
        rank = int.from_bytes(body[:4], "big")
        lines = self._lines.get((rank, kind))
        if lines is None:
            label = f"[rank {rank} {node.name}] ".encode() if self._options.label else b""
            lines = self._lines[rank, kind] = Lines(1 if kind == protocol.STDOUT else 2, label)
        lines.feed(body[4:])

    def _obey(self, node: Node, message: dict[str, Any]) -> None:
        if "exit" in message:
            node.over = True
            if message.get("error"):
                self._lose(node, str(message["error"]))
        elif "abort" in message:
            code = int(message["abort"]) & 0xFF
            self._fail(code, f"rank {message['rank']} ({node.name}) aborted MPI with code {message['abort']}")
        elif "barrier" in message:
            self._arrive(node, message["barrier"])
        elif "broken" in message:
            self._fail(1, str(message["broken"]))
        elif "taken" in message:
            self._stdin = 0 if message["taken"] else None
        elif "serving" in message:
            self._serving |= set(message["serving"])
        elif "rank" in message:
            self._end_rank(node, message)

    def _arrive(self, node: Node, puts: dict[str, str]) -> None:
        everything = self._barrier.arrive(node.index, puts)
        if everything is not None:
            for other in self._nodes:
                other.say({"barrier": everything})
        self._look_for_missing()

    def _look_for_missing(self) -> None:
        if self._barrier.pending and self._gone:
            self._fail(1, "a rank has ended, and others wait for it in MPI")

    def _end_rank(self, node: Node, message: dict[str, Any]) -> None:
        rank, code, number = message["rank"], message["code"], message["signal"]
        self._left.pop(rank, None)
        who = f"rank {rank} ({node.name})"
        if number is not None or code:
            self._fail(*_failure(who, code, number), by_rank=True)
        elif message.get("open"):
            self._fail(1, f"{who} exited with code 0 and without MPI_Finalize")
        self._gone = True
        self._look_for_missing()
        if rank == 0:
            self._stdin = None
        if self._is_over(rank):
            self._end()

    def _is_over(self, ended: int) -> bool:
        """By the rule that was asked for, now that this rank has ended."""
        rule = self._options.finish
        return rule == "any" or (rule == "chief" and ended == 0) or self._serving.issuperset(self._left)

    def _lose(self, node: Node, reason: str) -> None:
        node.over = True
        for rank in node.ranks:
            self._left.pop(rank, None)
        self._fail(LOST, f"{node.name}: {reason}")

    def _fail(self, code: int, text: str, by_rank: bool = False) -> None:
        if not self._ending:
            self.verdict.fail(code, text, by_rank)
        self._end()

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._stdin = None
            for node in self._nodes:
                if not node.over:
                    node.say({"end": True})

    # --- what goes --------------------------------------------------------------------------------------------------

    def _pass_signals(self) -> None:
        for number in os.read(self._wake, 64):
            self._pass_signal(number)

    def _pass_signal(self, number: int) -> None:
        for node in self._nodes:
            if not node.over:
                node.say({"signal": number})

    def _pass_stdin(self) -> None:
        """One piece; the next when rank 0 has taken this one."""
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, protocol.CHUNK)
        except OSError:  # there is none
            data = b""
        self._stdin = None
        self._nodes[0].send(
            protocol.frame(protocol.STDIN, data) if data else protocol.frame(protocol.STDIN_END)
        )

    def finish(self) -> int:
        """Tells the shepherd, and the user if it went wrong; answers the exit code.

        Of ranks that fail together the shepherd, too, has one that was the first: there shall be but one such.
        """
        verdict, trouble = self.verdict, ""
        answer: dict[str, Any] = {}
        request = {
            "op": "step_end",
            "step": self.name,
            "code": verdict.code,
            "by_rank": verdict.by_rank,
            "swept": True,
        }
        try:
            self._lease.sendall(protocol.message(request))
            answer = protocol.answer(self._lease, "ranks") or {}
        except (OSError, protocol.FrameError) as error:
            trouble = f"the shepherd cannot be told of the end: {error}"
        code, text = verdict.code, verdict.text
        if verdict.by_rank and (first := answer.get("first_failed")):
            code, text = _failure(f"rank {first['rank']} ({first['node']})", first["code"], first["signal"])
            text += protocol.STARVED if first.get("starved") else ""
        for line in filter(None, (text, trouble)):
            _say(line)
        return code


def _failure(who: str, code: int | None, number: int | None) -> tuple[int, str]:
    """The exit code, and how it is told."""
    if number is not None:
        return 128 + int(number), f"{who} was killed by signal {number}"
    return int(code or 0), f"{who} exited with code {code}"


def main(argv: list[str]) -> int:
    if argv[:1] in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return 0
    try:
        options = parse(argv)
    except Refused as error:
        sys.stderr.write(f"hpcmesos run: {error}\n{USAGE}")
        return 2
    try:
        path, lease, answer = begin(["hpcmesos", "run", *argv])
        step = Step(path, options, lease, answer, place(answer["members"], options))
        step.run()
        code = step.finish()
    except Refused as error:
        _say(str(error))
        return 2
    except (OSError, protocol.FrameError) as error:
        _say(f"the shepherd does not answer: {error}")
        return LOST
    return code


def begin(command: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """Registers a step; answers the shepherd's socket, the connection that keeps the step, and what the shepherd says.

    Raises:
        Refused: there is no step to be had.
        OSError: the shepherd cannot be reached.
        FrameError: it speaks something else.
    """
    path = os.environ.get("HPCMESOS_SOCKET", "")
    if not path:
        raise Refused("not inside a job: HPCMESOS_SOCKET is not set")
    lease = protocol.connect(path)
    protocol.send_all(lease, protocol.message({"op": "step", "command": command}))
    frame = protocol.receive(lease, protocol.Parser(), [])
    answer = protocol.decode(frame[1]) if frame else {"error": "the shepherd hung up"}
    if "step" not in answer:
        raise Refused(str(answer.get("error")))
    return path, lease, answer


def _free_port(address: str) -> int:
    """A port of rank 0's host that is free now, as far as can be seen from here."""
    start = int.from_bytes(os.urandom(2), "big")
    for attempt in range(_PORTS):
        port = _FIRST_PORT + (start + attempt) % _PORTS
        probe = quick.socket.socket(quick.socket.AF_INET, quick.socket.SOCK_STREAM)
        try:
            probe.bind((address, port))
            return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # not an address of this host
                return port
        finally:
            probe.close()
    return _FIRST_PORT


def _say(text: str) -> None:
    sys.stderr.write(f"hpcmesos run: {text}\n")
    sys.stderr.flush()
