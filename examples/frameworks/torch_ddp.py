"""Data-parallel training by PyTorch's DistributedDataParallel, started with env:// or by torchrun."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from data import BATCH, GOOD, digits, say, say_device, share
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 300


def main() -> int:
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    seen = list(range(torch.cuda.device_count()))
    say_device(f"rank {rank} of {size}", seen)
    device = torch.device("cuda", local % len(seen)) if seen else torch.device("cpu")
    torch.manual_seed(0)
    dist.init_process_group("nccl" if seen else "gloo")
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train, test = digits()
    images, labels = (torch.from_numpy(values).to(device) for values in share(train, rank, size))
    chance = torch.Generator().manual_seed(rank)
    for number in range(1, STEPS + 1):
        chosen = torch.randint(len(labels), (BATCH,), generator=chance)
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % 100 == 0 and rank == 0:
            say(f"step {number}  loss {loss.item():.4f}")
    with torch.no_grad():
        found = network(torch.from_numpy(test[0]).to(device)).argmax(1).cpu().numpy()
    accuracy = float((found == test[1]).mean())
    mine = torch.tensor([accuracy], device=device)
    dist.all_reduce(mine)
    same = abs(mine.item() / size - accuracy) < 1e-6
    say(f"rank {rank} of {size}: test accuracy {accuracy:.3f}, the same on all ranks: {same}")
    dist.destroy_process_group()
    return 0 if accuracy >= GOOD else 1


if __name__ == "__main__":
    sys.exit(main())
