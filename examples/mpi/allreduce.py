"""Sum arrays over all ranks, check every sum, and say how fast it went."""

import sys

import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
ROUNDS = 10
right = True

for size in (1_000, 100_000, 1_000_000):
    mine = np.full(size, world.rank + 1, dtype=np.float64)
    total = np.empty_like(mine)
    world.Barrier()
    start = MPI.Wtime()
    for _ in range(ROUNDS):
        world.Allreduce(mine, total)
    seconds = (MPI.Wtime() - start) / ROUNDS
    right = right and bool((total == world.size * (world.size + 1) / 2).all())
    if world.rank == 0:
        print(f"{mine.nbytes / 1e6:6.3f} MB on {world.size} ranks: {seconds * 1e3:8.3f} ms", flush=True)

right = world.allreduce(right, MPI.LAND)
if world.rank == 0:
    print("every sum is right" if right else "a sum is WRONG")
sys.exit(0 if right else 1)
