"""Every rank says where it is. The lines are gathered on rank 0, so that they come whole and in order."""

import os
import platform

from mpi4py import MPI

world = MPI.COMM_WORLD
node = os.environ.get("HPCMESOS_NODE") or platform.node()
gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
lines = world.gather(f"hello from rank {world.rank} of {world.size} on {node}, GPU {gpu}")
if lines:
    print(*lines, sep="\n")
