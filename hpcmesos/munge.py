"""MUNGE credentials by libmunge (munge(7), munge_encode(3), munge_decode(3)).

A credential says which uid made it on some host of one realm, that is where the hosts share a key and their users' ids.
It is good for a short time and, at one host's munged, once. Ours carry what they are for, so that one that is caught
cannot be shown with another request.
"""

from __future__ import annotations

import ctypes
import functools
import pwd
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_void_p

from hpcmesos.errors import ConfigError, Unauthenticated

_LIBRARY = "libmunge.so.2"
_OPTION_TTL, _OPTION_SOCKET = 4, 8  # munge_opt_t
_NO_DAEMON = 6  # EMUNGE_SOCKET
_LIFE = 60  # seconds; munged's own default is 300


def encode(payload: bytes, socket: str = "") -> str:
    """A credential of this process' user. ``socket``: munged's, empty: the library's own default.

    Raises:
        ConfigError: there is no library, or no munged.
    """
    library = _library()
    credential = c_char_p()
    context = _context(library, socket)
    try:
        library.munge_ctx_set(c_void_p(context), c_int(_OPTION_TTL), c_int(_LIFE))
        _check(library, library.munge_encode(byref(credential), context, payload, len(payload)), ConfigError)
        return (credential.value or b"").decode("ascii")
    finally:
        library.free(credential)
        library.munge_ctx_destroy(context)


def decode(credential: str, socket: str = "") -> tuple[str, bytes]:
    """The name of the user who made the credential, and its payload.

    Raises:
        ConfigError: there is no library, or no munged.
        Unauthenticated: expired, seen before, another realm's, no credential at all; or its user has no name here.
    """
    library = _library()
    payload, length, uid, gid = c_void_p(), c_int(), c_uint32(), c_uint32()
    context = _context(library, socket)
    try:
        given = credential.encode("ascii", "replace")
        result = library.munge_decode(given, context, byref(payload), byref(length), byref(uid), byref(gid))
        _check(library, result, Unauthenticated)
        content = ctypes.string_at(payload, length.value) if payload.value else b""
    finally:
        library.free(payload)
        library.munge_ctx_destroy(context)
    try:
        return pwd.getpwuid(uid.value).pw_name, content
    except KeyError:
        raise Unauthenticated(
            f"the MUNGE credential's user id {uid.value} has no name on this host"
        ) from None


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise ConfigError(f"MUNGE is wanted, but {_LIBRARY} is not installed (Debian: libmunge2)") from None
    library.munge_ctx_create.restype = c_void_p
    library.munge_ctx_destroy.argtypes = [c_void_p]
    library.munge_encode.argtypes = [POINTER(c_char_p), c_void_p, c_char_p, c_int]
    library.munge_decode.argtypes = [
        c_char_p,
        c_void_p,
        POINTER(c_void_p),
        POINTER(c_int),
        POINTER(c_uint32),
        POINTER(c_uint32),
    ]
    library.munge_strerror.restype = c_char_p
    library.free.argtypes = [c_void_p]
    return library


def _context(library: ctypes.CDLL, socket: str) -> int:
    context = library.munge_ctx_create()
    if socket:
        library.munge_ctx_set(c_void_p(context), c_int(_OPTION_SOCKET), c_char_p(socket.encode()))
    return int(context)


def _check(library: ctypes.CDLL, result: int, error: type[ConfigError | Unauthenticated]) -> None:
    if result != 0:
        reason = (library.munge_strerror(result) or b"unknown error").decode("ascii", "replace")
        raise (ConfigError if result == _NO_DAEMON else error)(f"MUNGE: {reason}")
