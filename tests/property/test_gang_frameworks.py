"""What holds for every framework over every gang."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.errors import InvalidValue
from hpcmesos.gang import frameworks
from hpcmesos.gang.frameworks import Framework, Share, Task

counts = st.integers(0, 4)
named = st.one_of(
    st.builds(
        "tensorflow:chief={},worker={},ps={},evaluator={}".format,
        st.integers(0, 1),
        st.integers(1, 6),
        counts,
        st.integers(0, 1),
    ),
    st.builds("tfmesos:ps={},worker={}".format, counts, st.integers(1, 6)),
    st.builds("{}:worker={}".format, st.sampled_from(["torch", "jax"]), st.integers(1, 6)),
    st.sampled_from(["tensorflow", "tfmesos", "torch", "jax", "torchrun", "torchrun:c10d"]),
)


@st.composite
def gangs(draw: st.DrawFn) -> list[Share]:
    """Up to five nodes with slots, GPUs and as many ports as slots."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=5))
    return [
        Share(
            f"10.0.0.{node}",
            slots,
            tuple(f"GPU-{node}-{index}" for index in range(gpus)),
            tuple(draw(st.lists(st.integers(20000, 29999), min_size=slots, max_size=slots, unique=True))),
        )
        for node, (slots, gpus) in enumerate(sizes)
    ]


def planned(text: str, gang: list[Share]) -> tuple[Framework, tuple[Task, ...]]:
    framework = frameworks.parse(text)
    try:
        return framework, frameworks.tasks(framework, gang)
    except InvalidValue as refusal:
        assert "\n" not in str(refusal)
        with pytest.raises(InvalidValue):
            frameworks.ports_needed(framework, gang)
        return framework, ()


@given(named, gangs())
def test_indices_have_no_gaps_and_no_address_is_given_twice(text: str, gang: list[Share]) -> None:
    framework, tasks = planned(text, gang)
    by_role = defaultdict(list)
    for task in tasks:
        by_role[task.role].append(task.index)
        assert task.address == gang[task.node].address
        assert task.port in gang[task.node].ports
    assert all(indices == list(range(len(indices))) for indices in by_role.values())
    assert len({(task.address, task.port) for task in tasks}) == len(tasks)
    if framework.roles and tasks:
        assert {role: len(indices) for role, indices in by_role.items()} == dict(framework.roles)


@given(named, gangs())
def test_gpus_are_disjoint_of_the_own_node_and_every_trainer_has_one(text: str, gang: list[Share]) -> None:
    _, tasks = planned(text, gang)
    given_out = [gpu for task in tasks for gpu in task.gpus]
    assert len(set(given_out)) == len(given_out)
    assert all(set(task.gpus) <= set(gang[task.node].gpus) for task in tasks)
    trains = [task for task in tasks if task.role in ("chief", "worker")]
    assert all(task.gpus for task in trains) or not any(share.gpus for share in gang)
    assert not any(task.gpus for task in tasks if task not in trains)


@given(named, gangs())
def test_no_node_has_more_tasks_than_slots_and_ports_are_those_needed(text: str, gang: list[Share]) -> None:
    framework, tasks = planned(text, gang)
    if not tasks:
        return
    on_node = [sum(task.node == node for task in tasks) for node in range(len(gang))]
    assert all(count <= share.slots for count, share in zip(on_node, gang, strict=True))
    assert frameworks.ports_needed(framework, gang) == tuple(on_node)


@given(st.sampled_from(["torch", "jax"]), gangs())
def test_ranks_run_from_0_to_n_minus_1_on_every_level(name: str, gang: list[Share]) -> None:
    framework, tasks = planned(name, gang)
    told = [frameworks.environment(framework, task, tasks) for task in tasks]
    rank, size = ("RANK", "WORLD_SIZE") if name == "torch" else ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
    assert [env[rank] for env in told] == [str(number) for number in range(len(tasks))]
    assert {env[size] for env in told} <= {str(len(tasks))}
    if name == "torch":
        local = defaultdict(list)
        for env in told:
            local[int(env["NODE_RANK"])].append(int(env["LOCAL_RANK"]))
        assert list(local) == list(range(len(local)))
        assert all(ranks == list(range(len(ranks))) for ranks in local.values())


@given(named)
def test_the_shortest_form_means_the_same(text: str) -> None:
    framework = frameworks.parse(text)
    assert frameworks.parse(str(framework)) == framework


@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        frameworks.parse(text)
    except InvalidValue as refusal:
        assert str(refusal).isprintable()
