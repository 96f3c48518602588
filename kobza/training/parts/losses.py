"""Cross entropy at the output head without the (N, V) logits, and log-probabilities of tokens.

The head and the loss are taken a few rows at a time, and the gradients in the same pass: of N x V numbers only one
piece ever exists. torch 2.13 has `linear_cross_entropy` for the same, whose default pieces are 7 times slower on a
CPU at V = 200,000 (see `bench/training.py`).

Source: "cut" losses, Wijmans et al. (2025), arXiv:2411.09009; the gradient in the forward pass, Hsu et al. (2024),
arXiv:2410.10989.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kobza.models.states import body

SHORT = 128  # tokens up to which attention by plain products is faster on a CPU than torch's fused kernel, measured
PIECE = 1 << 24  # logits held at once: 64 MiB of float32
_LEAST = 64  # rows, whatever V is: fewer make the matrix product slow


def rows_at_once(vocabulary: int) -> int:
    """Return how many rows of logits are made at a time."""
    return max(_LEAST, PIECE // vocabulary)


class _Mean(torch.autograd.Function):
    """Weighted sum of the losses of N rows; gradients are taken at once, since the weights are known."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad
        grads = [
            torch.zeros_like(t) if n and t is not None else None
            for t, n in zip((states, weight, bias), needs[:3], strict=True)
        ]
        losses = torch.empty(len(states), device=states.device)
        for begin in range(0, len(states), rows_at_once(len(weight))):
            at = slice(begin, begin + rows_at_once(len(weight)))
            logits = _logits(states[at], weight, bias)
            top = logits.amax(-1, keepdim=True)
            wanted = logits.gather(-1, targets[at, None])[:, 0]
            logits.sub_(top).exp_()
            total = logits.sum(-1)
            losses[at] = total.log() + top[:, 0] - wanted
            if not any(needs[:3]):
                continue
            logits.mul_((shares[at] / total)[:, None])  # now the gradient at the logits
            logits[torch.arange(len(logits)), targets[at]] -= shares[at]
            _back(logits, states[at], weight, grads, at)
        ctx.grads = grads
        ctx.mark_non_differentiable(losses)
        return (losses * shares).sum(), losses

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else grad.mul_(scale) for grad in ctx.grads]
        ctx.grads = None
        return (*grads, None, None)


class _Rows(torch.autograd.Function):
    """Log-probabilities of N targets; the logits are made a second time in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        totals, wanted = torch.empty(2, len(states), device=states.device)
        for begin in range(0, len(states), rows_at_once(len(weight))):
            at = slice(begin, begin + rows_at_once(len(weight)))
            logits = _logits(states[at], weight, bias)
            totals[at] = logits.logsumexp(-1)
            wanted[at] = logits.gather(-1, targets[at, None])[:, 0]
        ctx.save_for_backward(states, weight, bias, targets, totals)
        ctx.autocast = _autocast_type(states)
        return wanted - totals

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, totals = ctx.saved_tensors
        kinds = ((states, 0), (weight, 1), (bias, 2))
        grads = [torch.zeros_like(t) if t is not None and ctx.needs_input_grad[n] else None for t, n in kinds]
        with torch.autocast(states.device.type, ctx.autocast, enabled=ctx.autocast is not None):
            for begin in range(0, len(states), rows_at_once(len(weight))):
                at = slice(begin, begin + rows_at_once(len(weight)))
                logits = _logits(states[at], weight, bias).sub_(totals[at, None]).exp_()
                logits.mul_(-upstream[at, None])
                logits[torch.arange(len(logits)), targets[at]] += upstream[at]
                _back(logits, states[at], weight, grads, at)
        return (*grads, None)


def _autocast_type(states: Tensor) -> torch.dtype | None:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # under autocast the product is taken in bfloat16, the sums over V always in float32
    return nn.functional.linear(states, weight, bias).float()


def _back(slope: Tensor, states: Tensor, weight: Tensor, grads: list[Tensor | None], at: slice) -> None:
    """Add what gradients at some rows of logits (n, V) give at states, weight and bias."""
    low = _autocast_type(states)
    flat = slope.to(low) if low else slope
    if grads[0] is not None:
        grads[0][at] = (flat @ weight.to(flat.dtype)).to(grads[0].dtype)
    if grads[1] is not None:
        if flat.dtype == grads[1].dtype:
            grads[1].addmm_(flat.T, states.to(flat.dtype))
        else:
            grads[1].add_(flat.T @ states.to(flat.dtype))
    if grads[2] is not None:
        grads[2].add_(slope.sum(0))


def linear_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, shares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean loss in nats and the loss of every row, without gradient.

    Args:
        states: (N, D) in front of the head.
        weight: (V, D) of the head.
        targets: (N,) ids.
        bias: (V,) of the head.
        shares: (N,) weight of each row in the sum; 1 / N each if not given.

    Cost: one product for the logits, two for the gradients, as the plain way; memory for 64 MiB of logits, or 64 rows.
    """
    if shares is None:
        shares = torch.full((len(targets),), 1 / len(targets), device=states.device)
    return _Mean.apply(states, weight, bias, targets, shares)


def plain_head(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return weight (V, D) and bias of a head that is a matrix and nothing else, or None (soft caps, scales)."""
    head = module.get_output_embeddings()
    config = module.config.get_text_config()
    scaled = (getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    if type(head) is not nn.Linear or any(value not in (None, 1, 1.0) for value in scaled):
        return None
    return head.weight, head.bias


def attention(read: Tensor) -> AbstractContextManager[None]:
    """Return a context with the kernel of attention that is fastest, forward and backward, for rows (B, T).

    The fused kernel's backward pass takes five times as long as its products at 32 tokens in bfloat16.
    """
    is_short = read.device.type == "cpu" and read.shape[1] <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if is_short else nullcontext()


def mean_loss(module: Any, read: Tensor, targets: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a causal model in nats, and that of every token, without gradient.

    Args:
        module: a transformers causal language model.
        read: (B, T) ids that are read.
        targets: (B, T) ids to be predicted.
        shares: (B, T) weight of each in the sum; 1 / (B T) each if not given.
    """
    head = plain_head(module)
    flat = targets.reshape(-1)
    part = None if shares is None else shares.reshape(-1)
    if head is None:
        logits = module(input_ids=read, use_cache=False).logits.float()
        losses = nn.functional.cross_entropy(logits.reshape(len(flat), -1), flat, reduction="none")
        return (losses.mean() if part is None else (losses * part).sum()), losses.detach()
    with attention(read):
        states = body(module, input_ids=read)
    weight, bias = head
    return linear_cross_entropy(states.reshape(len(flat), -1), weight, flat, bias=bias, shares=part)


def token_logps(module: Any, read: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return log p, in nats, of the targets (B, T); 0 where the mask is false. Differentiable.

    Args:
        module: a transformers causal language model.
        read, targets: (B, T) ids.
        mask: (B, T) which targets are wanted: only those pass the head.
    """
    wanted = mask.reshape(-1).nonzero()[:, 0]
    flat = targets.reshape(-1)[wanted]
    head = plain_head(module)
    if head is None:
        logits = module(input_ids=read, use_cache=False).logits.float()
        found = logits.reshape(mask.numel(), -1)[wanted].log_softmax(-1).gather(-1, flat[:, None])[:, 0]
    else:
        with attention(read):
            states = body(module, input_ids=read)
        found = _Rows.apply(states.reshape(mask.numel(), -1)[wanted], *head, flat)
    return torch.zeros(mask.numel(), device=found.device).index_put((wanted,), found).reshape(mask.shape)
