"""The container of an attempt on one node, as the shepherd's children enter it; see docs/containers.md.

Docker makes the container and mounts what belongs into it; what runs in it are the shepherd's own children, which join
its mount namespace. So their ends, signals, output and cgroup are those of any other process of a job, and need no
Docker Engine any more.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

SHELL = "/bin/sh"
"""Runs scripts that name no shell: the owner's login shell is the host's."""
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108  (what is replaced)
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION = 8
"""Bytes of a struct sock_filter."""
_CAPABILITIES = 64
_KEPT_BY_ROOT = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})
"""Docker's own choice (moby/oci/caps/defaults.go) but for CAP_MKNOD: the attempt's cgroup, not Docker's, holds them."""
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@dataclass(slots=True)
class PrivateTmp:
    """The files that a process has anyway, but with ``directory`` in place of /tmp and /var/tmp."""

    directory: str

    def enter(self, uid: int) -> None:
        """In the child, as root. Raises OSError when the kernel refuses, or the directory is not the owner's.

        What the host mounts later, an automounter say, is seen; what is mounted here is not seen by the host.
        """
        _check(_libc.unshare(_CLONE_NEWNS))
        _check(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None))
        # By its descriptor: the owner may have put a link in its place, and root would follow it anywhere.
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        held = os.open(self.directory, flags)
        try:
            if os.fstat(held).st_uid != uid:
                raise PermissionError(errno.EPERM, f"{self.directory} is not the owner's")
            for place in filter(os.path.isdir, TEMPORARY):  # an image may lack them
                _check(_libc.mount(b"/proc/self/fd/%d" % held, place.encode(), None, _MS_BIND, None))
        finally:
            os.close(held)

    def restrict(self) -> None:
        """Nothing that would not hold on the host."""


@dataclass(slots=True)
class Container:
    """``environ``: the image's variables. ``filters``: seccomp's, of Docker's choice. ``private_tmp``: laid over it."""

    environ: dict[str, str] = field(default_factory=dict)
    filters: tuple[bytes, ...] = ()
    private_tmp: PrivateTmp | None = None
    _namespace: int = -1

    @classmethod
    def of(
        cls, pid: int, environ: dict[str, str], filters: Iterable[bytes], private_tmp: PrivateTmp | None
    ) -> Container:
        """Of the process that Docker started in it. Raises OSError when that has ended."""
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        return cls(environ, tuple(filters), private_tmp, namespace)

    def enter(self, uid: int) -> None:
        """In the child, as root: the files are the image's from here on, and nothing gives rights back.

        Raises:
            OSError: the kernel refuses.
        """
        _check(_libc.setns(self._namespace, _CLONE_NEWNS))
        if self.private_tmp:
            self.private_tmp.enter(uid)
        for capability in range(_CAPABILITIES):
            if uid or capability not in _KEPT_BY_ROOT:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that this kernel lacks
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))

    def restrict(self) -> None:
        """In the child, as the owner, right before its program: the system calls are those that Docker would allow.

        Raises:
            OSError: the kernel refuses.
        """
        for instructions in self.filters:
            program = _Program(len(instructions) // _INSTRUCTION, instructions)
            _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))

    def close(self) -> None:
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


View = Container | PrivateTmp
"""What a process sees of the file system, where it is not simply the host's."""


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
