"""pbsnodes, and the nodes as values for programs."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

import msgspec

from hpcmesos.api_schema import CommandReply, CommandRequest, GpuStatus, NodeStatus
from hpcmesos.errors import UnknownNode, WrongState
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import wishes
from hpcmesos.master.services.facts import node_facts
from hpcmesos.master.services.replies import VERSION, Refusals, information
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId, JobState
from hpcmesos.pbs.facts import NodeFacts
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render import View, render_nodes
from hpcmesos.pbs.status import NodesAction, NodesQuery, parse_pbsnodes
from hpcmesos.queue.records import GpuRecord, JobFilter, NodeRecord, ShareRecord

_HELD = frozenset({JobState.RUNNING, JobState.EXITING})
_ACTIONS = {
    NodesAction.OFFLINE: "offline",
    NodesAction.CLEAR: "clear",
    NodesAction.RESET: "clear",
    NodesAction.NOTE: "note",
    NodesAction.GONE: "gone",
}


def pbsnodes(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Shows nodes, or puts an operator's wish about them to the leader."""
    personality = Personality(request.personality)
    if told := information("pbsnodes", request.argv, personality):
        return told
    query = parse_pbsnodes(request.argv, personality)
    reply = _answer(site, caller, query, personality)
    return msgspec.structs.replace(reply, stderr="") if query.quiet else reply


def _answer(site: Site, caller: Caller, query: NodesQuery, personality: Personality) -> CommandReply:
    refusals = Refusals("pbsnodes", personality)
    known = {node.name: node for node in site.store.nodes()}
    chosen = _chosen(query, known, refusals)
    if query.action is not NodesAction.SHOW:
        auth.check_operator(caller, "change nodes")
        if query.action is NodesAction.GONE:
            for node in chosen:
                if node.up:
                    refusals.add(
                        node.name, WrongState(f"{node.name} is up: only a node that is down can be gone")
                    )
            chosen = [node for node in chosen if not node.up]
        if query.gpu is not None:
            chosen = [node for node in chosen if _has_gpu(node, query.gpu, refusals)]
        _wish(site, caller, query, chosen)
        return refusals.reply()
    view = View(server=site.settings.server, version=VERSION, now=datetime.now(UTC), personality=personality)
    return refusals.reply(render_nodes(query, facts(site, chosen), view))


def list_nodes(site: Site) -> list[NodeStatus]:
    """All nodes as values for programs."""
    records = site.store.nodes()
    return [_status(node, found) for node, found in zip(records, facts(site, records), strict=True)]


def _chosen(query: NodesQuery, known: dict[str, NodeRecord], refusals: Refusals) -> list[NodeRecord]:
    if not query.nodes:
        return list(known.values())
    for name in query.nodes:
        if name not in known:
            refusals.add(name, UnknownNode(f"Unknown node {name}"))
    return [known[name] for name in query.nodes if name in known]


def _wish(site: Site, caller: Caller, query: NodesQuery, chosen: list[NodeRecord]) -> None:
    action = _ACTIONS[query.action]
    sent = []
    for node in chosen:
        payload = {"node": node.name, "action": action, "note": query.note}
        gpus = _gpus_of(node, query.gpu)
        # A word about a card is about instances to come as well.
        named = list({gpu.parent for gpu in gpus if gpu.parent == query.gpu}) or [gpu.uuid for gpu in gpus]
        asked = [payload | {"action": f"gpu {action}", "gpu": uuid} for uuid in named]
        sent += [site.wish(caller, wishes.NODE, None, one) for one in asked or [payload]]
    if sent:
        site.notifier.poke()
        wishes.await_taken(site.store, sent)


def _gpus_of(node: NodeRecord, asked: str | None) -> list[GpuRecord]:
    """By index or UUID; by the UUID of a card in MIG mode all of its instances."""
    return [gpu for gpu in node.gpus if asked and asked in (gpu.uuid, gpu.parent, str(gpu.index))]


def _has_gpu(node: NodeRecord, asked: str, refusals: Refusals) -> bool:
    found = bool(_gpus_of(node, asked))
    if not found:
        refusals.add(node.name, UnknownNode(f"Unknown GPU {asked} of {node.name}"))
    return found


def facts(site: Site, nodes: list[NodeRecord]) -> list[NodeFacts]:
    """The nodes with the jobs that they hold, as pbsnodes shows them."""
    by_node: defaultdict[str, list[tuple[ShareRecord, str]]] = defaultdict(list)
    running = site.store.jobs(JobFilter(states=_HELD, brief=True))
    seqs = sorted({job.seq for job in running})
    for share in site.store.shares(seqs, live_only=True) if seqs else []:
        job = JobId(share.attempt.seq, site.settings.server, share.attempt.index)
        by_node[share.node].append((share, str(job)))
    figures = _figures(site, nodes)
    return [
        node_facts(
            node,
            [(share.slots, job) for share, job in by_node[node.name]],
            {uuid: job for share, job in by_node[node.name] for uuid in share.gpus},
            figures,
        )
        for node in nodes
    ]


def _figures(site: Site, nodes: list[NodeRecord]) -> dict[str, dict[str, float]]:
    """What real GPUs show, by UUID; nothing is asked for when there is none."""
    return site.gpus.recent() if any(not gpu.simulated for node in nodes for gpu in node.gpus) else {}


def _state(node: NodeRecord, facts: NodeFacts) -> str:
    """The one word that says most."""
    if not node.up:
        return "gone" if node.gone else "down"
    if node.offline:
        return "draining" if facts.jobs else "offline"
    return "busy" if "job-exclusive" in facts.state else "free"


def _status(node: NodeRecord, facts: NodeFacts) -> NodeStatus:
    return NodeStatus(
        name=node.name,
        state=_state(node, facts),
        cpus=node.cpus,
        memory=node.mem,
        declared=node.declared,
        address=node.address,
        features=list(node.features),
        gpus=[
            GpuStatus(
                index=gpu.index,
                uuid=gpu.uuid,
                model=gpu.model,
                state=gpu.state,
                simulated=gpu.simulated,
                job=gpu.job_id,
                note=gpu.note,
                parent=gpu.parent,
                profile=gpu.profile,
                memory=gpu.memory,
                numa=gpu.numa,
                nvlink_island=gpu.nvlink_island,
                figures=dict(gpu.figures),
            )
            for gpu in facts.gpus
        ],
        jobs=list(dict.fromkeys(job for _, job in facts.jobs)),
        note=node.note,
    )
