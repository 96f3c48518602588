"""Attention of the bare step in torch: the plain twin of `attend` in native/step.c.

Source: Vaswani et al. (2017), arXiv:1706.03762; only the nearest keys, Gupta et al. (2021), arXiv:2106.06899, and
Bertsch et al. (2023), Unlimiformer, arXiv:2305.01625.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mixed(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor,
    *,
    scale: float,
    nearest: int = 0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return what heads read (B, H, T, E).

    Args:
        q: queries (B, H, T, E).
        keys, values: (B, K, S, E).
        allowed: which keys a query may see (T, S), or (B, H, T, S).
        scale: of the scores.
        nearest: keys of the highest scores that a head reads; 0 reads all [keys, 0 ..].
        weight: (2, B, K, at least S): shares of attention, and counts of shares above the mean one, are added here,
            queries and the heads of a group summed.
    """
    B, H, T, _ = q.shape
    K, S = keys.shape[1], keys.shape[2]
    group = H // K
    scores = q.float() @ keys.float().repeat_interleave(group, 1).transpose(-1, -2) * scale
    scores = scores.masked_fill(~allowed, -torch.inf)
    if 0 < nearest < S:
        least = scores.topk(nearest, -1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(-1)
    if weight is not None:
        seen = allowed.sum(-1, keepdim=True)
        for n, part in enumerate((shares, (shares * seen > 1).float())):
            weight[n, ..., :S] += part.view(B, K, group, T, S).sum((2, 3))
    return (shares @ values.float().repeat_interleave(group, 1)).to(q.dtype)


def lineage(parents: Sequence[int]) -> Tensor:
    """Return which tokens of a tree each may see (T, T): itself and those it follows.

    Args:
        parents: index of the token each follows, -1 for the text before; smaller than its own.

    >>> lineage([-1, 0, 0, 2]).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    """
    found = torch.eye(len(parents), dtype=torch.bool)
    for n, parent in enumerate(parents):
        if parent >= 0:
            found[n] |= found[parent]
    return found


def depths(parents: Sequence[int]) -> list[int]:
    """Return how many tokens of the tree stand before each.

    >>> depths([-1, 0, 0, 2])
    [0, 1, 1, 2]
    """
    found: list[int] = []
    for parent in parents:
        found.append(found[parent] + 1 if parent >= 0 else 0)
    return found
