"""From which host somebody comes, as access lists judge it: by the connection, never by what the client says alone."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

from hpcmesos.master.auth import Caller

_KEPT = 60.0  # seconds that the addresses of a name are believed
_MOST = 1000  # names whose addresses are kept
_known: dict[str, tuple[float, frozenset[str]]] = {}
_lock = threading.Lock()


def peer_of(caller: Caller) -> str:
    """What is certain of where a caller is: the name of this host or a gateway's, by their sockets; else an address."""
    return caller.host or (socket.gethostname() if caller.local else caller.address)


def host_of(claimed: str, peer: str) -> str:
    """``claimed`` where that name has the address ``peer``; else what is certain."""
    if not is_address(peer):
        return peer
    address = ipaddress.ip_address(peer)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return claimed if str(address) in _addresses(claimed) else str(address)


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _addresses(name: str) -> frozenset[str]:
    now = time.monotonic()
    with _lock:
        until, found = _known.get(name, (0.0, frozenset()))
    if now < until:
        return found
    try:
        found = (
            frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(name, None)) if name else frozenset()
        )
    except (OSError, UnicodeError):
        found = frozenset()
    with _lock:
        if len(_known) >= _MOST:
            _known.clear()
        _known[name] = now + _KEPT, found
    return found
