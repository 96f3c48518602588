"""GaLore: Adam on gradients projected to rank r, so that its moments are r x n and not m x n.

The listing that circulates keeps moments of full size (nothing is saved) and does not run for r > 1. Here the state of
a matrix (m, n) is the projection (min(m, n), r) and two moments (r, max(m, n)).

Source: Zhao et al. (2024), arXiv:2403.03507, algorithm 1: a new projection every 200 steps, updates scaled by 0.25.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class GaLore(torch.optim.Optimizer):
    """AdamW in the space of the r strongest directions of the gradient.

    Args:
        params: matrices only.
        lr: learning rate.
        rank: directions that are kept [count, 1 ..].
        every: steps between two projections [count, 1 ..].
        scale: of the update [fraction, 0 < ..].
        betas, eps, weight_decay: as AdamW.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        rank: int = 64,
        every: int = 200,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "rank": rank, "every": every, "scale": scale, "betas": tuple(betas), "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            group["k"] += 1
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, self.state[matrix], group)

    def _update(self, matrix: Tensor, slope: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        is_wide = matrix.shape[0] <= matrix.shape[1]
        if (group["k"] - 1) % group["every"] == 0 or not state:
            state["project"] = projection(slope if is_wide else slope.T, group["rank"])
        P = state["project"]  # (min(m, n), R)
        low = P.T @ slope if is_wide else slope @ P  # (R, n) or (m, R)
        if "first" not in state:
            state["first"], state["second"] = torch.zeros_like(low), torch.zeros_like(low)
        beta1, beta2 = group["betas"]
        first = state["first"].lerp_(low, 1 - beta1)
        second = state["second"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        corrected = (second / (1 - beta2 ** group["k"])).sqrt_().add_(group["eps"])
        step = first / (1 - beta1 ** group["k"]) / corrected
        whole = P @ step if is_wide else step @ P.T
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(whole, alpha=-group["lr"] * group["scale"])


def projection(slope: Tensor, rank: int) -> Tensor:
    """Return the strongest left directions of a gradient (m, n), m <= n, as (m, R), through its m x m Gram matrix."""
    wide = slope.double()
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    return vectors[:, -min(rank, len(slope)) :].flip(-1).to(slope.dtype).contiguous()
