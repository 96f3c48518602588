"""Several processes that train one model: torch's own data parallelism, started by torchrun.

    torchrun --nproc-per-node 2 -m kobza train poems.txt --budget 3000steps --save poems

With --sharded parameters, gradients and optimizer state are cut among the ranks (torch's `fully_shard`: FSDP2), block
by block; a checkpoint holds whole tensors, so that a run may go on with another number of ranks, or with one.

Every rank draws the whole batch from the same generator and takes its rows, so that the batches do not depend on the
number of ranks; gradients are averaged by DistributedDataParallel (gloo on a CPU, nccl on a GPU). A rank that is lost
ends the others; torchrun starts all again, and they go on from the last checkpoint.

Sources: Li et al. (2020), "PyTorch Distributed", arXiv:2006.15704; Zhao et al. (2023), "PyTorch FSDP",
arXiv:2304.11277.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

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


class Sharding:
    """A module whose parameters are cut among the ranks, until `undone`.

    Args:
        step: called once per batch; what is under it must be called through it.
        module: the model inside; each of its blocks is gathered alone.
    """

    def __init__(self, step: nn.Module, module: nn.Module) -> None:
        # torch swaps classes and adds hooks; the model that is returned has to be plain again
        self._before = [
            (part, type(part), {key: hooks.copy() for key, hooks in vars(part).items() if "_hooks" in key})
            for part in step.modules()
        ]
        lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        for block in max(lists, key=len, default=()):
            fully_shard(block)
        fully_shard(step)
        self.step = step

    @torch.no_grad()
    def undone(self) -> None:
        """Put whole tensors and plain classes back."""
        plain: dict[int, nn.Parameter] = {}
        for part in self.step.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        for part in self.step.modules():
            for name, p in part._parameters.items():
                if isinstance(p, DTensor):
                    part._parameters[name] = plain.setdefault(
                        id(p), nn.Parameter(p.full_tensor(), requires_grad=p.requires_grad)
                    )
        for part, kind, hooks in self._before:
            part.__class__ = kind
            vars(part).update(hooks)


def whole(values: Any) -> Any:
    """Return tensors in nested dicts and lists with nothing cut: all ranks must ask."""
    if isinstance(values, DTensor):
        return values.full_tensor()
    if isinstance(values, Mapping):
        return {key: whole(value) for key, value in values.items()}
    return [whole(value) for value in values] if isinstance(values, list) else values


def cut_like(values: Tensor, like: Tensor) -> Tensor:
    """Return whole values cut among the ranks as `like` is."""
    return distribute_tensor(values, like.device_mesh, like.placements) if isinstance(like, DTensor) else values


def ranks() -> Ranks:
    """Join the group that torchrun started, if it did."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        store, rank, world = next(rendezvous("env://"))
        # torchrun starts all again on the store of before, where the addresses of the dead still stand
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt-{attempt}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
        return Ranks(rank, world)
    return Ranks()
