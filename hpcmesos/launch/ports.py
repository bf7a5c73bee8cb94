"""Whether the ports that were granted are there."""

from __future__ import annotations

import socket
from typing import Any

from hpcmesos.launch.settings import Refusal


def check(member: dict[str, Any]) -> None:
    """Binds each port of this member, on all addresses, as programs may, and lets go of it.

    Raises:
        Refusal: somebody has one of them; then the port is at fault, and the node is not.
    """
    address = member["address"]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in member.get("ports", ()):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Connections of those who had it before may linger; a listener is refused all the same.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                reason = f"port {port} of {member['node']} cannot be had: {error.strerror}"
                raise Refusal(reason, f"{address}:{port}") from error
