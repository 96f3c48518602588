"""Optimizers by name, and the bytes that their state takes.

Sources: AdamW, Loshchilov & Hutter (2019), arXiv:1711.05101; Muon, Jordan et al. (2024), for matrices of the blocks;
Adafactor, Shazeer & Stern (2018), arXiv:1804.04235; schedule-free, Defazio et al. (2024), arXiv:2405.15682;
GaLore, Zhao et al. (2024), arXiv:2403.03507.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import UnknownName
from kobza.training.parts import galore, schedule_free

Named = Iterable[tuple[str, nn.Parameter]]
NAMES = ("adamw", "muon", "adafactor", "schedule_free", "galore")


def build(name: str, named: Named, *, rate: float, decay: float, betas: tuple[float, float], rank: int = 0) -> Any:
    """Make an optimizer.

    Args:
        name: one of `NAMES`; AdamW gives tables with sparse gradients (`tables.spare`) to torch's SparseAdam.
        named: what it changes, with names: Muon and GaLore take the matrices of the blocks, AdamW the rest.
        rate: learning rate of every part [per step, 0 < ..].
        decay: decoupled weight decay [per unit of rate, 0 ..].
        betas: of the first and second moment.
        rank: of GaLore's projections [count, 1 ..].

    Raises:
        UnknownName: no such optimizer.
    """
    if name not in NAMES:
        raise UnknownName.of("optimizer", name, NAMES)
    listed = list(named)
    how: dict[str, Any] = {"lr": rate, "weight_decay": decay}
    everything = [p for _, p in listed]
    if name == "adamw":
        dense = [p for p in everything if not hasattr(p, "is_sparse_table")]
        rows = [p for p in everything if hasattr(p, "is_sparse_table")]
        if rows:  # without decay: a row that is not read stays as it is
            return Several(_adamw(dense, betas, how), torch.optim.SparseAdam(rows, lr=rate, betas=betas))
        return _adamw(dense, betas, how)
    if name == "adafactor":
        return torch.optim.Adafactor(everything, **how)
    if name == "schedule_free":
        return schedule_free.ScheduleFree(everything, betas=betas, **how)
    inner = [p for name, p in listed if is_inner(name, p)]
    outer = [p for name, p in listed if not is_inner(name, p)]
    first: Callable[..., Any] = torch.optim.Muon
    if name == "galore":
        return Several(galore.GaLore(inner, rank=rank, betas=betas, **how), _adamw(outer, betas, how))
    # torch's own adjustment for a rate that is shared with AdamW (Moonlight: 0.2 sqrt(max(M, N)))
    return Several(first(inner, adjust_lr_fn="match_rms_adamw", **how), _adamw(outer, betas, how))


def _adamw(parameters: list[nn.Parameter], betas: tuple[float, float], how: dict[str, Any]) -> Any:
    return torch.optim.AdamW(parameters, betas=betas, fused=True, **how) if parameters else None


def is_inner(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of a block, neither a table of tokens or positions nor a head."""
    return (
        parameter.ndim == 2
        and ".embed" not in name
        and not any(
            part in ("wte", "wpe", "lm_head", "embed_out", "embed_tokens", "embed_positions")
            for part in name.split(".")
        )
    )


class Several:
    """Two optimizers that share the parameters between them; one face."""

    def __init__(self, *parts: Any) -> None:
        self.parts = [part for part in parts if part is not None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """The states of all parts."""
        return {key: value for part in self.parts for key, value in part.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts by number."""
        return {str(n): part.state_dict() for n, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for n, part in enumerate(self.parts):
            part.load_state_dict(state[str(n)])


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of all tensors that the optimizer keeps here between steps; a shared one counts once."""
    seen = {
        id(t): getattr(t, "to_local", lambda t=t: t)().nbytes
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, Tensor)
    }
    return sum(seen.values())


def has_average(optimizer: Any) -> bool:
    """Whether the weights to be measured and saved are others than those that are trained."""
    return hasattr(optimizer, "averaged")


def averaged(optimizer: Any) -> AbstractContextManager[None]:
    """Hold the weights to be measured and saved: schedule-free's average, for all others the weights as they are."""
    found: Callable[[], AbstractContextManager[None]] | None = getattr(optimizer, "averaged", None)
    return found() if found else nullcontext()


def clip(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Shorten the gradients to a norm in common; return the norm they had. Sparse ones count by the rows they hold."""
    listed = list(parameters)
    grads: list[Any] = [p.grad for p in listed if p.grad is not None]
    if not any(grad.is_sparse for grad in grads):
        return nn.utils.clip_grad_norm_(listed, most)
    for p in listed:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.coalesce()
    held: list[Any] = [p.grad.values() if p.grad.is_sparse else p.grad for p in listed if p.grad is not None]
    norm = nn.utils.get_total_norm(held)
    for grad in held:
        grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))  # as torch's
    return norm
