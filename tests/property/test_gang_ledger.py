"""The ledger under any sequence of reserve, commit and discard, beside a model that is plain sets and sums."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hpcmesos.gang.ledger import Ledger, LedgerBroken
from hpcmesos.gang.snapshot import GpuView, Member, NodeView
from hpcmesos.model import GpuUuid, JobId, NodeName

NODES = tuple(
    NodeView(
        NodeName(f"n{i}"),
        True,
        8,
        6,
        100,
        80,
        tuple(GpuView(GpuUuid(f"{i}-{g}"), g, g != 3) for g in range(4)),
    )
    for i in range(2)
)
FREE = {gpu.uuid for node in NODES for gpu in node.gpus if gpu.free}


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(NODES)
        self.kept: list[Member] = []
        self.tentative: list[Member] = []
        self.jobs = 0

    def held(self, node: NodeName) -> tuple[int, int, set[GpuUuid]]:
        members = [m for m in self.kept + self.tentative if m.node == node]
        gpus = {uuid for m in members for uuid in m.gpus}
        return sum(m.cpus for m in members), sum(m.mem for m in members), gpus

    @rule(
        at=st.integers(0, 1), cpus=st.integers(0, 4), mem=st.integers(0, 50), picks=st.sets(st.integers(0, 3))
    )
    def reserve(self, at: int, cpus: int, mem: int, picks: set[int]) -> None:
        node = NODES[at]
        uuids = tuple(node.gpus[pick].uuid for pick in sorted(picks))
        member = Member(node.name, cpus, mem, 1, uuids)
        used_cpus, used_mem, used_gpus = self.held(node.name)
        self.jobs += 1
        allowed = used_cpus + cpus <= 6 and used_mem + mem <= 80 and set(uuids) <= FREE - used_gpus
        if allowed:
            self.ledger.reserve(JobId(self.jobs, "hpcm"), member)
            self.tentative.append(member)
        else:
            with pytest.raises(LedgerBroken):
                self.ledger.reserve(JobId(self.jobs, "hpcm"), member)

    @rule()
    def commit(self) -> None:
        self.ledger.commit()
        self.kept += self.tentative
        self.tentative = []

    @rule()
    def discard(self) -> None:
        self.ledger.discard()
        self.tentative = []

    @invariant()
    def adds_up(self) -> None:
        self.ledger.check()
        for row, node in enumerate(NODES):
            cpus, mem, gpus = self.held(node.name)
            assert self.ledger.room.cpus[row] == 6 - cpus
            assert self.ledger.room.mem[row] == 80 - mem
            positions = tuple(g.index for g in node.gpus if g.free and g.uuid not in gpus)
            assert self.ledger.free_gpus(row) == positions


TestBooks = Books.TestCase
