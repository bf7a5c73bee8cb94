"""Listens between a rank and Hydra, which kills whomever it hears an abort from before anybody else could hear of it.

What the rank says over PMI goes on unchanged; an abort goes on once the shepherd knows of it.
"""

from __future__ import annotations

import os
import select

from hpcmesos.launch import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 65536
_ABORT, _CODE = b"cmd=abort", b"exitcode="
_LONGEST = 4096
"""Bytes of what was said last in which an abort is looked for: it may come in pieces."""


class Tap:
    """``theirs`` takes the place of ``hydra``, the descriptor in PMI_FD, for the rank.

    ``on_abort`` is called with the exit code, once, before Hydra hears of it.
    """

    def __init__(self, hydra: int, on_abort: Callable[[int], None]) -> None:
        """Raises OSError or AttributeError where the kernel (before Linux 5.3) or Python has no pidfds."""
        os.close(os.pidfd_open(os.getpid()))
        self.hydra = hydra
        self._on_abort: Callable[[int], None] | None = on_abort
        self._ours, theirs = quick.socket.socketpair()
        self.theirs = theirs.detach()
        os.set_inheritable(self.theirs, True)
        self._said = b""

    def serve(self, pid: int) -> None:
        """Passes on what both say until process ``pid`` has ended, and what it said last."""
        os.close(self.theirs)
        process = os.pidfd_open(pid)
        ours, over = self._ours.fileno(), False
        sources = select.poll()  # descriptors beyond 1023 are common where a launcher has hundreds of ranks
        for fd in (ours, self.hydra, process):
            sources.register(fd, select.POLLIN)
        while not over:
            ready = {fd for fd, _ in sources.poll()}
            over = process in ready
            if ours in ready and not self._pass_up():
                sources.unregister(ours)
            if self.hydra in ready and not self._pass_down():
                sources.unregister(self.hydra)
        while self._pass_up():
            pass
        os.close(process)
        self._ours.close()

    def _pass_up(self) -> bool:
        """To Hydra; False when there is nothing, or nobody to say anything any more."""
        try:
            data = self._ours.recv(_PIECE, quick.socket.MSG_DONTWAIT)
            if data:
                self._look(data)
                _write(self.hydra, data)
        except OSError:
            return False
        return bool(data)

    def _pass_down(self) -> bool:
        """To the rank; False when Hydra has hung up, which the rank has to see."""
        try:
            data = os.read(self.hydra, _PIECE)
        except OSError:
            data = b""
        try:
            if data:
                self._ours.sendall(data)
            else:
                self._ours.shutdown(quick.socket.SHUT_WR)
        except OSError:  # the rank has hung up
            return False
        return bool(data)

    def _look(self, data: bytes) -> None:
        self._said = (self._said + data)[-_LONGEST:]
        _, abort, words = self._said.partition(_ABORT)
        if abort and self._on_abort:
            _, _, code = words.partition(_CODE)
            number = code.split(b";")[0].split()[:1]
            self._on_abort(int(number[0]) if number and number[0].lstrip(b"-").isdigit() else 1)
            self._on_abort = None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
