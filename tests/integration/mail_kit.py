"""An SMTP server for tests whose port nobody else can take between its choice and its use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any

from aiosmtpd.controller import Controller


class Postbox(Controller):
    """aiosmtpd's, at a port of 127.0.0.1 that the kernel has given it; ``port`` says which."""

    def __init__(self, handler: Any, **options: Any) -> None:
        self._bound = socket.create_server(("127.0.0.1", 0))
        super().__init__(handler, hostname="127.0.0.1", port=self._bound.getsockname()[1], **options)

    def _create_server(self) -> Awaitable[asyncio.AbstractServer]:
        return self.loop.create_server(self._factory_invoker, sock=self._bound, ssl=self.ssl_context)
