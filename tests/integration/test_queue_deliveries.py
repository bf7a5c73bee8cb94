"""What a gateway is told to write, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmesos.queue.deliveries import Deliveries, DeliveryRecord

if TYPE_CHECKING:
    from hpcmesos.queue.store import Store

pytest_plugins = ["tests.integration.database_kit"]


def add(deliveries: Deliveries, attempt: str, owner: str = "ann", stream: str = "stdout") -> None:
    deliveries.add(
        DeliveryRecord(
            attempt=attempt, stream=stream, gateway="login1", owner=owner, path="/home/out",
            name="out", umask=0o077, append=False, size=1,
        )
    )  # fmt: skip


def waiting(deliveries: Deliveries) -> list[tuple[str, str]]:
    return [(one.attempt, one.stream) for one in deliveries.waiting("login1")]


def test_an_earlier_attempt_is_written_first(store: Store) -> None:
    deliveries = store.deliveries
    for attempt in ("7[1].hpcm#10", "7[1].hpcm#9", "7[2].hpcm#2"):
        add(deliveries, attempt)
    add(deliveries, "7[1].hpcm#10", stream="stderr")
    assert waiting(deliveries) == [
        ("7[1].hpcm#9", "stdout"),
        ("7[2].hpcm#2", "stdout"),
        ("7[1].hpcm#10", "stderr"),
    ]
    assert deliveries.finish("login1", "7[1].hpcm#9", "stdout", "no room")
    assert ("7[1].hpcm#10", "stdout") in waiting(deliveries)
    assert deliveries.any_of(["7[1].hpcm#8", "7[1].hpcm#9"], "stdout")
    assert not deliveries.any_of(["7[1].hpcm#8", "7[1].hpcm#11"], "stdout")


def test_nobody_waits_behind_all_that_another_has(store: Store) -> None:
    deliveries = store.deliveries
    for number in range(1, 121):
        add(deliveries, f"{number}.hpcm#1")
    add(deliveries, "200.hpcm#1", "bob")
    assert waiting(deliveries)[1] == ("200.hpcm#1", "stdout")


def test_what_the_log_store_drops_is_given_up(store: Store) -> None:
    deliveries = store.deliveries
    add(deliveries, "7.hpcm#1")
    add(deliveries, "8.hpcm#1")
    deliveries.finish("login1", "8.hpcm#1", "stdout", "")
    assert deliveries.waits("login1", "7.hpcm#1", "stdout")
    for attempt in ("7.hpcm#1", "8.hpcm#1", "9.hpcm#1"):
        deliveries.drop(attempt, "stdout")
    assert waiting(deliveries) == []
    assert not deliveries.waits("login1", "7.hpcm#1", "stdout")
    assert deliveries.outcome("7.hpcm#1", "stdout") == "dropped from the log store to make room"
    assert deliveries.outcome("8.hpcm#1", "stdout") == ""


def test_the_end_of_a_job_waits_for_no_gateway_that_is_away_or_has_much_to_do(store: Store) -> None:
    deliveries = store.deliveries
    deliveries.enrol("login1")
    assert not deliveries.prompt("login1", 45, 1)
    deliveries.seen("login1")
    add(deliveries, "7.hpcm#1")
    assert deliveries.prompt("login1", 45, 1)
    add(deliveries, "8.hpcm#1")
    assert not deliveries.prompt("login1", 45, 1)
