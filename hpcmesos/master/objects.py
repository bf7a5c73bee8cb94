"""Queues and the server as managers change them: between their rows and qmgr's flat attributes; the leader's side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hpcmesos.errors import HpcmesosError, InvalidValue, QueueBusy, QueueExists, UnknownQueue
from hpcmesos.master import reservations, shares
from hpcmesos.master.effects import Desk
from hpcmesos.model import Request
from hpcmesos.pbs.manager import Change
from hpcmesos.pbs.manager_attributes import apply
from hpcmesos.queue import documents
from hpcmesos.queue.records import InboxRow, QueueRecord

_COLUMNS = ("enabled", "started", "Priority")


def flat(queue: QueueRecord) -> dict[str, str]:
    """All attributes of a queue in the order in which they are shown."""
    attributes = dict(queue.attributes)
    kind = {"queue_type": attributes.pop("queue_type", "Execution")}
    priority = {"Priority": str(queue.priority)} if queue.priority else {}
    state = {"enabled": str(queue.enabled), "started": str(queue.started)}
    return {**kind, **priority, **dict(sorted(attributes.items())), **state}


def queue_of(name: str, attributes: Mapping[str, str]) -> QueueRecord:
    """The row of a queue with these attributes; one that does not say so takes no jobs and starts none."""
    kept = {key: value for key, value in attributes.items() if key not in _COLUMNS}
    if kept.get("queue_type") == "Execution":
        del kept["queue_type"]  # what every queue is that says nothing else
    return QueueRecord(
        name=name,
        enabled=attributes.get("enabled") == "True",
        started=attributes.get("started") == "True",
        priority=int(attributes.get("Priority", "0")),
        attributes=kept,
    )


def fenced(request: Request, queue: QueueRecord) -> Request:
    """The request with what the queue says of silent nodes (``silence = fence:SECONDS``)."""
    kind, _, seconds = queue.attributes.get("silence", "wait").partition(":")
    return replace(request, silence=int(seconds) if kind == "fence" else None)


def changed_queue(
    known: Mapping[str, QueueRecord], name: str, action: str, changes: Iterable[Change]
) -> QueueRecord | None:
    """The queue after a manager's wish; None: it is to go.

    Raises:
        QueueExists, UnknownQueue, and what apply() raises: nothing changes.
    """
    queue = known.get(name)
    if action == "create":
        if queue is not None:
            raise QueueExists("Queue already exists")
        return queue_of(name, apply("queue", {}, changes))
    if queue is None:
        raise UnknownQueue("Unknown queue")
    if action == "delete":
        return None
    return queue_of(name, apply("queue", flat(queue), changes))


def on_wish(desk: Desk, row: InboxRow) -> None:
    """Does what a manager wishes; the API has looked at it, but others may have been quicker.

    Raises:
        InvalidValue: it cannot be done any more; nothing changes.
    """
    payload = row.payload
    kind, name, action = str(payload.get("kind")), str(payload.get("name") or ""), str(payload.get("action"))
    changes = [Change(*change) for change in payload.get("changes") or ()]
    cluster = desk.cluster
    try:
        if kind == "queue":
            queue = changed_queue(cluster.queues, name, action, changes)
            if queue is None and any(job.queue == name for job in cluster.jobs.values()):
                raise QueueBusy("Queue is busy")
            cluster.put_queue(name, queue)
            desk.effects.queues[name] = queue
        elif kind == "server":
            cluster.attributes = apply("server", cluster.attributes, changes)
            cluster.changed = True
            desk.effects.server = cluster.attributes
        elif kind == "reservation":
            _reserve(desk, name, None if action == "delete" else payload.get("value") or {})
        elif kind == "shares":
            cluster.shares = shares.changed(cluster.shares, payload.get("value") or {})
            cluster.changed = True
            desk.effects.documents[documents.SHARES] = cluster.shares
        else:
            raise InvalidValue(f"an unknown kind of object: {kind}")
    except HpcmesosError as error:
        raise InvalidValue(f"{action} {kind} {name}: {error}") from error
    told: dict[str, Any] = {"user": row.user, "name": name, "changes": payload.get("changes") or []}
    if payload.get("value"):
        told["value"] = payload["value"]
    desk.tell(f"{kind} {action}", told)


def _reserve(desk: Desk, name: str, value: Mapping[str, Any] | None) -> None:
    cluster = desk.cluster
    cluster.reservations = reservations.changed(
        cluster.reservations,
        name,
        value,
        nodes=cluster.nodes,
        queues=cluster.queues,
        now=desk.now.timestamp(),
    )
    cluster.changed = True
    desk.effects.documents[documents.RESERVATIONS] = cluster.reservations
