"""Schedule-free AdamW: no schedule; what is measured and saved is an average of the iterates.

The most common mistake with it is to evaluate or save the wrong weights; here `averaged()` is a context that the loop
enters for both.

Source: Defazio et al. (2024), arXiv:2405.15682, algorithm 1 and its AdamW form (section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ScheduleFree(torch.optim.Optimizer):
    """AdamW on z; gradients are taken at y = (1 - beta1) z + beta1 x, where x is the running average of z.

    The parameters hold y while training. State per parameter: z and the second moment, so as much as AdamW.
    The weight of an iterate in the average grows with the square of its rate, so that a warm-up counts for less.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "k": 0, "weight": 0.0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            group["k"] += 1
            rate, decay = group["lr"], group["weight_decay"]
            correction = 1 - beta2 ** group["k"]
            group["weight"] += rate**2
            share = rate**2 / group["weight"] if group["weight"] else 0.0
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["z"], state["square"] = y.clone(), torch.zeros_like(y)
                z, square = state["z"], state["square"]
                square.mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                slope = y.grad / (square / correction).sqrt_().add_(group["eps"])
                if decay:
                    slope.add_(y, alpha=decay)
                # y' = (1 - beta1) z' + beta1 x' with x' = x + share (z' - x), without ever storing x
                y.lerp_(z, share).add_(slope, alpha=rate * (beta1 * (1 - share) - 1))
                z.sub_(slope, alpha=rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold the average x inside the block, and y, bit for bit, behind it."""
        kept = {}
        with torch.no_grad():
            for group in self.param_groups:
                beta1 = group["betas"][0]
                for y in group["params"]:
                    if self.state.get(y):
                        kept[y] = y.clone()
                        y.lerp_(self.state[y]["z"], 1 - 1 / beta1)
        try:
            yield
        finally:
            with torch.no_grad():
                for y, values in kept.items():
                    y.copy_(values)
