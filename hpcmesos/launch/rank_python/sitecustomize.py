"""Ends MPI when a Python rank fails: mpi4py would wait in MPI_Finalize for ranks that wait for this one.

Does nothing unless mpi4py has begun MPI with more than one rank. The user's own ``sitecustomize`` runs as without us.
"""

import _thread
import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn


def _world() -> "Any":
    """COMM_WORLD, if others may wait for this rank there; else None."""
    mpi = sys.modules.get("mpi4py.MPI") if os.getpid() == _pid else None
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.Get_size() < 2:
        return None
    return mpi.COMM_WORLD


def _abort(code: int) -> None:
    world = _world()
    if world is None:
        return
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  (contextlib costs 3 ms to import)
            stream.flush()
        except Exception:  # noqa: S110  (nothing may stand between a failure and the end)
            pass
    _tell(code)
    world.Abort(code)


def _tell(code: int) -> None:
    """The shepherd hears who it was, for Hydra kills a rank that aborts at once, wrapper and all."""
    path, step, rank = (os.environ.get(f"HPCMESOS_{name}", "") for name in ("SOCKET", "STEP", "RANK"))
    if not (path and step and rank.isdigit()):
        return
    import json
    import socket

    about = {"op": "rank_end", "step": step, "rank": int(rank), "code": code, "signal": None}
    body = b"J" + json.dumps(about).encode()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(path)
            connection.sendall(len(body).to_bytes(4, "big") + body)
            connection.recv(64)
    except OSError:  # then nobody knows
        pass


class _Witness:
    """Travels with the exception of ``sys.exit``, and goes when that is dropped.

    An exception that someone catches is dropped while frames of Python run; one that ends the program is dropped by
    the interpreter itself, when the last frame has gone. That is the only sign of it before MPI_Finalize.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        self.thread = _thread.get_ident()

    def __del__(self) -> None:
        try:
            sys._getframe(1)
        except ValueError:
            if self.thread == _thread.get_ident() == _main_thread:
                _abort(self.code)


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    return value & 0xFF if isinstance(value, int) else 1


def _exit(status: "Any" = None) -> "NoReturn":
    error = SystemExit(status)
    if _exit_code(status):
        error.__dict__["_hpcmesos"] = _Witness(_exit_code(status))
    try:
        raise error
    finally:
        del error  # its traceback holds this frame, and would keep it alive in a ring


def _install() -> None:
    before = sys.excepthook

    def excepthook(kind: "type[BaseException]", value: BaseException, trace: "TracebackType | None") -> None:
        before(kind, value, trace)
        _abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    # What someone has kept is dropped when the modules go, which says nothing any more.
    atexit.register(globals().update, _main_thread=None)
    _exit.__doc__ = sys.exit.__doc__
    _exit.__name__ = "exit"
    sys.excepthook = excepthook
    sys.exit = _exit


def _chain() -> None:
    """The next ``sitecustomize`` of the path, as if this one were not there; importlib.util would cost 5 ms."""
    here, ours = __file__.rpartition("/")[0], sys.modules.pop("sitecustomize")
    places = [at for at, entry in enumerate(sys.path) if entry == here]
    for _ in places:
        sys.path.remove(here)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  (the user's, if any)
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        for at in places:
            sys.path.insert(at, here)
        sys.modules.setdefault("sitecustomize", ours)


_pid, _main_thread = os.getpid(), _thread.get_ident()
_install()
_chain()
