"""The agent's connection to its shepherd."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.agent.control import Control
from hpcmesos.agent.events import Event, FromShepherd
from hpcmesos.agent.service import pid_file
from hpcmesos.config import AgentSettings
from hpcmesos.errors import StateError
from hpcmesos.launch import protocol


def test_a_message_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    heard: list[Event] = []

    def sink(event: Event) -> None:
        if event == FromShepherd({"event": "ended", "code": 2}):
            raise OverflowError("an integer that does not fit into a message")
        heard.append(event)

    async def converse(*messages: Any) -> None:
        settings = AgentSettings(node="n1", master="unix:/nowhere", state=tmp_path, sockets=tmp_path)
        reader = asyncio.StreamReader()
        for message in messages:
            reader.feed_data(protocol.frame(protocol.MESSAGE, json.dumps(message).encode()))
        reader.feed_eof()
        await Control(settings, {}, sink)._converse(reader)

    good = {"event": "ready", "attempt": "1.h#1"}
    asyncio.run(converse({"code": float("nan")}, {"text": "\udcff"}, {"event": "ended", "code": 2}, good))
    assert heard == [FromShepherd(good)]


def test_a_pid_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"cannot write {tmp_path}: Is a directory"):
        pid_file(tmp_path, "an agent")
