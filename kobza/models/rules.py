"""Rules of drawing a token: pure functions from logits (V,) to logits (V,); what is left out becomes -inf.

Applied in the order of transformers: penalties, temperature, top-k, top-p, min-p, typical, eta. Each equals
transformers' processor of that name, ties and rounding included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def temper(logits: Tensor, value: float) -> Tensor:
    """Divide by the temperature: under 1 sharpens the distribution, over 1 flattens it."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and all that are exactly as likely as the k-th (Fan et al. 2018, arXiv:1805.04833).

    >>> top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
    tensor([-inf, 3., 2.])
    """
    k = min(k, logits.shape[-1])
    least = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, share: float) -> Tensor:
    """Keep the smallest set of likeliest tokens that together reach `share` (Holtzman et al. 2019, arXiv:1904.09751).

    >>> top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp()
    tensor([0.5000, 0.3000, 0.0000])
    """
    rising, order = torch.sort(logits)
    # subtle: summed from the unlikely end, as transformers does, so that ties and rounding fall the same way
    is_tail = rising.softmax(-1).cumsum(-1) <= 1 - share
    is_tail[-1] = False  # the likeliest always stays
    return logits.masked_fill(torch.zeros_like(is_tail).scatter(-1, order, is_tail), -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep the tokens at least `share` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).

    >>> min_p(torch.tensor([0.6, 0.3, 0.1]).log(), 0.4).exp()
    tensor([0.6000, 0.3000, 0.0000])
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < share * probabilities.max(), -torch.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose surprisal is nearest to the entropy, up to `mass` (Meister et al. 2022, arXiv:2202.00666).

    >>> typical(torch.tensor([0.6, 0.3, 0.1]).log(), 0.2).exp()
    tensor([0.0000, 0.3000, 0.0000])
    """
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum()
    order = (-logprobs - entropy).abs().argsort()
    kept = int((logits[order].softmax(-1).cumsum(-1) < mass).sum().clamp(max=len(logits) - 1)) + 1
    is_out = torch.ones_like(logits, dtype=torch.bool)
    is_out[order[:kept]] = False
    # subtle: transformers keeps all that are exactly as far from the entropy as the last one kept
    distance = (-logprobs - entropy).abs()
    return logits.masked_fill(is_out & (distance > distance[order[kept - 1]]), -torch.inf)


def eta(logits: Tensor, epsilon: float) -> Tensor:
    """Leave out tokens less likely than min(e, sqrt(e) exp(-entropy)) (Hewitt et al. 2022, arXiv:2210.15191)."""
    probabilities = logits.softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    bound = torch.min(torch.tensor(epsilon), torch.sqrt(torch.tensor(epsilon)) * torch.exp(-entropy))
    return logits.masked_fill((probabilities < bound) & (logits < logits.max()), -torch.inf)


def repetition(logits: Tensor, seen: Sequence[int], factor: float) -> Tensor:
    """Make tokens seen less likely: positive logits are divided, negative ones multiplied (Keskar et al. 2019).

    Source: CTRL, arXiv:1909.05858, section 4.1.
    """
    if not len(seen):
        return logits
    ids = torch.tensor(sorted(set(seen)))
    old = logits[ids]
    return logits.index_copy(0, ids, torch.where(old < 0, old * factor, old / factor))


def occurrence(logits: Tensor, made: Sequence[int], frequency: float, presence: float) -> Tensor:
    """Subtract `frequency` for each time a token was made, and `presence` once (as OpenAI's interface defines them)."""
    if not len(made):
        return logits
    counts = torch.bincount(torch.tensor(list(made)), minlength=len(logits))[: len(logits)]
    return logits - frequency * counts - presence * (counts > 0)
