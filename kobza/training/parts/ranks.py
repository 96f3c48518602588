"""Several processes that train one model: torch's own data parallelism, started by torchrun.

    torchrun --nproc-per-node 2 -m kobza train poems.txt --budget 3000steps --save poems

Every rank draws the whole batch from the same generator and takes its rows, so that the batches do not depend on the
number of ranks; gradients are averaged by DistributedDataParallel (gloo on a CPU, nccl on a GPU). A rank that is lost
ends the others; torchrun starts all again, and they go on from the last checkpoint.

Source: Li et al. (2020), "PyTorch Distributed", arXiv:2006.15704.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kobza.core.errors import OutOfRange


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, rows: Any) -> Any:
        """Return this rank's rows of a batch: a tensor (B, ...), or tuples and dicts of them.

        Raises:
            OutOfRange: the ranks do not divide B.
        """
        if self.world == 1:
            return rows
        if isinstance(rows, Tensor):
            if len(rows) % self.world:
                raise OutOfRange(f"a batch of {len(rows)} cannot be shared by {self.world} ranks.", "Give a multiple.")
            return rows.chunk(self.world)[self.rank]
        if isinstance(rows, dict):
            return {key: self.part(value) for key, value in rows.items()}
        return tuple(self.part(value) for value in rows)

    def shared(self, step: nn.Module) -> nn.Module:
        """Return a module whose gradients are averaged over the ranks."""
        if self.world == 1:
            return step
        return nn.parallel.DistributedDataParallel(step, find_unused_parameters=False)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks."""
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.world
        return value

    def agreed(self, value: float) -> float:
        """Return the first rank's number on every rank: clocks differ, and all must stop at one step."""
        if self.world == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(held, 0)
        return float(held)

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            distributed.barrier()


def ranks() -> Ranks:
    """Join the group that torchrun started, if it did."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()
