"""How many jobs that are not over a queue or the server may have: in all, of a user, of a group, of a project. Pure.

============================= ==========================================================
attribute                     bounds
============================= ==========================================================
max_queuable (queues)         all jobs
max_user_queuable             jobs of each user
max_queued                    both, groups' and projects', in the form of ``max_run`` (see limits.py)
============================= ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpcmesos.pbs.manager_attributes import limit_of, total_limit
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.room import Kind


@dataclass(frozen=True, slots=True)
class Bound:
    """``most`` jobs of a kind may be there. ``text``: Torque's words for that there are; ``where``: queue or server."""

    kind: Kind
    most: int
    text: str
    where: str

    def told(self, there: int) -> str:
        return f"{there} jobs of at most {self.most} in {self.where}"


def of_queue(queue: QueueRecord, user: str, group: str, project: str) -> Iterator[Bound]:
    """Those of a queue that hold for jobs of these; empty: not known, or none."""
    inside: Kind = (("queue", queue.name),)
    yield from _bounds("queue", inside, f"queue {queue.name}", queue.attributes, user, group, project)


def of_server(attributes: Mapping[str, str], user: str, group: str, project: str) -> Iterator[Bound]:
    """As of_queue()."""
    yield from _bounds("server", (), "the server", attributes, user, group, project)


def _bounds(
    what: str,
    inside: Kind,
    where: str,
    attributes: Mapping[str, str],
    user: str,
    group: str,
    project: str,
) -> Iterator[Bound]:
    form, exceeds = attributes.get("max_queued", ""), f"exceeds the {what} limit"
    of_user = attributes.get("max_user_queuable")
    bounds: tuple[tuple[int | None, Kind, str], ...] = (
        (
            total_limit(attributes, "max_queuable", "max_queued"),
            (),
            "Maximum number of jobs already in queue",
        ),
        (
            limit_of(form, "u", user) if of_user is None else int(of_user),
            (("owner", user),),
            f"total number of current user's jobs {exceeds}",
        ),
        (
            limit_of(form, "g", group or user),
            (("egroup", group),) if group else (("owner", user),),
            f"total number of jobs of group {group or user} {exceeds}",
        ),
        (
            limit_of(form, "p", project),
            (("project", project),),
            f"total number of jobs of project {project or '(none)'} {exceeds}",
        ),
    )
    for most, kind, text in bounds:
        if most is not None:
            yield Bound(inside + kind, most, text, where)
