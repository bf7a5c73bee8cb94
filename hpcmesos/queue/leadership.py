"""Who leads: a session advisory lock elects, the term fences."""

from __future__ import annotations

APPLICATION = "hpcmesos-leader"
"""application_name of every connection of a LeaderStore: what a takeover terminates."""


class Leadership:
    """One candidate, with a connection of its own; used by one thread."""

    def __init__(self, url: str) -> None:
        raise NotImplementedError

    def try_acquire(self, holder: str, address: str, lease_seconds: float = 3.0) -> int | None:
        """Becomes leader if nobody is: terminates the old leader's backends, then answers the new term. None: another
        candidate leads. Raises DatabaseUnavailable.
        """
        raise NotImplementedError

    def renew(self, lease_seconds: float = 3.0) -> None:
        """Moves the expiry only. Raises LostLeadership when the term or the lock's session is gone."""
        raise NotImplementedError

    def release(self) -> None:
        """Steps down: lets the lease expire now and closes the connection. Never raises."""
        raise NotImplementedError
