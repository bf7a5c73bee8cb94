"""One job's use of GPUs, from what its nodes say."""

from __future__ import annotations

from hpcmesos.master.gpu_use import with_gpus
from hpcmesos.queue.accounting import gpu_used

HEAD = {"samples": 2.0, "busy_sum": 100.0, "busy_max": 80.0, "memory_max": 2048.0, "energy": 300.0}
MEMBER = {"samples": 2.0, "busy_sum": 20.0, "busy_max": 20.0, "memory_max": 4096.0, "energy": 100.0}


def test_all_nodes_count_and_the_heads_last_word_counts_once() -> None:
    report = {"cput": 1.0, **{f"gpu_{name}": value for name, value in HEAD.items()}}
    used = with_gpus(report, "n1", {"n1": {**HEAD, "samples": 1.0}, "n2": MEMBER})
    assert used == {
        "cput": 1.0,
        "gpu_percent": 30.0,
        "gpu_percent_max": 80.0,
        "gpu_memory": 4096.0,
        "gpu_energy": 400.0,
    }
    shown = {"gpu_percent": "30", "gpu_percent_max": "80", "gpu_mem": "4kb", "gpu_energy": "400J"}
    assert gpu_used(used) == shown


def test_without_samples_nothing_is_claimed() -> None:
    assert with_gpus({"cput": 1.0}, "n1", {}) == {"cput": 1.0}
    assert gpu_used({"cput": 1.0}) == {}


def test_of_mig_instances_only_memory_is_known() -> None:
    part = {
        "samples": 3.0,
        "busy": 0.0,
        "busy_sum": 0.0,
        "busy_max": 0.0,
        "memory_max": 2048.0,
        "energy": 0.0,
    }
    assert with_gpus({}, "n1", {"n1": part}) == {"gpu_memory": 2048.0}
    assert gpu_used({"gpu_memory": 2048.0}) == {"gpu_mem": "2kb"}
