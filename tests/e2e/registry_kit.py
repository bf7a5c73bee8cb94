"""An image registry that asks who one is, on loopback: as much of OCI's distribution as a pull needs."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.e2e.docker_kit import Engine

USER, PASSWORD = "puller", "s3:cret"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


@contextmanager
def registry(engine: Engine, image: str) -> Iterator[str]:
    """Serves ``image``, which the Engine has; answers the name under which it can be pulled."""
    content = _saved(engine, image)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {word}":
                self._answer(401, b"{}", "application/json")
            elif self.path == "/v2/":
                self._answer(200, b"{}", "application/json")
            elif found := content.get(self.path.rpartition("/")[2]):
                self._answer(200, found[1], found[0])
            else:
                self._answer(404, b"{}", "application/json")

        do_HEAD = do_GET  # noqa: N815  (the library's name)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/private:1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _saved(engine: Engine, image: str) -> dict[str, tuple[str, bytes]]:
    """Media type and content by tag and digest."""
    path = engine.root / "saved.tar"
    path.write_bytes(engine.ask("GET", f"/images/{image}/get", timeout=120))
    try:
        return _blobs(path)
    finally:
        path.unlink()


def _blobs(path: Path) -> dict[str, tuple[str, bytes]]:
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        (listed,) = json.loads(read("manifest.json"))
        config, layers = read(listed["Config"]), [read(name) for name in listed["Layers"]]

    def described(kind: str, data: bytes) -> dict[str, object]:
        return {"mediaType": kind, "size": len(data), "digest": _digest(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": described(_CONFIG, config),
            "layers": [described(_LAYER, layer) for layer in layers],
        }
    ).encode()
    blobs = {
        _digest(data): (kind, data) for kind, data in [(_CONFIG, config), *((_LAYER, x) for x in layers)]
    }
    return blobs | {"1": (_MANIFEST, manifest), _digest(manifest): (_MANIFEST, manifest)}
