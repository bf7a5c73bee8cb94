"""One door to the renderers: a query and the facts in, the text of the command's standard output out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from hpcmesos.pbs.facts import JobFacts, NodeFacts, QueueFacts, ServerFacts
from hpcmesos.pbs.nodes import nodes_dsv, nodes_json, nodes_list, nodes_text, nodes_xml
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render_full import dsv, full, full_queues, full_server
from hpcmesos.pbs.render_json import jobs_json
from hpcmesos.pbs.render_text import alternate, plain, queue_limits, queues, server_table, why
from hpcmesos.pbs.render_xml import jobs_xml
from hpcmesos.pbs.status import NodesFormat, NodesQuery, QstatFormat, QstatQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Who looks, and when: what the texts depend on beside the facts."""

    server: str
    version: str
    now: datetime  # aware
    zone: tzinfo | None = None  # the client's; None: times as they come
    personality: Personality = Personality.TORQUE


def render_jobs(query: QstatQuery, jobs: Sequence[JobFacts], view: View) -> str:
    """The jobs as ``query.format`` asks; for the formats of queues and the server see the functions below.

    Facts hold variables only of jobs whose variables the viewer may see, so that all are shown.
    """
    personality = view.personality
    match query.format:
        case QstatFormat.JSON:
            frame = {"version": view.version, "server": view.server}
            return jobs_json(jobs, view.zone, now=view.now, **frame, show_variables=True)
        case QstatFormat.XML:
            return jobs_xml(jobs, show_variables=True)
        case QstatFormat.FULL:
            return full(jobs, personality, view.zone, show_variables=True, one_line=query.one_line)
        case QstatFormat.DSV:
            return dsv(jobs, personality, view.zone, show_variables=True, delimiter=query.delimiter)
        case QstatFormat.WHY:
            return why(jobs)
        case QstatFormat.ALT:
            return alternate(
                jobs,
                view.server,
                personality,
                with_nodes=query.with_nodes,
                with_comment=query.with_comment,
                one_line=query.one_line,
            )
        case _:
            return plain(jobs, personality)


def render_queues(query: QstatQuery, found: Sequence[QueueFacts], view: View) -> str:
    """``-Q``, ``-Q -f`` and ``-q``."""
    if query.format is QstatFormat.LIMITS:
        return queue_limits(found, view.server)
    return full_queues(found) if query.full else queues(found, view.personality)


def render_server(query: QstatQuery, server: ServerFacts, view: View) -> str:
    """``-B`` and ``-B -f``."""
    return full_server(server) if query.full else server_table(server, view.personality)


def render_nodes(query: NodesQuery, nodes: Sequence[NodeFacts], view: View) -> str:
    """The nodes as ``query.format`` asks."""
    match query.format:
        case NodesFormat.JSON:
            return nodes_json(nodes, now=view.now, version=view.version, server=view.server)
        case NodesFormat.DSV:
            return nodes_dsv(nodes, query.delimiter)
        case NodesFormat.XML:
            return nodes_xml(nodes)
        case NodesFormat.LIST:
            return nodes_list(nodes, query.states, with_notes=query.with_notes)
        case NodesFormat.ALL:
            return nodes_text(nodes, view.personality)
