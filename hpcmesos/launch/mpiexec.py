"""The front of ``mpiexec`` and ``mpirun`` inside jobs.

Puts the rank wrapper before each program and runs the real launcher: the next one in PATH, else the one that
HPCMESOS_MPI names (a file or its directory), else the one beside this interpreter. A command line that it does not
understand goes through untouched. It returns what the first failing rank returned, for launchers cannot be trusted
with that.
"""

from __future__ import annotations

import os
import sys

from hpcmesos.launch import protocol, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
_NOT_FOUND = 127
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")

# Options without their dashes: how many words follow. What Hydra and Open MPI read differently (-s) is left out.
_HYDRA = {
    0: "l prepend-rank prepend-timestamp verbose v print-all-exitcodes genvall genvnone envall envnone"
    " disable-hostname-propagation enable-hostname-propagation disable-auto-cleanup enable-auto-cleanup"
    " disable-x enable-x debug",
    1: "n np f hostfile hosts host ppn genvlist envlist wdir wd dir umask launcher launcher-exec bootstrap"
    " bootstrap-exec rmk iface bind-to map-by membind usize gpus-per-proc prepend-pattern outfile-pattern"
    " errfile-pattern localhost timeout order-nodes pmi-port",
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
    step = _begin(path, [name, *arguments]) if path else None
    wrapper = [sys.executable, "-IS", _START, "rank_wrapper", step or "", "--"]
    wrapped = wrap(arguments, wrapper) if step else None
    if not path or not step or wrapped is None:
        os.execv(real, [real, *arguments])  # noqa: S606  (an argument list is the point)
    code = _run(real, [real, *wrapped])
    return _verdict(name, path, step, code)


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
    places = [
        os.path.join(directory, name) for directory in os.environ.get("PATH", "").split(":") if directory
    ]
    if given := os.environ.get("HPCMESOS_MPI"):
        places += [os.path.join(given, "bin", name), os.path.join(given, name), given]
    places.append(os.path.join(os.path.dirname(sys.executable), name))
    return next((place for place in places if _is_program(place) and not _is_ours(place)), None)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_ours(path: str) -> bool:
    """Another node's front counts too: nodes of one host have one each."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(1024)
    except OSError:
        return False
    return head.startswith(b"#!/bin/sh\nexec ") and b"/hpcmesos/launch/__main__.py" in head


def _begin(path: str, command: list[str]) -> str | None:
    answer = _ask(path, {"op": "step", "command": command})
    return str(answer["step"]) if answer and "step" in answer else None


def _run(program: str, argv: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(program, argv)  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"{program}: {error.strerror}\n")
        finally:
            os._exit(_NOT_FOUND)

    def pass_on(number: int, _: object) -> None:
        try:  # noqa: SIM105  (contextlib costs 3 ms to import)
            os.kill(pid, number)
        except OSError:
            pass

    for name in _PASSED_ON:
        quick.signal.signal(getattr(quick.signal, name), pass_on)
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _verdict(name: str, path: str, step: str, code: int) -> int:
    answer = _ask(path, {"op": "step_end", "step": step, "code": code})
    failed = answer.get("first_failed") if answer else None
    if not failed:
        return code
    if failed["signal"] is not None:
        how, code = f"was killed by signal {failed['signal']}", 128 + int(failed["signal"])
    else:
        how, code = f"exited with code {failed['code']}", int(failed["code"])
    gpu = f", {failed['gpu']}" if failed.get("gpu") else ""
    sys.stderr.write(f"{name}: rank {failed['rank']} ({failed['node']}{gpu}) {how}\n")
    return code


def _ask(path: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """The shepherd's answer; None when there is none."""
    try:
        connection = protocol.connect(path)
        connection.sendall(protocol.message(request))
        frame = protocol.receive(connection, protocol.Parser(), [])
        connection.close()
        return protocol.decode(frame[1]) if frame else None
    except (OSError, protocol.FrameError):
        return None
