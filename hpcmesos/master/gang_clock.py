"""How long a gang of which a member fell may take to tell its end, before the leader goes on without its word."""

from __future__ import annotations

from hpcmesos.master.cluster import Attempt
from hpcmesos.model import Cause
from hpcmesos.queue.records import Ending

GANG_LOSS = 30.0
"""Seconds after which the other parts of a lost gang have ended by their own clocks (docs: gang clock, 20 s)."""

HURRY = 5.0
"""Seconds between SIGTERM and SIGKILL, at most, in a gang of which a member fell; as its own members do
(``launch/order.py``).
"""

ACCUSED = 6.0
"""The same when a member has not heard the head for the gang's silence: the head's clock has run as long."""

HEARING = 5.0
"""Seconds that the head has from a member's report on, however long that one had to wait for a leader: the head's own,
and truer, may have waited as well. An agent's longest pause between two dials is 2 s, then a master that knows of no
leader yet answers after 1 s, then it dials.
"""

LINKING = 2.0
"""Seconds that the next leader gives the nodes to link before it gives up the head of such a gang.

Nine of ten agents need less than 1.7 (docs/nodes.md, Chaos), and the head has had its time under leaders before.
"""


def patience(attempt: Attempt, cause: Cause, culprit: str) -> float:
    """Seconds that the head of a gang of which a member fell has to tell its end: it hears that one, or misses it."""
    silent = cause is Cause.NODE_LOST and culprit == attempt.head
    return ACCUSED if silent else GANG_LOSS


def grace(ending: Ending | None) -> float:
    """Seconds that a part which was told its end may take beyond GANG_LOSS; those of a gang that goes on elsewhere."""
    return ending.kill_delay if ending is not None and ending.cause is Cause.PREEMPTED else 0.0
