"""Fit a few tensors by gradient descent: what healing edits, probes and dictionaries share.

Training a model on a text (data, held-out readings, budgets) is the loop of the training room, not this one. A fit
that takes minutes can keep its state in a file and go on from there.

Sources: AdamW, Loshchilov & Hutter (2019), arXiv:1711.05101; the cosine, the same (2017), arXiv:1608.03983.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from kobza.core.errors import NotFinite, OutOfRange
from kobza.core.progress import task

EVERY = 60.0  # seconds between two writings of the state
MOMENTS = ("exp_avg", "exp_avg_sq")


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
    state: Path | None = None,
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
        state: a file in which tensors and moments are kept about once a minute, and from which a fit that was killed
            goes on, to the same end bit for bit; removed when done. Its name must stand for all that the loss
            depends on, and the loss be a function of the step alone.

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
    optimizer = torch.optim.AdamW(chosen, lr=rate, betas=betas, weight_decay=decay, fused=True)
    history, saved = _resumed(state, chosen, optimizer), time.monotonic()
    with task(label, steps) as work, torch.inference_mode(False), torch.enable_grad():
        for step in range(len(history), steps):
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
            if state and time.monotonic() - saved > EVERY:
                _keep(state, chosen, optimizer, history)
                saved = time.monotonic()
    if state:
        state.unlink(missing_ok=True)
    return history


def _keep(state: Path, chosen: Sequence[Tensor], optimizer: torch.optim.Optimizer, history: list[float]) -> None:
    """Write tensors, moments and losses; a state that cannot be written costs time later, not the result."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"{i}": tensor.detach() for i, tensor in enumerate(chosen)}
    for i, tensor in enumerate(chosen):
        tensors |= {f"{i}.{name}": optimizer.state[tensor][name] for name in MOMENTS}
    part = state.with_suffix(".part")  # no copy in memory, as `atomic_file` would need
    with suppress(SafetensorError, OSError):
        state.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, part, {"history": json.dumps(history)})
        os.replace(part, state)
    part.unlink(missing_ok=True)


def _resumed(state: Path | None, chosen: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    """Put back what `_keep` wrote; the losses so far, none without a file."""
    from safetensors import safe_open

    if state is None or not state.is_file():
        return []
    with torch.no_grad(), safe_open(state, "pt") as file:
        history: list[float] = json.loads(file.metadata()["history"])
        for i, tensor in enumerate(chosen):
            tensor.copy_(file.get_tensor(f"{i}"))
            moments = {name: file.get_tensor(f"{i}.{name}").to(tensor.device) for name in MOMENTS}
            optimizer.state[tensor] = {"step": torch.tensor(float(len(history))), **moments}
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
