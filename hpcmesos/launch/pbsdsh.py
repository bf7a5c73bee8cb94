"""``pbsdsh [-u] [-h HOST | -n INDEX] [-c COPIES] [-o] [-s] [-v] PROGRAM ARGS...``: a program on every slot of the job.

``-u``: once a host; ``-h``/``-n``: on one host (by name or address, or a line of PBS_NODEFILE counted from 0);
``-c``: on the first COPIES slots. Copies run at the same time (``-s`` and ``-o`` change nothing); the exit code is the
first that is not 0.
"""

from __future__ import annotations

import os
import sys

from hpcmesos.launch import remote_shell, tasks

_FLAGS = ("-u", "-o", "-s", "-v", "-E")


def main(argv: list[str]) -> int:
    """Exit code: the first of the copies' that is not 0; 2 for words that are none of ours."""
    words, options = list(argv), {}
    while words and words[0].startswith("-") and words[0] != "--":
        option = words.pop(0)
        if option in _FLAGS:
            options[option] = ""
        elif option in ("-h", "-n", "-c") and words:
            options[option] = words.pop(0)
        else:
            return _usage(f"unknown option {option}")
    if words[:1] == ["--"]:
        words.pop(0)
    path, nodefile = os.environ.get("HPCMESOS_SOCKET"), os.environ.get("PBS_NODEFILE")
    if not words:
        return _usage("a program is needed")
    if not path or not nodefile:
        sys.stderr.write("pbsdsh: not inside a job\n")
        return 1
    with open(nodefile, encoding="utf-8") as file:
        slots = file.read().split()
    hosts = choose(slots, options)
    if not hosts:
        return _usage("no such host in this job")
    command = "exec " + " ".join(map(quote, words))
    copies = [hosts[:position].count(host) for position, host in enumerate(hosts)]
    if "-n" in options:
        copies = [slots[: int(options["-n"])].count(hosts[0])]
    children = [_start(path, host, command, copy) for host, copy in zip(hosts, copies, strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def choose(slots: list[str], options: dict[str, str]) -> list[str]:
    """The hosts, one a copy; empty when the options name none. A COPIES or INDEX that is no number names none.

    Whether there is a host of a name, the shepherd knows: PBS_NODEFILE may have addresses.
    """
    if "-h" in options:
        return [options["-h"]]
    if "-n" in options:
        index = options["-n"]
        return [slots[int(index)]] if index.isdigit() and int(index) < len(slots) else []
    if "-u" in options:
        slots = list(dict.fromkeys(slots))
    copies = options.get("-c", str(len(slots)))
    return [slots[i % len(slots)] for i in range(int(copies))] if copies.isdigit() and slots else []


def quote(word: str) -> str:
    """The word as sh reads it back."""
    return "'" + word.replace("'", "'\\''") + "'"


def _start(path: str, host: str, command: str, copy: int) -> int:
    """``copy``: how many slots of that host come before; with a framework, the number of its task there."""
    pid = os.fork()
    if pid == 0:
        code = remote_shell.LOST
        if tasks.FILE in os.environ:
            os.environ[tasks.TASK] = str(copy)
        try:
            code = remote_shell.Session(path, host, command, False, "pbsdsh").run()
        except OSError as error:
            sys.stderr.write(f"pbsdsh: {host}: {error.strerror}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _usage(problem: str) -> int:
    sys.stderr.write(
        f"pbsdsh: {problem}\nusage: pbsdsh [-u] [-h host | -n index] [-c copies] program args...\n"
    )
    return 2
