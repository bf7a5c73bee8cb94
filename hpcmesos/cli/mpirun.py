"""``mpirun``: an MPI program on the cluster as if it ran here: allocate, follow, exit with its status."""

from __future__ import annotations

import base64
import os
import shlex
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from hpcmesos.api_schema import JobStatus
from hpcmesos.cli.connect import connect
from hpcmesos.cli.jobs import copy_stream, exit_code
from hpcmesos.cli.pbs_commands import submit
from hpcmesos.client import Client
from hpcmesos.errors import UsageError
from hpcmesos.pbs.option_table import COMMANDS
from hpcmesos.pbs.values import default_name

AGAIN = 2.0
"""Seconds within which a second Ctrl-C deletes the job."""

MOST_INPUT = 700 * 1024
"""Bytes of standard input: in base64, with the rest of the script, they have to fit into what qsub takes."""
_HINT = 3.0  # seconds until it is said what is waited for
_LOOK = 0.2
_ASK = 1.0  # seconds between two questions why the job waits
_NOT_HERE = frozenset("IJtoez")
_UNSTARTED = frozenset("QHW")
_PLAIN_ENDS = frozenset({"OK", "APP", "SIGNAL"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """The words of the command, sorted out."""

    ranks: int | None
    options: tuple[str, ...]  # qsub's
    given: frozenset[str]  # letters of these
    command: tuple[str, ...]


def parse(words: Sequence[str]) -> Wanted:
    """Options up to the first word that is none, or to ``--``; then the program and its arguments.

    Raises:
        UsageError: for options that qsub does not know or that make no sense here, and when there is no program.
    """
    ranks: int | None = None
    options: list[str] = []
    given: set[str] = set()
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word in ("-n", "-np") or (word.startswith("-n") and word[2:].isdigit()):
            ranks = _count(word, word[2:] if word[2:].isdigit() else _next(rest, word))
        else:
            options.append(word)
            given.update(_letters(word, rest, options))
    if refused := given & _NOT_HERE:
        raise UsageError(f"mpirun does not take -{min(refused)}: it runs one job and prints what that writes")
    if not rest:
        raise UsageError("a program is needed: hpcmesos mpirun [-n RANKS] [-l RESOURCES] PROGRAM ARGUMENTS")
    return Wanted(ranks, tuple(options), frozenset(given), tuple(rest))


def _letters(word: str, rest: list[str], options: list[str]) -> Iterator[str]:
    """The letters of ``-hV``, ``-q batch`` or ``-qbatch``; takes a value that is a word of its own over to options."""
    for position, letter in enumerate(word[1:], 1):
        option = COMMANDS["qsub"].find(letter)
        if option is None:
            raise UsageError(f"invalid option -- '{letter}'; see hpcmesos qsub --help")
        yield letter
        if option.value is not None:
            if position == len(word) - 1:
                options.append(_next(rest, word))
            return


def _next(rest: list[str], word: str) -> str:
    if not rest:
        raise UsageError(f"option requires an argument -- '{word.lstrip('-')}'")
    return rest.pop(0)


def _count(word: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise UsageError(f"{word} {text}: a number of ranks is 1 or more")
    return int(text)


def qsub_words(wanted: Wanted, cwd: str, *, as_script: bool = False) -> list[str]:
    """The job: ``mpiexec`` in the caller's directory and environment, its output kept for who follows it.

    ``as_script``: what it runs is a script of sh that qsub reads from its standard input.
    """
    words = [*wanted.options, "-V", "-W", "capture=true"]
    if "l" not in wanted.given:
        words += ["-l", f"procs={wanted.ranks or 1}"]
    if not wanted.given & {"d", "w"}:
        words += ["-d", cwd]
    if "N" not in wanted.given:
        words += ["-N", default_name(wanted.command[0])]
    return [*words, "-S", "/bin/sh"] if as_script else [*words, "--", *_launch(wanted)]


def _launch(wanted: Wanted) -> list[str]:
    ranks = [] if wanted.ranks is None else ["-n", str(wanted.ranks)]
    return ["mpiexec", *ranks, *wanted.command]


def script_with_input(wanted: Wanted, data: bytes) -> bytes:
    """A script whose rank 0 has ``data`` as its standard input.

    Its wrapper opens the file: Hydra itself ends a launch whose rank 0 is 64 KiB behind.
    """
    lines = [
        "#!/bin/sh",
        "base64 -d >\"$TMPDIR/stdin\" <<'END' || exit",
        base64.encodebytes(data).decode().rstrip("\n"),
        "END",
        f"HPCMESOS_STDIN=$TMPDIR/stdin exec {shlex.join(_launch(wanted))}",
    ]
    return "\n".join(lines).encode() + b"\n"


def read_input() -> bytes:
    """What stands in a file or a pipe on standard input, to its end; nothing of a terminal or any other device.

    Raises:
        UsageError: it is more than a job can carry.
    """
    try:
        kind = os.fstat(0).st_mode
    except OSError:  # closed
        return b""
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return b""
    hint = threading.Timer(_HINT, _say, ["reading standard input to its end; </dev/null if there is none"])
    hint.daemon = True
    hint.start()
    try:
        data = sys.stdin.buffer.read(MOST_INPUT + 1)
    finally:
        hint.cancel()
    if len(data) > MOST_INPUT:
        most = f"{MOST_INPUT // 1024} KiB"
        raise UsageError(f"standard input is longer than {most}: put it into a file that all nodes can read")
    return data


@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    }
)
@click.option("--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster.")
@click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="[-n RANKS] [QSUB OPTIONS] PROGRAM [ARGUMENTS]..."
)
def mpirun(state: Path | None, words: tuple[str, ...]) -> None:
    """Run PROGRAM as an MPI job and follow it here.

    Without -l, RANKS (1) slots are asked for, wherever there is room; with -l, as many ranks start as it has slots, or
    RANKS. What the job writes goes to this terminal. Standard input, if it is a file or a pipe, is read to its end (at
    most 700 KiB) before the job is submitted, and goes to rank 0. The exit code is the job's Exit_status
    & 255: the first failing rank's code, 128 + N when signal N killed it; 3 when the job was deleted before it ran.
    Ctrl-C tells how the job stands, a second one within 2 seconds deletes it; the exit code then is 130.
    """
    wanted = parse(words)
    data = read_input()
    request = qsub_words(wanted, str(Path.cwd()), as_script=bool(data))
    job = submit(connect(state), request, script_with_input(wanted, data) if data else None)
    sys.exit(Follower(lambda: connect(state), job).run())


class Follower:
    """One job, its output on this terminal. ``connect``: a client belongs to one thread."""

    def __init__(self, connect: Callable[[], Client], job: str) -> None:
        self._client = connect()
        self._job = job
        self._signals: list[int] = []
        self._wake = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [
            threading.Thread(
                target=copy_stream, args=(connect(), job, name, True, self._failures), daemon=True
            )
            for name in ("stdout", "stderr")
        ]

    def run(self) -> int:
        """Until the job has ended, or is deleted from here; answers the exit code."""
        with self._listening():
            for thread in self._threads:
                thread.start()
            number = self._watch()
        if number is not None:
            _say(f"deleting {self._job}")
            self._client.delete(self._job)
            self._client.wait(self._job)
            return 128 + number
        if self._failures:
            raise self._failures[0]
        status = self._client.wait(self._job)
        if status.cause not in _PLAIN_ENDS:
            _say(f"{status.id} {_ending(status)}")
        return exit_code(status)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            self._signals.append(number)
            self._wake.set()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _watch(self) -> int | None:
        """Looks after the job until its output has ended: None; or the signal by which it is to be deleted."""
        asked, told, last = float("-inf"), "", float("-inf")
        waits = sys.stderr.isatty()
        while any(thread.is_alive() for thread in self._threads):
            self._wake.wait(_LOOK)
            self._wake.clear()
            while self._signals:
                number = self._signals.pop(0)
                now = time.monotonic()
                if number != signal.SIGINT or now - last <= AGAIN:
                    return number
                last = now
                _say(f"{_standing(self._client.job(self._job))}; Ctrl-C again within {AGAIN:g} s deletes it")
            if waits and time.monotonic() - asked >= _ASK:
                asked = time.monotonic()
                status = self._client.job(self._job)
                waits = status.state in _UNSTARTED
                if waits and status.reason and status.reason != told:
                    told = status.reason
                    _say(_standing(status))
        return None


def _standing(status: JobStatus) -> str:
    if status.state in _UNSTARTED:
        return f"{status.id} waits: {status.reason or 'no reason is known yet'}"
    return f"{status.id} {'has ended' if status.state == 'C' else 'runs on ' + ', '.join(status.nodes)}"


def _ending(status: JobStatus) -> str:
    if status.exit_status is None:
        return "was deleted before it ran"
    return f"ended by {status.cause}{': ' + status.comment if status.comment else ''}"


def _say(text: str) -> None:
    click.echo(f"hpcmesos: {text}", err=True)
