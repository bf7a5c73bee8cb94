"""What is free in the course of one decision: tentative reservations over a snapshot.

All pieces of a job are reserved one by one, then committed or discarded as a whole. GPUs are accounted one by one, by
UUID; a double use is an error that names both owners.
"""

from __future__ import annotations

from collections.abc import Collection

from hpcmesos.errors import HpcmesosError
from hpcmesos.gang.snapshot import Member, NodeView
from hpcmesos.gang.tables import NodeTable
from hpcmesos.model import GpuUuid, JobId


class LedgerBroken(HpcmesosError):
    """A program error: something was given out twice, or more than there is."""

    code = "ledger"


class Ledger:
    """``room`` shows what is free now, tentative reservations already taken off. Leaves ``nodes`` as they are."""

    def __init__(self, nodes: Collection[NodeView]) -> None:
        self._table = NodeTable.of(nodes)
        self.room = self._table.room.copy()
        self.rows = self.room.site.rows
        self.committed: list[tuple[JobId, Member]] = []
        self._tentative: list[tuple[JobId, Member]] = []
        self._owners: dict[GpuUuid, JobId] = {}
        self._free: dict[int, tuple[int, ...]] = {}  # of the rows that were touched: positions of free GPUs

    def free_gpus(self, row: int) -> tuple[int, ...]:
        """Positions, ascending, of the free GPUs in the node's ``gpus``."""
        free = self._free.get(row)
        return self._table.free_gpus(row) if free is None else free

    def reserve(self, job: JobId, member: Member) -> None:
        """Takes one share of one node, until ``commit`` or ``discard``.

        Raises:
            LedgerBroken: when a GPU is not free (both owners named) or more is taken than the node has free; then
                nothing of this share is reserved.
        """
        row = self.rows[member.node]
        if member.gpus:
            self._free[row] = self._without(job, member, row)
        if member.cpus > self.room.cpus[row] or member.mem > self.room.mem[row]:
            self._give_back(member, row)
            raise LedgerBroken(f"{job} was given more CPUs or memory than {member.node} has free")
        self._take(row, member, 1)
        for uuid in member.gpus:
            self._owners[uuid] = job
        self._tentative.append((job, member))

    def commit(self) -> None:
        """Keeps all that was reserved since the last commit or discard."""
        self.committed.extend(self._tentative)
        self._tentative.clear()

    def discard(self) -> None:
        """Gives back all that was reserved since the last commit or discard."""
        for _, member in self._tentative:
            row = self.rows[member.node]
            self._take(row, member, -1)
            self._give_back(member, row)
            for uuid in member.gpus:
                del self._owners[uuid]
        self._tentative.clear()

    def check(self) -> None:
        """Counts everything anew from the reservations.

        Raises:
            LedgerBroken: when a GPU has two owners (both named) or the columns do not add up.
        """
        owners: dict[GpuUuid, JobId] = {}
        left = self._table.room.copy()
        for job, member in self.committed + self._tentative:
            row = self.rows[member.node]
            left.cpus[row] -= member.cpus
            left.mem[row] -= member.mem
            left.gpus[row] -= len(member.gpus)
            for uuid in member.gpus:
                if uuid in owners:
                    raise LedgerBroken(f"GPU {uuid} on {member.node} is given to {owners[uuid]} and to {job}")
                owners[uuid] = job
        for row, node in enumerate(self.room.nodes):
            kept = tuple(int(c[row]) for c in (left.cpus, left.mem, left.gpus))
            shown = tuple(int(c[row]) for c in (self.room.cpus, self.room.mem, self.room.gpus))
            if kept != shown or min(kept) < 0 or len(self.free_gpus(row)) != kept[2]:
                raise LedgerBroken(
                    f"{node.name}: CPUs, memory, GPUs free should be {kept}, the books say {shown}"
                )
        if owners != self._owners:
            raise LedgerBroken("the owners of GPUs do not match the reservations")

    def _without(self, job: JobId, member: Member, row: int) -> tuple[int, ...]:
        """The row's free GPUs without those of the share."""
        free = list(self.free_gpus(row))
        for uuid in member.gpus:
            at = self._table.position(row, uuid)
            if at not in free:
                if member.gpus.count(uuid) > 1:
                    raise LedgerBroken(
                        f"{job} was given a GPU of {member.node} twice: {', '.join(member.gpus)}"
                    )
                owner = self._owners.get(uuid)
                held = f"held by {owner}" if owner else "not free"
                raise LedgerBroken(f"{job} was given GPU {uuid} on {member.node}, which is {held}")
            free.remove(at)
        return tuple(free)

    def _give_back(self, member: Member, row: int) -> None:
        given = {self._table.position(row, uuid) for uuid in member.gpus}
        self._free[row] = tuple(sorted(given | set(self.free_gpus(row))))

    def _take(self, row: int, member: Member, sign: int) -> None:
        self.room.cpus[row] -= sign * member.cpus
        self.room.mem[row] -= sign * member.mem
        self.room.gpus[row] -= sign * len(member.gpus)
