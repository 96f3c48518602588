"""Fit a few tensors by gradient descent: what healing edits, probes and dictionaries share.

Training a model on a text (data, checkpoints, resuming, budgets) is the loop of the training room, not this one.

Sources: AdamW, Loshchilov & Hutter (2019), arXiv:1711.05101; the cosine, the same (2017), arXiv:1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kobza.core.errors import NotFinite, OutOfRange
from kobza.core.progress import task


def fit(
    parameters: Iterable[Tensor],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    warmup: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.99),
    decay: float = 0.0,
    clip: float = 1.0,
    label: str = "fit",
) -> list[float]:
    """Change tensors in place so that a loss falls; AdamW, linear warm-up, then a cosine down to 0.

    Args:
        parameters: leaf tensors that require gradients; the caller's own, never those of an opened Model.
        loss: from the number of a step (0 ..) to a scalar; it draws its batch itself, from a seed.
        steps: updates [count, 1 ..].
        rate: learning rate after the warm-up [per step, 0 < ..].
        warmup: share of the steps in which the rate rises [fraction, 0 .. 1].
        betas: decay of the first and second moment [fraction, 0 .. 1].
        decay: decoupled weight decay [per unit of rate, 0 ..].
        clip: norm to which longer gradients are shortened; 0 leaves them [norm, 0 ..].
        label: what the progress bar says.

    Returns:
        The loss before each update, S numbers.

    Raises:
        OutOfRange: no step, a rate that is not above 0, or nothing to fit.
        NotFinite: the loss or a gradient is not finite; the message names the step. The tensors hold the values of
            the last good step.
    """
    chosen = list(parameters)
    if steps < 1 or not rate > 0 or not chosen:
        raise OutOfRange(f"steps={steps}, rate={rate}, {len(chosen)} tensors: all must be above 0.")
    optimizer = torch.optim.AdamW(chosen, lr=rate, betas=betas, weight_decay=decay)
    history = []
    with task(label, steps) as work, torch.inference_mode(False), torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps, warmup)
            optimizer.zero_grad(set_to_none=True)
            value = loss(step)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(chosen, clip or math.inf)
            if not (torch.isfinite(value) and torch.isfinite(norm)):
                raise NotFinite(f"{label}: the loss is not finite at step {step} of {steps}.", "Lower the rate.")
            optimizer.step()
            history.append(value.item())
            work.step(note=f"loss {history[-1]:.4f}")
    return history


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the full rate at a step.

    >>> [round(schedule(step, 4, 0.5), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
