"""Rows for tokens that a table does not have: what the ways of a transplant share, on plain tensors.

Letters: V old rows, D width, N tokens that need a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kobza.edits import base

Splits = Sequence[Sequence[int]]
BLOCK = 1024  # new tokens whose similarities to all old rows are held at once


def subtokens(table: Tensor, splits: Splits) -> Tensor:
    """Return the mean of each token's parts, (N, D) float32; a token without parts gets the mean of the table."""
    found = table.mean(0).repeat(len(splits), 1)
    for n, parts in enumerate(splits):
        if parts:
            found[n] = table[list(parts)].mean(0)
    return found


def random(table: Tensor, count: int, seed: int) -> Tensor:
    """Return normal rows (N, D) with the mean and the spread of the table, per direction."""
    draw = torch.randn(count, table.shape[1], generator=base.generator(seed, "embed"))
    return table.mean(0) + table.std(0) * draw


# --- fitted ----------------------------------------------------------------------------------------------------------


class Composition:
    """How a table's rows follow from the rows of their parts: a linear map, fitted where both are known.

    The examples are the old vocabulary's own tokens: each was merged from two parts that are tokens too. A row is
    predicted from the first part, the last part and the mean of all. Ridge regression on standardized features; the
    mean is not shrunk.

    Args:
        table: (V, D).
        examples: token and parts of every example.
        shrinkage: ridge, in units of the examples' number [fraction, 0 < ..].
    """

    def __init__(self, table: Tensor, examples: Sequence[tuple[int, Sequence[int]]], shrinkage: float = 0.01) -> None:
        self.table = table
        X = self.features([parts for _, parts in examples])
        Y = table[[token for token, _ in examples]].float()
        self.center, self.mean = X.mean(0), Y.mean(0)
        self.spread = X.std(0, correction=0).clamp_min(1e-6)
        X = (X - self.center) / self.spread
        gram = X.T @ X + shrinkage * len(X) * torch.eye(X.shape[1])
        self.map = torch.linalg.solve(gram, X.T @ (Y - self.mean))  # (3D, D)

    def features(self, splits: Splits) -> Tensor:
        """Return first, last and mean row of each split, (N, 3D)."""
        first = self.table[[parts[0] for parts in splits]]
        last = self.table[[parts[-1] for parts in splits]]
        return torch.cat([first, last, subtokens(self.table, splits)], 1).float()

    def __call__(self, splits: Splits) -> Tensor:
        """Return the predicted rows of splits, (N, D)."""
        parts = [self._block(splits[at : at + 8192]) for at in range(0, len(splits), 8192)]
        return torch.cat(parts) if parts else self.table.new_zeros(0, self.table.shape[1])

    def _block(self, splits: Splits) -> Tensor:
        return (self.features(splits) - self.center) / self.spread @ self.map + self.mean


def examples(merges: Sequence[tuple[int, int, int]], seed: int, deeper: float = 0.25) -> list[tuple[int, list[int]]]:
    """Return each merged token with its parts, some of them cut once more, as new tokens have two parts or more.

    Args:
        merges: (left, right, token) of a vocabulary, in order; of a token that comes twice the first counts.
        seed: which parts are cut again.
        deeper: share of parts that are [fraction, 0 .. 1].
    """
    halves: dict[int, tuple[int, int]] = {}
    for left, right, token in merges:
        halves.setdefault(token, (left, right))
    draws = torch.rand(len(halves), 2, generator=base.generator(seed, "examples")).tolist()
    found = []
    for (token, parts), draw in zip(halves.items(), draws, strict=True):
        cut = [halves.get(part, (part,)) if u < deeper else (part,) for part, u in zip(parts, draw, strict=True)]
        found.append((token, [one for run in cut for one in run]))
    return found


# --- neighbors -------------------------------------------------------------------------------------------------------


def local(
    table: Tensor, old: Tensor, new: Tensor, splits: Splits, lengths: Sequence[Sequence[float]], temperature: float
) -> Tensor:
    """Return parts weighed by softmax((cosine + length share) / 2 / temperature), (N, D).

    Args:
        table: (V, D), the rows that are mixed.
        old, new: unit vectors of old (V, S) and of new tokens (N, S) in the space of similarity.
        splits: parts of each new token.
        lengths: share of the token's bytes that each part has.
    """
    found = table.mean(0).repeat(len(splits), 1)
    for n, (parts, shares) in enumerate(zip(splits, lengths, strict=True)):
        if parts:
            near = (old[list(parts)] @ new[n] + torch.tensor(shares)) / 2
            found[n] = (near / temperature).softmax(0) @ table[list(parts)]
    return found


def neighbors(
    table: Tensor, old: Tensor, new: Tensor, *, count: int, temperature: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the nearest old rows mixed by softmax(cosine / temperature), (N, D), and where there is one (N,).

    Neighbors of a cosine below `threshold` do not count.
    """
    rows, there = [], []
    for at in range(0, len(new), BLOCK):
        near, which = (new[at : at + BLOCK] @ old.T).topk(min(count, len(old)), 1)  # (n, count)
        fits = near >= threshold
        weights = (near / temperature).masked_fill(~fits, -torch.inf).softmax(1).nan_to_num(0.0)
        rows.append((weights[:, :, None] * table[which]).sum(1))
        there.append(fits.any(1))
    if not rows:
        return table.new_zeros(0, table.shape[1]), torch.zeros(0, dtype=torch.bool)
    return torch.cat(rows), torch.cat(there)


def unit(vectors: Tensor) -> Tensor:
    """Return rows of length 1, (N, S); a row of zeros stays."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
