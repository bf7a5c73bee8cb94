"""The escape of an interactive session."""

from __future__ import annotations

import pytest

from hpcmesos.cli.interactive import Escape


@pytest.mark.parametrize(
    ("typed", "sent", "hangs_up"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"~."], b"", True),
        ([b"a\r", b"~", b"."], b"a\r", True),
        ([b"a~."], b"a~.", False),
        ([b"~a"], b"~a", False),
        ([b"~~."], b"~~.", False),
        ([b"\n~\r~."], b"\n~\r", True),
        ([b"cd ~/x\r"], b"cd ~/x\r", False),
    ],
)
def test_tilde_dot_hangs_up_at_the_beginning_of_a_line(
    typed: list[bytes], sent: bytes, hangs_up: bool
) -> None:
    escape = Escape()
    got = [escape.feed(data) for data in typed]
    assert (b"".join(data for data, _ in got), got[-1][1]) == (sent, hangs_up)
