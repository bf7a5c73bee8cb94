"""An API on a unix socket that answers what a test says."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TypeAlias

Answer: TypeAlias = Callable[[str, str, bytes], tuple[int, bytes]]
"""Status and body for method, path and body; called in a thread for each connection."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Answer


class _Request(BaseHTTPRequestHandler):
    server: _Server

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        status, body = self.server.answer(self.command, self.path, data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = _serve  # noqa: N815  (the names by which it is called)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def answering(path: Path, answer: Answer) -> Iterator[None]:
    """Serves at ``path`` while the context lasts."""
    with _Server(str(path), _Request) as server:
        server.answer = answer
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
