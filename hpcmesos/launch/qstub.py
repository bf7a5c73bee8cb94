"""The command stub: ``qstub COMMAND SOCKETS PERSONALITY FULL_CLIENT ARGS...``; milliseconds long.

``SOCKETS``: of one master or of several on this host, separated by commas. Where none is, and HPCMESOS_URL is set, the
full client asks over the network.

It knows no option. It sends the command line to the API as typed, with the script when the last argument looks like
one, sends more when the answer asks for more, prints what comes back and exits with its code.

``stub.c`` does the same where nothing is unusual, and becomes this where something is, with what it has begun. A change
of one is a change of both (ADR 015).
"""

from __future__ import annotations

import os
import sys
from binascii import b2a_base64, hexlify
from time import monotonic, sleep

from hpcmesos.launch import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNREACHABLE = 255
_ALWAYS = ("HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG")
_SUBMITTING = ("qsub", "msub")
_AT_ONE_MASTER = "/v1/commands/qterm"
"""Sent once: the next master to hear it would stop, too."""
_LARGEST_SCRIPT = 1024 * 1024
"""Bytes; one more is sent, so that the API can say that it is too much."""
_PATIENCE = 30.0
"""Seconds that a request is tried again that broke, or that the API cannot serve now."""

_SILENCE = 20.0
"""Seconds without a byte after which another master is asked, where there is one."""

_HINT = 3.0
"""Seconds after which somebody at a terminal is told what is waited for."""

_UNMET = 5.0
"""The same when there is a way to a master, but no socket at its end."""


_BEGUN = "HPCMESOS_BEGUN_COMMAND"
"""A descriptor: the request that ``stub.c`` has sent; in the next line status and body of an answer that it leaves to
this program."""


class _Broken(Exception):
    """The connection ended before the whole answer was there; the same request may be sent again."""


class _Later(_Broken):
    """The API cannot serve the request now; with what it said and the exit code."""


class _Absent(FileNotFoundError):
    """No master is on this host; nothing was sent."""


class _Refused(Exception):
    """The API answered with an error of its own."""


def main(argv: list[str], submit_filter: str = "") -> int:
    """``submit_filter``: a program of the site that sees scripts first, where it is there."""
    command, path, personality, client, *arguments = argv
    if quick.signal.getsignal(quick.signal.SIGINT) != quick.signal.SIG_IGN:
        quick.signal.signal(quick.signal.SIGINT, quick.signal.SIG_DFL)  # Ctrl-C ends it without a word
    request, answered = _begun()
    if not request:
        request = _request(command, arguments, personality)
        if submit_filter and command in _SUBMITTING and os.path.lexists(submit_filter):
            request["submit_filter"] = submit_filter
            request.pop("script", None)
    try:
        reply = _judged(*answered) if answered else _ask(path, f"/v1/commands/{command}", request)
        while need := reply.get("need"):
            if need.get("terminal") and sys.stdin.isatty() and (need.get("script") or sys.stdout.isatty()):
                os.execv(client, [client, *need["terminal"]])  # noqa: S606  (an argument list is the point)
            _complete(request, need)
            reply = _ask(path, f"/v1/commands/{command}", request)
    except _Later as error:
        sys.stderr.write(f"{command}: {error.args[0]}\n")
        return int(error.args[1])
    except (OSError, _Broken) as error:
        if isinstance(error, _Absent) and os.environ.get("HPCMESOS_URL"):
            os.execv(client, [client, command, *arguments])  # noqa: S606  (an argument list is the point)
        sys.stderr.write(
            f"{command}: cannot connect to server ({path}: {_words(error)}); is the master running?\n"
        )
        return UNREACHABLE
    except _Refused as error:
        sys.stderr.write(f"{command}: {error.args[0]}\n")
        return int(error.args[1])
    if failed := _print(reply):
        sys.stderr.write(f"{command}: cannot write the answer: {failed}\n")
        return 1
    if reply.get("then"):
        os.execv(client, [client, *reply["then"]])  # noqa: S606  (an argument list is the point)
    return int(reply.get("code", 0))


def _begun() -> tuple[dict[str, Any], tuple[int, bytes] | None]:
    """The request that was sent, empty where none was, and its answer: status and body. The variable is for nobody
    else, and no job's.
    """
    descriptor = os.environ.pop(_BEGUN, "")
    try:
        with open(int(descriptor), "rb") as file:
            file.seek(0)
            sent, _, answer = file.read().partition(b"\n")
        request = quick.loads(sent.decode("ascii"))
    except (OSError, ValueError):  # nothing was begun
        return {}, None
    status, _, content = answer.partition(b" ")
    return request, (int(status), content) if answer else None


def _request(command: str, arguments: list[str], personality: str) -> dict[str, Any]:
    umask = os.umask(0o077)
    os.umask(umask)
    request: dict[str, Any] = {
        "argv": arguments,
        "cwd": _working_directory(),
        "umask": umask,
        "host": os.uname().nodename,
        "environ": {name: os.environ[name] for name in _ALWAYS if name in os.environ},
        "key": hexlify(os.urandom(16)).decode(),
        "personality": personality,
    }
    if command in _SUBMITTING and arguments and not arguments[-1].startswith("-"):
        _add_script(request, arguments[-1])
    return request


def _working_directory() -> str:
    """PWD when it is true (it keeps the links by which the user came here), else the kernel's answer."""
    logical = os.environ.get("PWD", "")
    try:
        if logical.startswith("/") and os.path.samestat(os.stat(logical), os.stat(".")):
            return logical
        return os.getcwd()
    except OSError:
        return "/"


def _add_script(request: dict[str, Any], path: str) -> None:
    """Sends the script along unasked if ``path`` is a regular file; the API asks for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    if os.fstat(fd).st_mode & 0o170000 != 0o100000:
        os.close(fd)
        return
    with open(fd, "rb", buffering=0) as file:
        _attach(request, path, _read(file))


def _attach(request: dict[str, Any], path: str, content: bytes) -> None:
    request["script"] = b2a_base64(content, newline=False).decode()
    request["script_path"] = path


def _read(file: Any) -> bytes:
    parts, left = [], _LARGEST_SCRIPT + 1
    while left and (data := file.read(min(left, 65536))) != b"":
        if data is None:  # whoever gave us this pipe does not wait for what is not there yet
            from select import select

            select([file], [], [])
            continue
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def _complete(request: dict[str, Any], need: dict[str, Any]) -> None:
    """Adds what the API asked for. Raises _Refused when the script cannot be read, or the site's filter refuses it."""
    content = b""
    if path := need.get("script"):
        try:
            if path == "-":
                content = _read(sys.stdin.buffer)
            else:
                with open(path, "rb", buffering=0) as file:
                    content = _read(file)
        except OSError as error:
            raise _Refused(f"script file {path}: {error.strerror}", 1) from error
    if need.get("filter"):
        content = _filtered(request, content)
    if path:
        _attach(request, path, content)
    if names := need.get("environ"):
        chosen = os.environ if "*" in names else [name for name in names if name in os.environ]
        request["environ"] |= {name: os.environ[name] for name in chosen}


def _filtered(request: dict[str, Any], content: bytes) -> bytes:
    from hpcmesos.launch import submit_filter  # most sites have none

    request["filtered"] = True
    try:
        return submit_filter.run(request["submit_filter"], request["argv"], content)
    except submit_filter.Refused as error:
        raise _Refused(error.args[0], 1) from error


def _print(reply: dict[str, Any]) -> str:
    """Why it could not be written; empty: it was. A reader that has seen enough (``qstat | head``) ends us silently."""
    quick.signal.signal(quick.signal.SIGPIPE, quick.signal.SIG_DFL)  # not before: a master may hang up
    for fd, text in ((1, reply.get("stdout")), (2, reply.get("stderr"))):
        try:
            left = memoryview((text or "").encode("utf-8", "surrogateescape"))
            while left:
                left = left[os.write(fd, left) :]
        except OSError as error:
            return error.strerror or str(error)
    return ""


# --- HTTP/1.1 over a unix socket, as much as one request needs ------------------------------------------------------


def _ask(paths: str, target: str, request: dict[str, Any]) -> dict[str, Any]:
    """The API's answer; what breaks is tried again, at the next master, with the same key: nothing is done twice."""
    body = quick.dumps(request).encode("ascii")
    head = (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    began, pause, met, told = monotonic(), 0.05, False, False
    while True:
        last: Exception | None = None
        several = paths.split(",")
        for path in several:
            try:
                return _exchange(path, _SILENCE if len(several) > 1 else None, head.encode("ascii") + body)
            except _Broken as error:
                if target == _AT_ONE_MASTER:
                    raise
                last, met = error, True
            except OSError as error:
                met = met or isinstance(
                    error, ConnectionRefusedError
                )  # a master that starts, or has just ended
                if last is None or isinstance(last, FileNotFoundError):
                    last = error
        assert last is not None
        if isinstance(last, FileNotFoundError) and not met:
            raise _Absent(last.errno, last.strerror)
        if monotonic() > began + (_PATIENCE if met else _UNMET):
            raise last
        if met and not told and monotonic() > began + _HINT and sys.stderr.isatty():
            told = True
            sys.stderr.write(
                f"{target.rpartition('/')[2]}: {_words(last)}; trying again for {_PATIENCE:.0f} s\n"
            )
        sleep(pause)
        pause = min(pause * 2, 0.5)


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error.args[0])


def _exchange(path: str, silence: float | None, data: bytes) -> dict[str, Any]:
    connection = quick.socket.socket(quick.socket.AF_UNIX, quick.socket.SOCK_STREAM)
    connection.settimeout(silence)
    try:
        connection.connect(path)
        try:  # noqa: SIM105  (contextlib costs 3 ms to import)
            connection.sendall(data)
        except OSError:
            pass  # an answer may be there all the same: a request that was refused half read
        return _answer(connection)
    finally:
        connection.close()


def _answer(connection: Any) -> dict[str, Any]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = _headers(head)
    if headers.get("transfer-encoding") == "chunked":
        content = _chunks(connection, body)
    else:
        length = int(headers.get("content-length", "0"))
        content = _up_to(connection, body, length)
    return _judged(status, content)


def _judged(status: int, content: bytes) -> dict[str, Any]:
    """Raises _Refused, and _Broken or _Later where the request may be sent again."""
    try:
        value = quick.loads(content.decode("utf-8"))
    except ValueError:
        value = None
    if status in (502, 503, 504):
        if isinstance(value, dict) and "message" in value:
            raise _Later(value["message"], value.get("exit_code", UNREACHABLE))
        raise _Broken(f"status {status}")
    if not isinstance(value, dict):
        raise _Refused(f"the server answered status {status} and no JSON", UNREACHABLE)
    if status >= 400:
        raise _Refused(value.get("message", f"status {status}"), value.get("exit_code", 1))
    return value


def _headers(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split()
    if len(words) < 2 or not words[1].isdigit():
        raise _Refused("the server's answer is not HTTP", UNREACHABLE)
    pairs = (line.partition(":") for line in lines)
    return int(words[1]), {name.strip().lower(): value.strip().lower() for name, _, value in pairs}


def _chunks(connection: Any, data: bytes) -> bytes:
    parts: list[bytes] = []
    while True:
        while b"\r\n" not in data:
            data += _receive(connection)
        size_line, _, data = data.partition(b"\r\n")
        size = int(size_line.split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        data = _up_to(connection, data, size + 2)
        parts.append(data[:size])
        data = data[size + 2 :]


def _up_to(connection: Any, data: bytes, size: int) -> bytes:
    """``data`` and what follows it, at least ``size`` bytes; joined once, for a list may be 100 MB."""
    parts, have = [data], len(data)
    while have < size:
        parts.append(_receive(connection))
        have += len(parts[-1])
    return b"".join(parts)


def _receive(connection: Any) -> bytes:
    try:
        data = connection.recv(65536)
    except OSError as error:
        raise _Broken(error.strerror or error) from error
    if not data:
        raise _Broken("the connection was closed before the answer")
    return bytes(data)
