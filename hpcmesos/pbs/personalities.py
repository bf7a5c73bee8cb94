"""Where the two PBS families differ in what they print: Torque 6.1 and OpenPBS 23.06."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Personality(StrEnum):
    """Which family's text a client expects; chosen by the directory that its commands lie in."""

    TORQUE = "torque"
    PBSPRO = "pbspro"


def exit_field(personality: Personality) -> str:
    """The attribute that holds the exit status."""
    return "exit_status" if personality is Personality.TORQUE else "Exit_status"


def start_field(personality: Personality) -> str:
    """The attribute that holds the start time."""
    return "start_time" if personality is Personality.TORQUE else "stime"


def state_letter(
    state: str, personality: Personality, *, is_array: bool = False, in_live_array: bool = False
) -> str:
    """Torque's letter, or OpenPBS': ``F`` for finished, ``B`` for an array that has begun, ``X`` for an element that is
    over while others of its array are not.
    """
    if personality is Personality.TORQUE:
        return state
    if is_array and state == "R":
        return "B"
    if state == "C":
        return "X" if in_live_array else "F"
    return state


def element_name(name: str, index: int | None, personality: Personality) -> str:
    """The name that an element of an array shows (T:src/server/job_func.c); OpenPBS' have their array's."""
    return name if index is None or personality is Personality.PBSPRO else f"{name}-{index}"


def exec_host_text(hosts: Sequence[tuple[str, int]], personality: Personality) -> str:
    """``n1/0+n1/1+n2/0`` (Torque: one entry a slot) or ``n1/0*2+n2/0`` (OpenPBS: one entry a host)."""
    if personality is Personality.TORQUE:
        return "+".join(f"{node}/{slot}" for node, slots in hosts for slot in range(slots))
    return "+".join(f"{node}/0*{slots}" if slots > 1 else f"{node}/0" for node, slots in hosts)
