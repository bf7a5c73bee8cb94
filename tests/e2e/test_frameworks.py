"""`-W framework=`: every task is told its part and has its port, whichever way it is started."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster

TENSORFLOW_TASK = """
import json, os, socket
config = json.loads(os.environ["TF_CONFIG"])
role, index = config["task"]["type"], config["task"]["index"]
port = int(config["cluster"][role][index].rpartition(":")[2])
with socket.create_server(("", port)):
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    told = json.dumps([role, index, os.environ["HPCMESOS_NODE"], seen, config["cluster"]])
    os.write(1, told.encode() + b"\\n")
"""

RENDEZVOUS = """
import os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    with socket.create_server(("", place[1])) as door:
        ranks = {0}
        while len(ranks) < size:
            connection, _ = door.accept()
            with connection, connection.makefile() as lines:
                ranks.add(int(lines.readline()))
    print(sorted(ranks), flush=True)
while rank:
    try:
        with socket.create_connection(place) as connection:
            connection.sendall(b"%d\\n" % rank)
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
"""


def program(cluster: LiveCluster, text: str) -> str:
    """The words that run it on a node."""
    path = cluster.work() / "task.py"
    path.write_text(text)
    return shlex.join([sys.executable, str(path)])


@pytest.mark.parametrize("form", ["tensorflow:ps=1,worker=4", "tensorflow:worker=4:ps=1"])
def test_tensorflow_under_mpiexec(cluster: LiveCluster, form: str) -> None:
    command = program(cluster, TENSORFLOW_TASK)
    job = cluster.qsub(
        f"#!/bin/sh\n#PBS -l nodes=2:ppn=3:gpus=2\n#PBS -W framework={form}\n"
        f"mpiexec {command}\nwc -l < $PBS_NODEFILE >&2\n"
    )
    ended = cluster.wait(job)
    errors = cluster.output(job, kind="e")
    assert ended["Exit_status"] == 0, errors
    assert ended["framework"] == "tensorflow:worker=4,ps=1"
    told = [json.loads(line) for line in cluster.output(job).splitlines()]
    assert sorted((role, index) for role, index, *_ in told) == [
        ("ps", 0),
        *(("worker", index) for index in range(4)),
    ]
    assert len({json.dumps(cluster_) for *_, cluster_ in told}) == 1
    (cluster_,) = {json.dumps(each): each for *_, each in told}.values()
    ports = [host.rpartition(":")[2] for hosts in cluster_.values() for host in hosts]
    assert len(set(ports)) == 5
    gpus = {role: [seen for other, _, _, seen, _ in told if other == role] for role in ("ps", "worker")}
    assert gpus["ps"] == [""]
    assert len(set(gpus["worker"])) == 4
    assert all(seen.startswith("SIM-") and "," not in seen for seen in gpus["worker"])
    assert errors.split() == ["5"]


@pytest.mark.parametrize("options", [("-W", "framework=torch"), ()])
def test_ranks_meet_at_the_granted_port(cluster: LiveCluster, options: tuple[str, ...]) -> None:
    command = program(cluster, RENDEZVOUS)
    job = cluster.qsub(f"#!/bin/sh\n#PBS -l nodes=2:ppn=2:gpus=2\nmpiexec {command}\n", *options)
    assert cluster.wait(job)["Exit_status"] == 0, cluster.output(job, kind="e")
    assert cluster.output(job) == "[0, 1, 2, 3]\n"


def test_a_torch_rank_sees_its_node_and_a_script_of_one_task_is_that_task(cluster: LiveCluster) -> None:
    show = "sh -c 'echo $RANK/$WORLD_SIZE $LOCAL_RANK $CUDA_VISIBLE_DEVICES'"
    script = f"#!/bin/sh\n#PBS -W framework=torch\n{{}}{show}\n"
    two = cluster.qsub(script.format("mpiexec "), "-l", "nodes=1:ppn=2:gpus=2")
    one = cluster.qsub(script.format(""), "-l", "nodes=1:ppn=1:gpus=1")
    assert cluster.wait(two)["Exit_status"] == 0
    lines = sorted(cluster.output(two).splitlines())
    assert [line.split()[:2] for line in lines] == [["0/2", "0"], ["1/2", "1"]]
    assert all(len(line.split()[2].split(",")) == 2 for line in lines)
    assert cluster.wait(one)["Exit_status"] == 0
    assert cluster.output(one).startswith("0/1 0 SIM-")


def test_tfmesos_under_pbsdsh(cluster: LiveCluster) -> None:
    job = cluster.qsub(
        "#!/bin/sh\n#PBS -l nodes=2:ppn=2\n#PBS -W framework=tfmesos:ps=1,worker=3\n"
        "pbsdsh echo '{job_name}' '{task_index}' '{ps_hosts}' '{other}'\necho script $TFMESOS_PS_HOSTS\n"
    )
    assert cluster.wait(job)["Exit_status"] == 0, cluster.output(job, kind="e")
    *tasks, script = (line.split() for line in cluster.output(job).splitlines())
    assert sorted(task[:2] for task in tasks) == [["ps", "0"], *(["worker", str(n)] for n in range(3))]
    assert {tuple(task[2:]) for task in tasks} == {(script[1], "{other}")}
    assert script[0] == "script"


def test_what_does_not_fit_is_refused(cluster: LiveCluster) -> None:
    for words, why in (
        ("framework=tensorflow:ps=1,worker=4", "5 tasks take a slot each, the job has 2"),
        ("framework=tensorflow:ps=1,wroker=1", "tensorflow has no role 'wroker'; write tensorflow:worker=1"),
        ("framework=horovod", "no such framework"),
    ):
        refused = cluster.run("qsub", "-l", "nodes=1:ppn=2", "-W", words, stdin="#!/bin/sh\ntrue\n")
        assert refused.returncode == 168, refused
        assert why in refused.stderr
        assert refused.stdout == ""


def test_tfrun(cluster: LiveCluster) -> None:
    """Servers never end by themselves; the job does with its last worker, and with the code of one that fails."""
    task = (
        'echo {job_name} {task_index} {worker_hosts}; case {job_name} in ps) touch "$1.up"; exec sleep 1000;; esac; '
        'until [ -e "$1.up" ]; do sleep 0.01; done; exit "$1"'
    )
    words = [*HPCMESOS, "tfrun", "-w", "2", "-s", "1", "-Gw", "1", "sh", "-c", task, "sh"]
    done = cluster.run(*words, "0")
    assert done.returncode == 0, done.stderr
    told = sorted(line.split("] ")[1].split() for line in done.stdout.splitlines())
    assert [line[:2] for line in told] == [["ps", "0"], ["worker", "0"], ["worker", "1"]]
    assert all(len(line[2].split(",")) == 2 for line in told)
    done = cluster.run(*words, "7")
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(
    ("rule", "program", "code"),
    [
        ("chief", "[ $HPCMESOS_RANK = 0 ] || exec sleep 1000", 0),
        ("any", "[ $HPCMESOS_RANK = 2 ] || exec sleep 1000", 0),
        ("any", "[ $HPCMESOS_RANK = 2 ] && exit 6; exec sleep 1000", 6),
        ("all", "[ $HPCMESOS_RANK = 0 ] && exit 0; exit 4", 4),
    ],
)
def test_rules_for_the_end_of_a_step(cluster: LiveCluster, rule: str, program: str, code: int) -> None:
    script = f"#!/bin/sh\nexec hpcmesos run --finish {rule} sh -c '{program}'\n"
    assert cluster.wait(cluster.qsub(script, "-l", "nodes=2:ppn=2"))["Exit_status"] == code


def test_no_such_rule(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nhpcmesos run --finish never true\n")
    assert cluster.wait(job)["Exit_status"] == 2
    assert "--finish takes one of all, chief, any, not 'never'" in cluster.output(job, kind="e")
