"""Plug-ins in their process: what they answer, and whatever may go wrong with them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from hpcmesos.master import plugin_host
from hpcmesos.master.plugin_child import Ask
from hpcmesos.master.plugin_host import PluginFault, PluginHost
from hpcmesos.plugin import JobClass, NodeClass
from tests.integration.plugin_kit import install


def job(gpus: int, waited: float = 0.0, nodes: int = 1) -> JobClass:
    return JobClass(
        queue="batch",
        project="",
        user="ann",
        priority=0,
        nodes=nodes,
        gpus=gpus,
        cpus=1,
        mem=0,
        walltime=None,
        features=(),
        waited=waited,
    )


OLD = NodeClass(gpus=8, cpus=64, mem=0, features=("old",))
NEW = NodeClass(gpus=8, cpus=64, mem=0, features=())
CLASSES = [job(8), job(1), job(16, waited=72000.0)]
ENDLESS = ("hangs", "endless", "babbles")
"""Those that are waited for until their time is over."""


class Site:
    """Hosts of plug-ins, and what they tell."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.hosts: list[PluginHost] = []

    def host(
        self, name: str, kind: str = "order", deadline: float = 10.0
    ) -> tuple[PluginHost, SimpleQueue[Any]]:
        told: SimpleQueue[Any] = SimpleQueue()
        host = PluginHost(kind, name, self.logs / f"{name}.log", lambda _, answer: told.put(answer), deadline)
        self.hosts.append(host)
        return host, told

    def ask(
        self,
        name: str,
        kind: str = "order",
        classes: list[JobClass] = CLASSES,
        deadline: float = 10.0,
    ) -> Any:
        host, told = self.host(name, kind, deadline)
        host.ask(Ask(classes=classes, nodes=[OLD, NEW] if kind == "rank" else [], now=0.0))
        return told.get(timeout=30)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    site = Site(tmp_path / "logs")
    yield site
    for host in site.hosts:
        host.close()
        host._thread.join(30)
        assert host._process is None


def test_the_example_orders_ranks_and_limits(site: Site) -> None:
    assert site.ask("fewest-gpus") == [8.0, 1.0, -4.0]
    assert site.ask("old-gpus-first", "rank", [job(1), job(16, nodes=2)]) == [[0.0, 1.0], [1.0, 0.0]]
    assert site.ask("two-big-jobs", "limits") == [None, None, 2]


def test_one_process_answers_many_questions(site: Site) -> None:
    host, told = site.host("fewest-gpus")
    pids = set()
    for gpus in (1, 2, 3):
        host.ask(Ask(classes=[job(gpus)]))
        assert told.get(timeout=30) == [float(gpus)]
        assert host._process is not None
        pids.add(host._process.pid)
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("hangs", "order", "no answer within 1 s"),
        ("endless", "order", ""),  # out of memory or out of time, whichever is first
        ("babbles", "order", ""),  # its log is full, or out of time
        ("crashes", "order", "its process ended (signal 9)"),
        ("exits", "order", "its process ended (status 3)"),
        ("raises", "order", "RuntimeError: no idea"),
        ("too_few", "order", "2 keys for 3 that were asked for"),
        ("words", "order", "no list of keys"),
        ("not_a_number", "order", "no finite number"),
        ("huge", "order", "an answer of "),
        ("unsendable", "order", "cannot be sent"),
        ("below", "limits", "a limit below 0"),
        ("words", "limits", "no list of keys"),
        ("too_few", "rank", "TypeError"),
        ("broken", "order", "No module named 'no_such'"),
        ("nobody", "order", "no plug-in 'nobody' is installed in hpcmesos.order; there are: "),
    ],
)
def test_what_is_wrong_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, why: str
) -> None:
    if name in ENDLESS:
        monkeypatch.setattr(plugin_host, "START", 1.0)
    answer = site.ask(name, kind, deadline=1.0 if name in ENDLESS else 10.0)
    assert isinstance(answer, PluginFault)
    assert why in str(answer)


def test_after_a_fault_the_next_question_starts_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_host, "START", 1.0)
    host, told = site.host("hangs", deadline=0.5)
    for _ in range(2):
        host.ask(Ask(classes=CLASSES))
        assert "no answer" in str(told.get(timeout=30))
        assert host._process is None, "it was killed"


def test_what_it_prints_is_no_answer(site: Site) -> None:
    assert site.ask("prints") == [0.0, 0.0, 0.0]
    assert (site.logs / "prints.log").read_text() == "this is not the answer\n"


def test_it_knows_nothing_of_the_cluster(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCMESOS_DATABASE_URL", "postgresql://secret")
    host, told = site.host("fewest-gpus")
    host.ask(Ask(classes=CLASSES))
    told.get(timeout=30)
    assert host._process is not None
    environ = Path(f"/proc/{host._process.pid}/environ").read_bytes()
    assert b"secret" not in environ
    open_files = {os.readlink(link) for link in Path(f"/proc/{host._process.pid}/fd").iterdir()}
    assert not any(name.startswith("socket:") for name in open_files)


def test_asking_takes_no_time(site: Site) -> None:
    host, _ = site.host("hangs", deadline=5.0)
    began = time.monotonic()
    for _ in range(1000):
        host.ask(Ask(classes=CLASSES))
    assert time.monotonic() - began < 5.0, "one answer alone would have been waited for so long"
