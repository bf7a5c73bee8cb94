"""A gateway fetches a stream: from any master that has it; a loss, an absence and a full disk are told apart."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcmesos.agent.gateway import Masters
from hpcmesos.api_schema import Delivery
from hpcmesos.config import GatewaySettings
from hpcmesos.errors import MasterUnreachable, StateError, UnknownJob
from hpcmesos.master import pki
from tests.integration.unix_api_kit import answering

ONE = Delivery(
    attempt="7.hpcm#1", stream="stdout", owner="ann", path="/home/ann/out", name="out",
    umask=0o077, append=False, size=4,
)  # fmt: skip


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str, bytes | None], None]]:
    """Starts a master with this name, which has this content; None: it answers 404."""
    nothing = json.dumps({"code": "unknown-job", "message": "none here"}).encode()
    with ExitStack() as stack:

        def start(name: str, content: bytes | None) -> None:
            answer = (404, nothing) if content is None else (200, content)
            stack.enter_context(answering(tmp_path / name, lambda *asked: answer))

        yield start


@pytest.fixture
def masters(tmp_path: Path) -> Masters:
    """Two, ``a`` and ``b``, that do not run yet."""
    ca = pki.ensure_ca(tmp_path)
    certificate, key = pki.ensure_certificate(ca, tmp_path / "tls", "login1", "gateway", [])
    for source, name in ((ca.path, "ca.pem"), (certificate, "agent.pem"), (key, "agent.key")):
        shutil.copy(source, tmp_path / name)
    return Masters(
        GatewaySettings(
            node="login1",
            master=f"unix:{tmp_path}/a,unix:{tmp_path}/b",
            state=tmp_path,
            socket=tmp_path / "api.sock",
        )
    )


def test_one_that_has_it_is_enough(
    tmp_path: Path, masters: Masters, serve: Callable[[str, bytes | None], None]
) -> None:
    serve("a", None)
    serve("b", b"text")
    masters.fetch(ONE, tmp_path / "incoming")
    assert (tmp_path / "incoming").read_bytes() == b"text"


def test_it_is_lost_only_when_all_say_so(
    tmp_path: Path, masters: Masters, serve: Callable[[str, bytes | None], None]
) -> None:
    serve("a", None)
    with pytest.raises(MasterUnreachable):
        masters.fetch(ONE, tmp_path / "incoming")
    serve("b", None)
    with pytest.raises(UnknownJob):
        masters.fetch(ONE, tmp_path / "incoming")


def test_a_full_disk_here_is_no_fault_of_the_master(
    masters: Masters, serve: Callable[[str, bytes | None], None]
) -> None:
    serve("a", b"text")
    serve("b", b"text")
    with pytest.raises(StateError, match=os.strerror(28)):
        masters.fetch(ONE, Path("/dev/full"))
