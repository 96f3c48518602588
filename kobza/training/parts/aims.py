"""What the loss asks of a window beyond the next token: silence at first, tokens further ahead, an even load.

Sources: several tokens at once, Gloeckle et al. (2024), arXiv:2404.19737 (here each further head is one residual layer
in front of the common output table, where they have a block); the load of experts, Fedus et al. (2022),
arXiv:2101.03961.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, OutOfRange
from kobza.models.free import penalty
from kobza.models.states import body
from kobza.training.parts.losses import attention, linear_cross_entropy, mean_loss, plain_head


class Further(nn.Module):
    """What stands between the final states and the output table where a token further ahead is predicted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.map = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = states + self.map(self.norm(states))
        return out


def look_ahead(module: Any, tokens: int, context: int) -> None:
    """Give a module what it takes to predict so many tokens at once; it is part of the module while it is trained.

    Raises:
        OutOfRange: not 1 .. the context.
    """
    if not 1 <= tokens <= context:
        raise OutOfRange(f"ahead {tokens}: give 1 .. {context}, the tokens of a window.")
    if tokens > 1:
        module.further = nn.ModuleList(Further(module.config.hidden_size) for _ in range(tokens - 1))


def forget_ahead(module: Any) -> None:
    """Take off again what `look_ahead` put on."""
    module._modules.pop("further", None)


def aimed_loss(module: Any, read: Tensor, targets: Tensor, *, skip: int = 0) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch in nats, and the loss of the next token alone where the first holds more than that.

    Args:
        module: the model; experts and heads further ahead are its own.
        read, targets: (B, T) ids; all rows of equal length.
        skip: places at the beginning of a window whose loss is left out [count, 0 .. below T].
    """
    shares = _shares(targets, skip) if skip else None
    further = getattr(module, "further", ())
    if not further:
        loss, _ = mean_loss(module, read, targets, shares)
        cost = penalty(module)
        return (loss + cost, {"next": float(loss.detach())}) if isinstance(cost, Tensor) else (loss, {})
    head = plain_head(module)
    if head is None:
        raise BadValue("several tokens ahead need a head that is one matrix.", "Give ahead=1.")
    with attention(read):
        states = body(module, input_ids=read)
    loss = _loss(states, targets, head, shares)
    total = loss + penalty(module)
    for n, part in enumerate(further, 1):
        if targets.shape[1] > n:
            rest = None if shares is None else _shares(targets[:, n:], max(0, skip - n))
            total = total + _loss(part(states[:, :-n]), targets[:, n:], head, rest)
    return total, {"next": float(loss.detach())}


def _loss(states: Tensor, targets: Tensor, head: tuple[Tensor, Tensor | None], shares: Tensor | None) -> Tensor:
    flat = None if shares is None else shares.reshape(-1)
    weight, bias = head
    return linear_cross_entropy(states.flatten(0, 1), weight, targets.reshape(-1), bias=bias, shares=flat)[0]


def _shares(targets: Tensor, skip: int) -> Tensor:
    wanted = torch.arange(targets.shape[1], device=targets.device) >= skip
    return wanted.float().expand_as(targets) / max(1, int(wanted.sum()) * len(targets))
