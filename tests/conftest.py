"""What every test run reports: durations by kind, skips with their reasons, processes that were left behind."""

import contextlib
import os
import re
import signal
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.neighbours", "tests.nvml.plugin"]
# Before whichever test imports them first, so that their assertions explain themselves.
_KITS = ("database_kit", "api_kit", "leader_kit", "shepherd_kit", "agent_kit", "daemon_kit", "race_kit")
pytest.register_assert_rewrite(*(f"tests.integration.{kit}" for kit in _KITS))

TESTS = Path(__file__).parent
ALLOWED_SKIPS = [
    re.compile(line)
    for line in (TESTS / "allowed_skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]

Report = pytest.TestReport | pytest.CollectReport


def reason_of(report: Report) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def refuse_unknown_skip(report: Report) -> None:
    """A skip whose reason is not in allowed_skips.txt is a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = reason_of(report)
    if not any(allowed.search(reason) for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped, and tests/allowed_skips.txt does not allow it: {reason}"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_unknown_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_unknown_skip(report)
    return report


def kind_of(report: Report) -> str:
    parts = Path(report.nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else "tests"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    of_files: Counter[str] = Counter()
    skips: Counter[tuple[str, str]] = Counter()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, Report):
                continue
            kind = kind_of(report)
            seconds[kind] += getattr(report, "duration", 0)
            of_files[report.nodeid.partition("::")[0]] += getattr(report, "duration", 0)
            if outcome:  # the empty one holds set-ups and tear-downs
                counts[kind][outcome] += 1
            if outcome == "skipped":
                skips[kind, reason_of(report)] += 1
    if not counts:
        return
    write = terminalreporter.write_line
    terminalreporter.section("durations and skips")
    write(f"{'kind':<14}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>10}")
    for kind in sorted(counts):
        passed = counts[kind]["passed"]
        skipped = counts[kind]["skipped"]
        failed = counts[kind]["failed"] + counts[kind]["error"]
        write(f"{kind:<14}{passed:>8}{failed:>8}{skipped:>9}{seconds[kind]:>10.1f}")
    for file, taken in of_files.most_common(10):
        if taken >= 60:
            write(f"{taken:.0f} s in {file}")
    for (kind, reason), count in sorted(skips.items()):
        write(f"skipped {count} in {kind}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever the tests start carries a mark in its environment, or works inside the tests' folder."""
    mark = f"TESTS_OF_HPCMESOS={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    os.environ[name] = value
    folder = str(tmp_path_factory.getbasetemp())
    yield
    del os.environ[name]
    deadline = time.monotonic() + 5
    while (left := ours(mark, folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind:\n" + "\n".join(
        f"{pid}: {what}" for pid, what in left.items()
    )


def ours(mark: str, folder: str) -> dict[int, str]:
    """Living processes of this run, by pid, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            places = f"{command} {(process / 'cwd').readlink()}/ {(process / 'exe').readlink()}"
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if (mark in environment or f"{folder}/" in places) and int(process.name) != os.getpid():
            found[int(process.name)] = command
    return found
