"""Parsl, from PyPI, with both of its PBS providers."""

from __future__ import annotations

import pytest

from tests.e2e.clients_kit import Clients

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("personality", "provider"), [("torque", "torque"), ("pbspro", "pbspro"), ("torque", "pbspro")]
)
def test_a_block_is_a_job(clients: Clients, personality: str, provider: str) -> None:
    place = clients.directory(f"parsl-{personality}-{provider}")
    told = clients.program(personality, "parsl_squares.py", provider, place)
    assert told["squares"] == [number * number for number in range(10)]
    [job] = told["jobs"]
    assert told["states"] == {job: "JobState.RUNNING"}
    assert clients.cluster.wait(job)["job_state"] == "F"
