"""`mpiexec` of the MPICH wheel over the gang's nodes through our remote shell, each rank with its own GPU."""

from __future__ import annotations

from tests.e2e.cluster_kit import LiveCluster

RANKS = """#!/bin/sh
#PBS -l nodes=2:ppn=4:gpus=4
mpiexec {options} python -c '
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
seen = world.gather((os.environ["HPCMESOS_NODE"], os.environ["CUDA_VISIBLE_DEVICES"]))
if world.rank == 0:
    print(*[" ".join(pair) for pair in seen], sep="\\n")
'
"""


def test_eight_ranks_on_two_nodes(cluster: LiveCluster) -> None:
    for options in ("-n 8", ""):
        job = cluster.qsub(RANKS.format(options=options))
        ended = cluster.wait(job)
        output, errors = cluster.output(job), cluster.output(job, kind="e")
        assert ended["Exit_status"] == 0, errors
        pairs = [line.split() for line in output.splitlines()]
        assert len(pairs) == 8, output
        assert len({node for node, _ in pairs}) == 2
        assert len({uuid for _, uuid in pairs}) == 8
        assert all(uuid.startswith("SIM-") and "," not in uuid for _, uuid in pairs)


def test_files_of_the_job(cluster: LiveCluster) -> None:
    job = cluster.qsub(
        "#!/bin/sh\n#PBS -l nodes=2:ppn=2:gpus=1\ncat $PBS_NODEFILE; echo --; cat $PBS_GPUFILE\n"
    )
    assert cluster.wait(job)["Exit_status"] == 0
    nodes, gpus = (part.split() for part in cluster.output(job).split("--"))
    assert len(nodes) == 4
    assert len(set(nodes)) == 2
    assert len(gpus) == 2


def test_first_failing_rank_decides(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\n#PBS -l nodes=2:ppn=2\nmpiexec sh -c '[ $PMI_RANK = 3 ] && exit 7; sleep 60'\n"
    job = cluster.qsub(script)
    assert cluster.wait(job)["Exit_status"] == 7


def test_zero_gpu_jobs_see_none(cluster: LiveCluster) -> None:
    job = cluster.qsub('#!/bin/sh\necho "[$CUDA_VISIBLE_DEVICES]"\n')
    cluster.wait(job)
    assert cluster.output(job) == "[]\n"
