"""An array on a real cluster: its slot limit, deleted elements, masters killed in the middle, and who waits for it.

HPCMESOS_TEST_ELEMENTS: how many (400, 7 at once; from 10,000 on 50 at once). With 100,000:
`HPCMESOS_TEST_ELEMENTS=100000 scripts/test -m full tests/e2e/test_arrays.py -s`.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.integration.invariants import element_codes, most_at_once

SIZE = int(os.environ.get("HPCMESOS_TEST_ELEMENTS", "400"))
SLOTS = 50 if SIZE >= 10_000 else 7
PATIENCE = max(300.0, SIZE / 10)
SCRIPT = """#!/bin/sh
echo "$PBS_ARRAYID" >> {log}
test "$PBS_ARRAYID" -ne 5 || sleep 3
exit $((PBS_ARRAYID % 100 == 0 ? 9 : 0))
"""


def ran(cluster: LiveCluster, log: str) -> list[int]:
    path = cluster.work() / log
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.full
def test_an_array_over_the_death_of_masters(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(agents=2, gpus=2, extra=("--cpus", str(SLOTS + 2)))
    script = SCRIPT.format(log=cluster.work() / "ran")
    options = ("-t", f"1-{SIZE}%{SLOTS}", "-S", "/bin/sh", "-N", "many", "-o", "/dev/null", "-e", "/dev/null")
    array = cluster.qsub(script, "-h", *options)
    seq = array.partition("[")[0]
    assert array == f"{seq}[].hpcm"
    after = cluster.qsub("#!/bin/sh\ntrue\n", "-S", "/bin/sh", "-W", f"depend=afteranyarray:{array}")
    never = cluster.qsub("#!/bin/sh\ntrue\n", "-S", "/bin/sh", "-W", f"depend=afterok:{array}")
    for words in ([f"{seq}[7]"], [f"{seq}[310-312].hpcm"], ["-t", "398,399", seq]):
        assert cluster.run("qdel", *words).stderr == ""
    gone = [7, 310, 311, 312, 398, 399]
    trace = cluster.job(f"{seq}[7].hpcm")
    assert (trace["job_state"], trace["comment"]) == ("X", "deleted before it started")
    assert cluster.run("qrls", array).stderr == ""
    began = time.monotonic()

    for point in (SIZE // 8, SIZE // 3):
        wait_until(lambda point=point: len(ran(cluster, "ran")) > point, "elements run", PATIENCE, 0.2)
        print(
            f"{point} elements after {time.monotonic() - began:.0f} s; qstat of one element:",
            *qstat_ms(cluster, seq),
        )
        os.kill(cluster.pid("master"), signal.SIGKILL)
        cluster.up()
    folded = cluster.run("qstat").stdout.splitlines()
    assert [line.split()[0] for line in folded[2:]] == [array, after, never]
    listed = cluster.run("qstat", "-t", array).stdout.splitlines()[2:]
    assert [line.split()[0] for line in listed] == [array, *(f"{seq}[{i}].hpcm" for i in range(1, SIZE + 1))]

    done = cluster.wait(array, PATIENCE)
    print(
        f"{SIZE} elements after {time.monotonic() - began:.0f} s; qstat of one element:",
        *qstat_ms(cluster, seq),
    )
    assert (done["Exit_status"], done["array_state_count"]) == (
        1,
        f"Queued:0 Running:0 Exiting:0 Expired:{SIZE}",
    )
    assert Counter(ran(cluster, "ran")) == Counter({i: 1 for i in range(1, SIZE + 1) if i not in gone})
    assert most_at_once(cluster.database_url, int(seq)) <= SLOTS
    code = {i: 9 if i % 100 == 0 else 0 for i in range(1, SIZE + 1) if i not in gone}
    assert element_codes(cluster.database_url, int(seq)) == code
    some = [1, 7, 100, 310, SIZE]
    words = [f"{seq}[{i}]" for i in some]
    shown = json.loads(cluster.run("qstat", "-f", "-F", "json", *words).stdout)["Jobs"].values()
    assert [job.get("Exit_status") for job in shown] == [code.get(i) for i in some]
    assert cluster.wait(after)["Exit_status"] == 0
    assert cluster.wait_state(never, "F").get("Exit_status") is None


def qstat_ms(cluster: LiveCluster, seq: str) -> tuple[float, str]:
    """The median of seven."""
    taken = []
    for _ in range(7):
        begun = time.monotonic()
        assert cluster.run("qstat", f"{seq}[{SIZE}]").returncode == 0
        taken.append(1000 * (time.monotonic() - begun))
    return round(statistics.median(taken), 1), "ms"


def test_block_waits_for_all_elements(cluster: LiveCluster) -> None:
    for script, code in (("exit 0", 0), ("exit $((PBS_ARRAY_INDEX == 2))", 1)):
        words = ["qsub", "-W", "block=true", "-J", "1-3", "-S", "/bin/sh"]
        done = cluster.run(*words, stdin=f"#!/bin/sh\n{script}\n")
        assert (done.returncode, done.stderr) == (code, ""), done
        assert done.stdout.endswith("[].hpcm\n")


def test_files_of_elements_in_both_families(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\necho $PBS_JOBID $PBS_JOBNAME $PBS_ARRAYID $PBS_ARRAY_INDEX $PBS_ARRAY_ID\n"
    torque = cluster.qsub(script, "-t", "3", "-S", "/bin/sh", "-N", "t", "-j", "oe")
    named = cluster.qsub(script, "-t", "3", "-S", "/bin/sh", "-o", "to", "-j", "oe")
    qsub = str(cluster.state / "bin" / "pbspro" / "qsub")
    pro = cluster.run(qsub, "-J", "2-3", "-S", "/bin/sh", "-N", "p", "-j", "oe", stdin=script).stdout.strip()
    for job in (torque, named, pro):
        cluster.wait(job)
    one, two, three = (job.partition("[")[0] for job in (torque, named, pro))
    work = cluster.work()
    assert (work / f"t.o{one}-3").read_text() == f"{one}[3].hpcm t-3 3 3 {torque}\n"
    assert (work / "to-3").exists()
    assert (work / f"p.o{three}.3").read_text() == f"{three}[3].hpcm p 3 3 {pro}\n"
    assert cluster.run("hpcmesos", "logs", f"{two}[3]").stdout == f"{two}[3].hpcm STDIN-3 3 3 {named}\n"


AGAIN = """#!/bin/sh
cd "$PBS_O_WORKDIR"
echo "$PBS_ARRAYID" >> again
test "$PBS_ARRAYID" -ne 2 || test $(grep -c '^2$' again) -gt 1 || exec sleep 600
exit "$PBS_ARRAYID"
"""


def test_one_element_runs_again_and_the_others_do_not(cluster: LiveCluster) -> None:
    array = cluster.qsub(AGAIN, "-t", "1-3%1", "-S", "/bin/sh")
    seq = array.partition("[")[0]
    after = cluster.qsub("#!/bin/sh\ntrue\n", "-S", "/bin/sh", "-W", f"depend=afteranyarray:{array}")
    cluster.wait_state(f"{seq}[2].hpcm", "R")
    wait_until(lambda: ran(cluster, "again") == [1, 2], "the second has begun")
    done = cluster.run("qrerun", "-f", f"{seq}[2]", user="")
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.wait(array)["Exit_status"] == 1
    assert sorted(ran(cluster, "again")) == [1, 2, 2, 3]
    shown = [cluster.job(f"{seq}[{i}].hpcm") for i in (1, 2, 3)]
    assert [(job["Exit_status"], job["run_count"]) for job in shown] == [(1, 1), (2, 2), (3, 1)]
    assert cluster.wait(after)["Exit_status"] == 0
