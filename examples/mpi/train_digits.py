"""Data-parallel training of a small network on scikit-learn's handwritten digits.

Every rank holds the same weights and trains on its own share of the data; after each step the gradients of
all ranks are averaged by one allreduce. Run it with `mpiexec python train_digits.py`.
"""

import os
import platform
import sys
import zlib

import numpy as np
from mpi4py import MPI

EPOCHS = 20
BATCH = 64  # over all ranks
RATE = 0.1
MOMENTUM = 0.9
HIDDEN = 64
GOAL = 0.9

Arrays = list[np.ndarray]


def who_am_i(rank: int, size: int) -> str:
    """One line: where this rank runs, on which GPU, and who started it."""
    node = os.environ.get("HPCMESOS_NODE") or platform.node()
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    if gpu.startswith("SIM-"):
        gpu += " (simulated)"
    shepherd = os.environ.get("HPCMESOS_SHEPHERD")
    starter = f"shepherd {shepherd}" if shepherd else "hand"
    return f"rank {rank} of {size} on {node}, GPU {gpu}, started by {starter}"


def load() -> tuple[Arrays, Arrays]:
    """Images and labels to train on, and those held out: every fifth."""
    from sklearn.datasets import load_digits  # slow to import, and only rank 0 needs it

    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    held_out = np.arange(len(labels)) % 5 == 0
    return [images[~held_out], labels[~held_out]], [images[held_out], labels[held_out]]


def first_weights() -> Arrays:
    random = np.random.default_rng(1)
    return [
        random.normal(0, np.sqrt(2 / 64), (64, HIDDEN)),
        np.zeros(HIDDEN),
        random.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)),
        np.zeros(10),
    ]


def forward(weights: Arrays, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the probability of each digit."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(images @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def gradients(weights: Arrays, images: np.ndarray, labels: np.ndarray) -> tuple[float, Arrays]:
    hidden, chances = forward(weights, images)
    rows = np.arange(len(labels))
    loss = float(-np.log(chances[rows, labels] + 1e-12).mean())
    chances[rows, labels] -= 1
    error = chances / len(labels)
    back = (error @ weights[2].T) * (hidden > 0)
    return loss, [images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def average(world: MPI.Comm, loss: float, parts: Arrays) -> tuple[float, Arrays]:
    """Mean of loss and gradients over all ranks, in a single allreduce."""
    mine = np.concatenate([[loss], *(part.ravel() for part in parts)])
    total = np.empty_like(mine)
    world.Allreduce(mine, total)
    total /= world.size
    ends = np.cumsum([1, *(part.size for part in parts)])
    pieces = np.split(total, ends[:-1])[1:]
    return float(total[0]), [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def train(world: MPI.Comm, images: np.ndarray, labels: np.ndarray) -> Arrays:
    weights = first_weights()
    speeds = [np.zeros_like(weight) for weight in weights]
    shuffle = np.random.default_rng(2 + world.rank)
    batch = max(1, BATCH // world.size)
    steps = len(images) // world.size // batch  # the same on every rank
    for epoch in range(1, EPOCHS + 1):
        mine = shuffle.permutation(np.arange(world.rank, len(images), world.size))
        losses = []
        for step in range(steps):
            chosen = mine[step * batch : (step + 1) * batch]
            loss, parts = average(world, *gradients(weights, images[chosen], labels[chosen]))
            losses.append(loss)
            for weight, speed, part in zip(weights, speeds, parts, strict=True):
                speed *= MOMENTUM
                speed -= RATE * part
                weight += speed
        if world.rank == 0 and (epoch == 1 or epoch % 5 == 0):
            print(f"epoch {epoch:2d}  loss {np.mean(losses):.4f}", flush=True)
    return weights


def main() -> int:
    world = MPI.COMM_WORLD
    lines = world.gather(who_am_i(world.rank, world.size))
    if lines:
        print(*lines, sep="\n", flush=True)

    training, held_out = world.bcast(load() if world.rank == 0 else None)
    weights = train(world, *training)

    checksums = set(world.allgather(zlib.crc32(b"".join(weight.tobytes() for weight in weights))))
    accuracy = float((forward(weights, held_out[0])[1].argmax(axis=1) == held_out[1]).mean())
    if world.rank == 0:
        same = "the same" if len(checksums) == 1 else "NOT the same"
        print(f"weights are {same} on all {world.size} ranks")
        print(f"test accuracy {accuracy:.3f}", flush=True)
    return 0 if len(checksums) == 1 and accuracy >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
