"""What nodes report of themselves: their hello, their GPUs, attempts that they hold and that they deny."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from msgspec import structs

from hpcmesos import wire
from hpcmesos.errors import InvalidValue
from hpcmesos.master.absence import Absence
from hpcmesos.master.cluster import Attempt, Node, Phase
from hpcmesos.master.effects import Desk
from hpcmesos.master.events import LinkDown, LinkUp
from hpcmesos.master.gang_clock import HURRY
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.idle_gpus import take_samples
from hpcmesos.master.reports import clean
from hpcmesos.master.strangers import Strangers
from hpcmesos.model import AttemptId, Cause, GpuState
from hpcmesos.queue import documents
from hpcmesos.queue.leadership import RESTORED
from hpcmesos.queue.records import AttemptKey, GpuRecord, JobKey, NodeRecord

log = logging.getLogger(__name__)

_HEALTH = "health: "
"""How the note of a node begins that its health program keeps out of use."""
_RESTORED = "the database is a restored backup, and the job may be over; qrls -h s lets it run again"
"""Why a node may have held what it does not report."""


class Nodes:
    """Handlers of everything that comes from agents."""

    def __init__(self, desk: Desk, gangs: Gangs, absence: Absence) -> None:
        self.desk = desk
        self.gangs = gangs
        self.absence = absence
        self._finished: set[str] = set()  # strangers that the database knows as ended
        self._strangers = Strangers(desk)

    # --- links

    def on_up(self, event: LinkUp) -> None:
        """Takes in the node as it is, then brings its attempts and ours together."""
        hello = event.hello
        before = self.desk.cluster.nodes.get(event.node)
        forgot = _why_forgotten(before.record, hello) if before is not None else ""
        node = self._take_in(event.node, hello, hello.inventory)
        node.link = event.link
        self._send_words(event.node, hello.inventory.gpus)
        log.info("node up node=%s address=%s attempts=%d", event.node, hello.address, len(hello.attempts))
        reports = {report.attempt: report for report in hello.attempts}
        for attempt in list(self.desk.cluster.attempts.values()):
            if event.node in attempt.shares:
                report = reports.get(attempt.name)
                if report is None:
                    self._denied(attempt, event.node, forgot)
                else:
                    self._held(attempt, event.node, report.phase)
        self._strangers.reported(event.node, reports)
        strangers = [report for report in hello.attempts if not self._holds(event.node, report.attempt)]
        self._learn_finished(report.attempt for report in strangers)
        for report in strangers:
            self._stranger(event.node, report.attempt, report.phase, report.gpus)

    def _holds(self, node: str, name: str) -> bool:
        """Whether the node has a share of that attempt, by our books."""
        attempt = self.desk.cluster.attempts.get(name)
        return attempt is not None and node in attempt.shares

    def on_down(self, event: LinkDown) -> None:
        """A link is over; word of one that another has replaced changes nothing."""
        node = self.desk.cluster.nodes.get(event.node)
        if node is None or node.link != event.link:
            return
        node.link, node.view = None, None
        self.desk.cluster.changed = True
        log.warning("link down node=%s why=%r", event.node, event.why)
        # An agent that restarts is back in a moment; only later the node counts as down for everybody.
        self.absence.begins(event.node)

    # --- operators' wishes

    def on_wish(self, name: str, action: str, note: str | None, user: str, gpu: str = "") -> None:
        """``action``: "offline", "clear", "note" or "gone", or of one ``gpu`` "gpu offline" or "gpu clear".

        Raises:
            InvalidValue: no such node or action, or not in this state.
        """
        if name not in self.desk.cluster.nodes:
            raise InvalidValue(f"a wish about an unknown node: {name}")
        match action:
            case "gone" if self.desk.cluster.nodes[name].link is not None:
                raise InvalidValue(f"{name} is linked: it is not gone")
            case "gone":
                self.absence.gone(name, f"{user or 'an operator'} says that the node is gone")
            case "offline" | "clear":
                self._set_offline(name, action == "offline", note)
            case "note":
                self._set_offline(name, None, note)
            case "gpu offline" | "gpu clear" if not _has(self.desk.cluster.nodes[name], gpu):
                raise InvalidValue(f"a wish about an unknown GPU of {name}: {gpu}")
            case "gpu offline":  # what becomes of it, its agent says
                why = f"{note or 'taken out of use'} ({user or 'an operator'})"
                self._set_gpu(name, wire.SetGpu(uuid=gpu, fault=why))
            case "gpu clear":
                self._set_gpu(name, wire.SetGpu(uuid=gpu))
            case _:
                raise InvalidValue(f"an unknown wish about a node: {action}")
        told = (
            {"user": user, "node": name}
            | ({} if note is None else {"note": note})
            | ({"gpu": gpu} if gpu else {})
        )
        self.desk.tell(f"node {action}", told)

    def _set_gpu(self, name: str, word: wire.SetGpu) -> None:
        """For its agent; one that is away is told when it is back, at each hello until it tells of that GPU: until then
        `pbsnodes` shows what it said last.
        """
        away = self.desk.cluster.nodes[name].link is None
        words = self.desk.cluster.gpu_words.get(name, {})
        if away or word.uuid in words:
            self._keep_words(name, {**words, word.uuid: word.fault})
        if not away:
            self.desk.send(name, word)

    def _send_words(self, name: str, gpus: Iterable[wire.Gpu]) -> None:
        """To an agent that has just linked, but for those that its GPUs show obeyed already."""
        words = self.desk.cluster.gpu_words.get(name, {})
        self._drop_words(name, {gpu.uuid for gpu in gpus if _obeys(gpu, words.get(gpu.uuid))})
        for uuid, fault in self.desk.cluster.gpu_words.get(name, {}).items():
            self.desk.send(name, wire.SetGpu(uuid=uuid, fault=fault))

    def _drop_words(self, name: str, done: Collection[str]) -> None:
        """The agent has had those about ``done``, UUIDs of GPUs and cards."""
        words = self.desk.cluster.gpu_words.get(name, {})
        left = {uuid: fault for uuid, fault in words.items() if uuid not in done}
        if len(left) < len(words):
            self._keep_words(name, left)

    def _keep_words(self, name: str, words: Mapping[str, str]) -> None:
        """For this leader and the next."""
        others = {node: kept for node, kept in self.desk.cluster.gpu_words.items() if node != name}
        self.desk.cluster.gpu_words = others | ({name: words} if words else {})
        self.desk.effects.documents[documents.GPU_WORDS] = self.desk.cluster.gpu_words

    def _set_offline(self, name: str, offline: bool | None, note: str | None) -> None:
        """``offline`` None: only the note changes."""
        node = self.desk.cluster.nodes[name]
        wanted = node.record.offline if offline is None else offline
        node.record = structs.replace(
            node.record, offline=wanted, note=node.record.note if note is None else note
        )
        node.view = None
        self.desk.cluster.changed = True
        self.desk.effects.offline[name] = (wanted, note)

    # --- inventory

    def on_inventory(self, name: str, inventory: wire.Inventory) -> None:
        node = self.desk.cluster.nodes[name]
        self._drop_words(name, _uuids(inventory.gpus))
        self._take_in(name, None, inventory)
        node.view = None

    def _take_in(self, name: str, hello: wire.Hello | None, inventory: wire.Inventory) -> Node:
        cluster = self.desk.cluster
        node = cluster.nodes.get(name)
        record = NodeRecord(
            name=name,
            cpus=inventory.cpus,
            mem=inventory.memory,
            features=inventory.features,
            declared=inventory.declared,
            os=clean(inventory.os),
            isolation=clean("+".join(inventory.isolation)),
            hostname=clean(inventory.hostname),
        )
        told = hello or (node.record if node is not None else None)
        if told is not None:
            record = structs.replace(
                record,
                address=told.address,
                peer_port=told.peer_port,
                boot_id=told.boot_id,
                journal=told.journal,
                version=told.version,
            )
        if node is None:
            node = cluster.nodes[name] = Node(record, {}, 0, 0)
        old = node.record
        node.record = structs.replace(record, offline=old.offline, note=old.note, ends_at=old.ends_at)
        node.words = {gpu.uuid: GpuState(gpu.state) for gpu in inventory.gpus}
        held = cluster.held(name)
        node.gpus = {gpu.uuid: _gpu_record(name, gpu, gpu.uuid in held) for gpu in inventory.gpus}
        node.view = None
        cluster.changed = True
        self.desk.effects.nodes.append(structs.replace(node.record, up=True, gpus=tuple(node.gpus.values())))
        return node

    def on_gpus(self, name: str, gpus: tuple[wire.Gpu, ...]) -> None:
        """A GPU in a share keeps its state until the share ends, but for one that is lost."""
        self._drop_words(name, _uuids(gpus))
        node = self.desk.cluster.nodes[name]
        held = self.desk.cluster.held(name)
        for gpu in gpus:
            if gpu.uuid not in node.gpus:
                continue
            state = node.words[gpu.uuid] = GpuState(gpu.state)
            if (gpu.uuid not in held or state is GpuState.LOST) and state is not GpuState.ALLOCATED:
                self.desk.set_gpu(node, gpu.uuid, state, clean(gpu.note))

    # --- attempts

    def _held(self, attempt: Attempt, node: str, phase: str) -> None:
        """The node has its part."""
        if phase == "ended":
            return  # it tells the end by itself, until we have it
        if attempt.end is not None:
            self.desk.send(node, attempt.end)
        elif attempt.phase is Phase.OVER:
            self._end_leftover(node, attempt.name)
        elif node == attempt.head and phase not in ("preparing", "ready"):
            self.gangs.on_started(attempt, None)
            if attempt.end is None:
                self.gangs.tell_walltime(attempt)  # it may have changed while the node was away
        elif node == attempt.head and attempt.phase is Phase.UNSURE:
            self._resume_start(attempt)
        elif phase == "ready" and attempt.phase is Phase.RUNNING:
            self.gangs.tell_suspended(attempt, node)
        if phase == "ready":
            self.gangs.on_ready(attempt, node)
            if attempt.phase is Phase.STARTING and node == attempt.head:
                self.desk.send(node, wire.Go(attempt=attempt.name))  # idempotent; the first one may be lost

    def _resume_start(self, attempt: Attempt) -> None:
        """GO never worked on the head, so the start goes on under this leader."""
        attempt.phase = Phase.PREPARING
        self.gangs.watch(attempt)
        self.gangs.prepare(attempt, attempt.missing)
        attempt.missing.clear()
        self.gangs.tell_walltime(attempt)  # what the head prepared may be older than the wish for another one

    def _denied(self, attempt: Attempt, node: str, forgot: str) -> None:
        """The node has no such part: never had, or lost it. ``forgot``: why it may not know what it had."""
        if forgot == _RESTORED:
            attempt.hold = "s"  # it may have ended well
        if node == attempt.head and not forgot and self.gangs.never_began(attempt):
            return
        if attempt.end is not None or attempt.phase is Phase.OVER:
            self.gangs.part_lost(attempt, node, "it knows nothing of the attempt")
        elif attempt.phase is Phase.PREPARING and not (forgot and node in attempt.ready):
            attempt.ready.discard(node)
            self.gangs.prepare(attempt, [node])
        elif attempt.phase is Phase.PREPARING:
            self.desk.release(attempt, node)
            self.gangs.start_failed(attempt, node, f"node {node}: {forgot}, while the attempt was prepared")
        elif attempt.phase is Phase.UNSURE and not forgot:
            attempt.missing.add(node)
            if node == attempt.head:
                self._resume_start(attempt)
            else:
                self.gangs.watch_for_head(attempt)
        else:
            self.gangs.part_lost(attempt, node, forgot or "it denies the attempt")

    def _stranger(self, node: str, name: str, phase: str, gpus: tuple[str, ...]) -> None:
        """An attempt that holds nothing here, by our books."""
        if self.is_finished(name):
            if phase != "ended":
                self._end_leftover(node, name)
            return
        if phase == "ended" and name in self.desk.cluster.attempts:
            return  # its share was given back to an earlier leader; it tells the end until we acknowledge it
        if phase == "ended":
            self._strangers.ended(node, name)
            return
        self._strangers.lives(node, name, phase)
        here = self.desk.cluster.nodes[node]
        for uuid in gpus:
            if uuid in here.gpus and uuid not in self.desk.cluster.held(node):
                note = f"held by {name}, which the database does not know"
                self.desk.set_gpu(here, uuid, GpuState.UNKNOWN_ATTEMPT, note)

    def _end_leftover(self, node: str, name: str) -> None:
        """Part of an attempt that is over in the database still runs, unforeseen: its job may run elsewhere already."""
        job = AttemptId.parse(name).job
        delay = min(self.gangs.kill_delay(JobKey(job.seq, job.index)), HURRY)
        text = "the attempt is over"
        self.desk.send(node, wire.End(attempt=name, cause=Cause.NODE_LOST, kill_delay=delay, message=text))

    def is_finished(self, name: str) -> bool:
        """Whether the database knows the attempt as one that has ended."""
        self._learn_finished([name])
        return name in self._finished

    def _learn_finished(self, names: Iterable[str]) -> None:
        """Asks the database about all of them together: a node may hold many ends that it could not tell."""
        asked = {AttemptId.parse(name): name for name in names if name not in self._finished}
        if not asked:
            return
        keys = {JobKey(identity.job.seq, identity.job.index) for identity in asked}
        ended = {
            record.key for record in self.desk.reader.attempts(list(keys), tails=False) if record.ended_at
        }
        for identity, name in asked.items():
            if AttemptKey(identity.job.seq, identity.job.index, identity.number) in ended:
                self._finished.add(name)

    def on_message(self, node: str, message: wire.ToLeader) -> None:
        """Everything that an agent says after its hello."""
        match message:
            case wire.GpuReport(gpus=gpus):
                self.on_gpus(node, gpus)
            case wire.GpuFigures(gpus=figures, uses=uses):
                self._on_figures(node, figures, uses)
            case wire.NodeHealth(trouble=trouble):
                self._on_health(node, clean(trouble))
            case wire.InventoryReport(inventory=inventory):
                self.on_inventory(node, inventory)
            case wire.Ended():
                self._on_ended(node, message)
            case wire.Ready() | wire.Refused() | wire.Started():
                self._on_progress(node, message)
            case _:
                log.warning("unexpected message node=%s kind=%s", node, type(message).__name__)

    def _on_health(self, name: str, trouble: str) -> None:
        """The health program takes a node out of use and back; what an operator said of it stays."""
        record = self.desk.cluster.nodes[name].record
        ours = record.note.startswith(_HEALTH)
        if trouble and (ours or not record.offline):
            self._set_offline(name, True, f"{_HEALTH}{trouble}")
        elif not trouble and ours:
            self._set_offline(name, False, "")
        else:
            return
        self.desk.tell(f"node {'offline' if trouble else 'clear'}", {"node": name, "note": trouble})

    def _on_figures(
        self, name: str, figures: Mapping[str, dict[str, float]], uses: Mapping[str, dict[str, float]]
    ) -> None:
        """Kept in memory alone: they come again in ten seconds."""
        node = self.desk.cluster.nodes[name]
        node.figures = {uuid: of_gpu for uuid, of_gpu in figures.items() if uuid in node.gpus}
        here = []
        for attempt_name, use in uses.items():
            attempt = self.desk.cluster.attempts.get(attempt_name)
            if attempt is not None and name in attempt.nodes:
                attempt.uses[name] = use
                here.append(attempt)
        take_samples(self.desk, name, here)

    def _on_progress(self, node: str, message: wire.Ready | wire.Refused | wire.Started) -> None:
        attempt = self.desk.cluster.attempts.get(message.attempt)
        if attempt is None or not _has_part(attempt, node):
            return
        match message:
            case wire.Ready():
                self.gangs.on_ready(attempt, node)
            case wire.Refused():
                self.gangs.on_refused(attempt, node, message.culprit, clean(message.reason))
            case wire.Started():
                self.gangs.on_started(attempt, message.started_at)

    def _on_ended(self, node: str, message: wire.Ended) -> None:
        attempt = self.desk.cluster.attempts.get(message.attempt)
        if attempt is not None and _had_part(attempt, node):
            self.gangs.on_ended(attempt, node, message)
        elif self._gave_back(attempt, node) or self.is_finished(message.attempt):
            self._strangers.gone(node, message.attempt)
            self.desk.send(node, wire.Acknowledged(attempt=message.attempt))
        else:
            self._strangers.ended(node, message.attempt)

    def _gave_back(self, attempt: Attempt | None, node: str) -> bool:
        """Whether the node had a share of it, under an earlier leader. Else, after a restore, the node means an earlier
        attempt of the same name.
        """
        if attempt is None:
            return False
        shares = self.desk.reader.shares([attempt.key.job])
        return any(share.attempt == attempt.key and share.node == node for share in shares)


def _has(node: Node, gpu: str) -> bool:
    """Whether it has this GPU, or instances of this card in MIG mode."""
    return gpu in node.gpus or any(gpu == other.parent for other in node.gpus.values() if other.parent)


def _obeys(gpu: wire.Gpu, fault: str | None) -> bool:
    """Whether the GPU is as an operator's word wants it; empty: without a fault."""
    return gpu.note == fault and (fault != "" or gpu.state != GpuState.QUARANTINED)


def _uuids(gpus: Iterable[wire.Gpu]) -> set[str]:
    """Of GPUs, and of the cards that they are instances of."""
    return {uuid for gpu in gpus for uuid in (gpu.uuid, gpu.parent)}


def _has_part(attempt: Attempt, node: str) -> bool:
    """Whether a node has a say in the start of an attempt: no other node has, whatever it tells."""
    return node in attempt.shares


def _had_part(attempt: Attempt, node: str) -> bool:
    """Whether a node has a say in the end of an attempt, also after it has given its share back."""
    return node in attempt.nodes


def _why_forgotten(before: NodeRecord, hello: wire.Hello) -> str:
    """Why the node may have held what it does not report; empty: what it denies it never had."""
    if before.journal == RESTORED:
        return _RESTORED
    if before.boot_id != hello.boot_id:
        return "it was rebooted"
    if before.journal and before.journal != hello.journal:
        return "its state directory is a new one"
    return ""


def _gpu_record(node: str, gpu: wire.Gpu, held: bool) -> GpuRecord:
    state = GpuState(gpu.state)
    if held and state is not GpuState.LOST:
        state = GpuState.ALLOCATED
    elif not held and state is GpuState.ALLOCATED:
        state = GpuState.CLEANING  # an attempt that is over for us holds it still
    return GpuRecord(
        uuid=gpu.uuid,
        node=node,
        index=gpu.index,
        model=clean(gpu.model),
        memory=gpu.memory,
        numa=gpu.numa,
        pci=gpu.pci,
        simulated=gpu.simulated,
        state=state,
        links=gpu.links,
        note=clean(gpu.note),
        parent=clean(gpu.parent),
        profile=clean(gpu.profile),
    )
