"""By what the containers of attempts are found again, whoever made them: labels, and a file that says to look."""

from __future__ import annotations

import os

from hpcmesos.launch.settings import Config

STATE, ATTEMPT, SHEPHERD = "hpcmesos.state", "hpcmesos.attempt", "hpcmesos.shepherd"
OWN, OWNER = "hpcmesos.docker", "hpcmesos.owner"
"""Of those that a job has made itself: its attempt, and its owner's name."""


def labels(config: Config, attempt: str, token: str) -> dict[str, str]:
    """Of every container of an attempt; ``token``: of its shepherd."""
    return {STATE: config.state, ATTEMPT: attempt, SHEPHERD: token}


def note_use(config: Config) -> None:
    """Some container is about to be made for a job: later shepherds look for what is left."""
    with open(_mark(config), "a", encoding="ascii"):
        pass


def used(config: Config) -> bool:
    return os.path.exists(_mark(config))


def _mark(config: Config) -> str:
    return os.path.join(config.state, "containers")
