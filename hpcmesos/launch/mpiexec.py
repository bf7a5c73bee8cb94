"""The front of ``mpiexec`` and ``mpirun`` inside jobs.

Puts the rank wrapper before each program and runs the real launcher: the next one in PATH, else the one that
HPCMESOS_MPI names (a file or its directory), else the one beside this interpreter. A command line that it does not
understand goes through untouched. It returns what the first failing rank returned, for launchers cannot be trusted
with that.
"""

from __future__ import annotations

import os
import select
import sys

from hpcmesos.launch import programs, protocol, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NOT_FOUND = 127
_HANG = 3.0
"""Seconds that the launcher may take to see for itself what is broken."""
_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL for a launcher that does not."""
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")

_OTHERS = ("orterun", "prterun", "ompirun_wrapper")
_OF_THE_HOST = (
    *("CUDA_VISIBLE_DEVICES", "TMPDIR", "HOSTNAME", "HPCMESOS_NODE", "HPCMESOS_SHEPHERD", "HPCMESOS_TASKS"),
    *("PBS_NODENUM", "PBS_VNODENUM", "PBS_NODEFILE", "PBS_GPUFILE", "PBS_MOMPORT"),
)
# Options without their dashes: how many words follow. What Hydra and Open MPI read differently (-s) is left out.
_HYDRA = {
    0: "l prepend-rank prepend-timestamp verbose v print-all-exitcodes genvall genvnone envall envnone"
    " disable-hostname-propagation enable-hostname-propagation disable-auto-cleanup enable-auto-cleanup"
    " disable-x enable-x debug print-rank-map rr",
    1: "n np f hostfile hosts host ppn genvlist envlist wdir wd dir umask launcher launcher-exec bootstrap"
    " bootstrap-exec rmk iface bind-to map-by membind usize gpus-per-proc prepend-pattern outfile-pattern"
    " errfile-pattern localhost timeout order-nodes pmi-port perhost grr",
    2: "genv env",
}
_OPEN_MPI = {
    0: "oversubscribe nooversubscribe report-bindings tag-output timestamp-output allow-run-as-root nolocal q quiet"
    " merge-stderr-to-stdout pernode bynode byslot bycore bysocket use-hwthread-cpus display-map display-allocation"
    " bind-to-core bind-to-socket bind-to-none do-not-launch",
    1: "n np c H host hostfile machinefile default-hostfile map-by rank-by bind-to x wdir wd N npernode npersocket"
    " cpus-per-proc cpu-set cpu-list output-filename output display rankfile rf timeout stdin prefix personality"
    " report-pid report-uri tune",
    2: "mca gmca prtemca pmixmca omca",
}
_WORDS = {name: count for table in (_HYDRA, _OPEN_MPI) for count in table for name in table[count].split()}


def main(argv: list[str]) -> int:
    """``argv[0]``: the name by which the front was called."""
    name, arguments = argv[0], argv[1:]
    real = find_launcher(name)
    if real is None:
        sys.stderr.write(f"{name}: no MPI launcher found in PATH; load an MPI module or set HPCMESOS_MPI\n")
        return _NOT_FOUND
    path = os.environ.get("HPCMESOS_SOCKET")
    step = Step.begin(path, [name, *arguments]) if path and wrap(arguments, []) is not None else None
    if step is None:
        os.execv(real, [real, *arguments])  # noqa: S606  (an argument list is the point)
    wrapped = wrap(arguments, [sys.executable, "-IS", programs.START, "rank_wrapper", step.name, "--"])
    assert wrapped is not None
    os.environ["HPCMESOS_STEP"] = step.name  # by which the shepherds know what belongs to it
    if is_hydra(real):
        _leave_hosts_their_own()
    return step.verdict(name, _Launcher(real, [real, *wrapped]).run(step.connection))


def wrap(arguments: list[str], wrapper: list[str]) -> list[str] | None:
    """The arguments with ``wrapper`` before the program of each ``:`` section; None when they are not understood."""
    result: list[str] = []
    rest = list(arguments)
    while True:
        section = rest[: rest.index(":")] if ":" in rest else rest
        program = program_index(section)
        if program is None:
            return None
        result += [*section[:program], *wrapper, *section[program:]]
        rest = rest[len(section) :]
        if not rest:
            return result
        result.append(rest.pop(0))


def program_index(section: list[str]) -> int | None:
    """Where the program stands behind the options; None when there is none, or an option that we do not know."""
    index = 0
    while index < len(section) and section[index].startswith("-"):
        option, _, value = section[index].lstrip("-").partition("=")
        if option not in _WORDS:
            return None
        index += 1 if value else 1 + _WORDS[option]
    return index if index < len(section) else None


def find_launcher(name: str) -> str | None:
    """The real launcher of that name."""
    given = os.environ.get("HPCMESOS_MPI")
    places = [os.path.join(given, "bin", name), os.path.join(given, name), given] if given else []
    return programs.find(name, places)


def is_hydra(launcher: str) -> bool:
    """Of the MPICH family: its proxy lies beside it."""
    directory, name = os.path.split(os.path.realpath(launcher))
    beside = ("hydra_pmi_proxy", "hydra_bstrap_proxy")
    return name not in _OTHERS and any(os.path.exists(os.path.join(directory, other)) for other in beside)


def _leave_hosts_their_own() -> None:
    """Hydra lays this environment over that of every host; with HYDRA_ENV=none it would not, and could not spawn."""
    if os.environ.get("HYDRA_ENV") == "none":
        del os.environ["HYDRA_ENV"]
        for name in _OF_THE_HOST:
            os.environ.pop(name, None)


class Step:
    """What the shepherd keeps of this launch, for as long as the connection lives: then it ends what is left of it."""

    def __init__(self, connection: Any, name: str) -> None:
        self.connection = connection
        self.name = name

    @classmethod
    def begin(cls, path: str, command: list[str]) -> Step | None:
        """None when the shepherd does not answer."""
        try:
            connection = protocol.connect(path)
            connection.sendall(protocol.message({"op": "step", "command": command}))
            answer = protocol.answer(connection, "step")
        except (OSError, protocol.FrameError):
            return None
        return cls(connection, str(answer["step"])) if answer else None

    def verdict(self, name: str, code: int) -> int:
        """The launcher has returned ``code``; answers what the first failing rank returned, if one failed.

        Else it is 255 where the launcher says 0 and has lost a host or ranks.
        """
        request = {"op": "step_end", "step": self.name, "code": code}
        try:
            self.connection.sendall(protocol.message(request))
            answer = protocol.answer(self.connection, "ranks")
        except (OSError, protocol.FrameError):
            return code
        if answer is None:
            return code
        if failed := answer["first_failed"]:
            number, gpu = failed["signal"], failed.get("gpu")
            how = f"exited with code {failed['code']}" if number is None else f"was killed by signal {number}"
            how += protocol.STARVED if failed.get("starved") else ""
            place = f"{failed['node']}, {gpu}" if gpu else failed["node"]
            sys.stderr.write(f"{name}: rank {failed['rank']} ({place}) {how}\n")
        elif code == 0 and answer["broken"]:
            sys.stderr.write(f"{name}: {answer['broken']}\n")
        return int(answer["code"])


class _Launcher:
    """The real launcher, which may wait for ever for what the shepherd knows to be gone."""

    def __init__(self, program: str, argv: list[str]) -> None:
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.execv(program, argv)  # noqa: S606  (no shell is the point)
            except OSError as error:
                sys.stderr.write(f"{program}: {error.strerror}\n")
            finally:
                os._exit(_NOT_FOUND)
        quick.signal.set_wakeup_fd(wake_write)
        for name in (*_PASSED_ON, "SIGCHLD"):
            quick.signal.signal(getattr(quick.signal, name), lambda number, frame: None)

    def run(self, shepherd: Any) -> int:
        """Passes signals on; answers the exit code."""
        sources, patience = [shepherd, self._wake], [_HANG, _GRACE]
        asked = False
        while True:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if done:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            ready, _, _ = select.select(sources, [], [], patience[0] if asked and patience else None)
            if self._wake in ready:
                self._pass_signals()
            elif shepherd in ready:  # it says what is broken, or is gone itself
                asked = True
                sources = [self._wake]
            elif not ready:
                self._kill(quick.signal.SIGTERM if len(patience) == 2 else quick.signal.SIGKILL)
                del patience[0]

    def _pass_signals(self) -> None:
        for number in os.read(self._wake, 64):
            if number != quick.signal.SIGCHLD:
                self._kill(number)

    def _kill(self, number: int) -> None:
        try:  # noqa: SIM105  (contextlib costs 3 ms to import)
            os.kill(self._pid, number)
        except OSError:
            pass
