"""From which host somebody comes, as access lists judge it: by the connection, never by what the client says.

Names are looked up in threads of their own, are waited for a moment only, and what was found is kept for a while.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeAlias

from hpcmesos.master.auth import Caller

_PATIENCE = 1.0  # seconds that one look at an access list waits for the name service in all
_KEPT = 60.0  # seconds that an answer is believed
_SILENT = 10.0  # seconds until a name is asked for again whose answer did not come
_MOST = 1000  # answers that are kept
_THREADS = 16  # questions under way
_ALIASES = 4  # names of one address that are looked at
_WILD = frozenset("*?[")
# Of a pattern: no name fits it. What may be both is refused by pbs.manager_attributes.
_ADDRESSES = re.compile(r"[\d.*?!\[\]-]*|\d+\.(?:[\d.*?]|\[[\da-f!-]*\])*|.*:.*")
# There is no such name; 1 and 4: HOST_NOT_FOUND and NO_DATA of <netdb.h>.
_ABSENT = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, 1, 4})

log = logging.getLogger(__name__)

Names: TypeAlias = frozenset[str]


class Lookup:
    """Answers of the name service; ``ask`` raises OSError where there is none."""

    def __init__(self, ask: Callable[[str], Names]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._known: dict[str, tuple[float, Names | None]] = {}
        self._asked: set[str] = set()

    def of(self, name: str, until: float) -> Names | None:
        """None: not known, and not until ``until`` (monotonic clock, seconds)."""
        with self._changed:
            kept, found = self._known.get(name, (0.0, None))
            if time.monotonic() < kept:
                return found
            if name not in self._asked:
                if len(self._asked) >= _THREADS:
                    return None
                self._asked.add(name)
                threading.Thread(target=self._run, args=(name,), daemon=True).start()
            if self._changed.wait_for(lambda: name not in self._asked, max(0.0, until - time.monotonic())):
                return self._known.get(name, (0.0, None))[1]
            self._keep(name, None, _SILENT)
            return None

    def _run(self, name: str) -> None:
        found: Names | None = frozenset()
        try:
            found = self._ask(name)
        except (socket.gaierror, socket.herror) as error:
            found = frozenset() if error.errno in _ABSENT else None
        except UnicodeError:  # no name at all
            pass
        except Exception:
            found = None
            log.exception("%r cannot be looked up", name)
        with self._changed:
            self._keep(name, found, _SILENT if found is None else _KEPT)
            self._asked.discard(name)
            self._changed.notify_all()

    def _keep(self, name: str, found: Names | None, seconds: float) -> None:
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = time.monotonic() + seconds, found


def _addresses(name: str) -> Names:
    return frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(name, None))


def _names(address: str) -> Names:
    """The names of an address that have it themselves, and those of their first labels that do."""
    name, aliases, _ = socket.gethostbyaddr(address)
    full = [one.lower().rstrip(".") for one in (name, *aliases[: _ALIASES - 1])]
    return frozenset(one for one in (*full, *(one.partition(".")[0] for one in full)) if _has(one, address))


def _has(name: str, address: str) -> bool:
    try:
        return address in _addresses(name)
    except (OSError, UnicodeError):
        return False


# Apart: the lists' entries are the managers', the names of an address are up to whoever has it.
_entries = Lookup(_addresses)
_reverse = Lookup(_names)
_here = Lookup(lambda name: frozenset({name, name.partition(".")[0], "localhost", socket.getfqdn().lower()}))


def peer_of(caller: Caller) -> str:
    """What is certain of where a caller is: the name of this host or a gateway's, by their sockets; else an address."""
    return caller.host or (socket.gethostname() if caller.local else caller.address)


class Whereabouts:
    """Of one whose ``peer_of()`` is ``peer``, as entries of one access list judge it; made anew for each list."""

    def __init__(self, peer: str) -> None:
        self._address = _plain(peer)
        self._peer = peer.lower()
        self._until = time.monotonic() + _PATIENCE

    def fits(self, entry: str, *, bars: bool = False) -> bool:
        """Whether the entry, a name or an address, maybe with wildcards, is where he is.

        A name without wildcards is, when it has his address. With wildcards it is compared with his address and with
        names of his address that have it, too; where the wildcard is in its last part (``login*``), with those that
        have no domain: anybody may have a ``login1`` in a domain of his own.

        ``bars``: the entry keeps people out, so it fits unless it is certain that he is elsewhere. The name service
        has no such answer for a name with wildcards: whoever has an address names it, or not, as he likes.
        """
        entry = entry.lower()
        if not self._address:
            return any(fnmatchcase(name, entry) for name in self._certain())
        if fnmatchcase(self._address, entry):
            return True
        if not _WILD.isdisjoint(entry):
            return not _ADDRESSES.fullmatch(entry) and (bars or self._is_named_like(entry))
        if _plain(entry):
            return _plain(entry) == self._address
        found = _entries.of(entry, self._until)
        return bars if found is None else self._address in found

    def _is_named_like(self, pattern: str) -> bool:
        short = not _WILD.isdisjoint(pattern.rpartition(".")[2])
        found = _reverse.of(self._address, self._until) or ()
        return any(fnmatchcase(name, pattern) for name in found if not (short and "." in name))

    def _certain(self) -> Names:
        """His host's names: the short one counts, for the name is no word of his."""
        if self._peer == socket.gethostname().lower():
            return _here.of(self._peer, self._until) or frozenset({self._peer, "localhost"})
        return frozenset({self._peer, self._peer.partition(".")[0]})


def _plain(text: str) -> str:
    """An address in its usual form; empty: it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(address)
