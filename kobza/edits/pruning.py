"""Pruning: set the entries of a matrix to zero that matter least, anywhere, per row, or n of every m.

magnitude: |w|. wanda: |w| times the size of the input its column meets, compared within a row. sparsegpt: w^2 over
the diagonal of the inverse second moments, and the entries that stay make up for those that go. Zeros are values: the
matrix is stored as big as before and runs as fast as before; that is said in the bytes.

Sources: Sun et al. (2023), arXiv:2306.11695 (Wanda); Frantar & Alistarh (2023), arXiv:2301.00774 (SparseGPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.edits import base
from kobza.edits._layers import require_linear, through
from kobza.edits.base import CALIBRATION, TOKENS
from kobza.models.model import Model

LAZY = 128  # columns whose mask is chosen together, the paper's block


def apply(
    model: Model,
    *,
    where: str = "blocks",
    method: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude",
    share: float = 0.5,
    among: int = 0,
    damping: float = 0.01,
    shuffle: int = 0,
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Set a share of the entries of every chosen matrix to zero.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix. wanda and sparsegpt: linear layers of blocks.
        method: magnitude, wanda or sparsegpt.
        share: of the entries that become zero [fraction, 0 .. 1]; 0 changes nothing.
        among: how entries compete [columns, -1 ..]. 0: within a row. m: in every m neighboring columns of a row, so
            that among=4,share=0.5 is 2:4. -1: within the whole matrix (sparsegpt: within 128 columns).
        damping: added to the second moments in all directions, in units of their mean, for sparsegpt [fraction, >0 ..].
        shuffle: the control: inputs in the random order of this seed [seed, 0 ..]; 0: in their own order.
        calibration: texts whose inputs count, for wanda and sparsegpt; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A fork of the old size. Its last Change records the share of zeros and the relative error, per matrix too.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        BadValue: a chosen matrix is not a linear layer of a block, for wanda and sparsegpt.
        OutOfRange: a share outside 0 .. 1, or of `among` columns that is no whole number.

    Cost: sorting for magnitude; about four forward passes over the calibration tokens for the others, and O(M N^2)
        per matrix for sparsegpt.
    """
    names = base.select(model, where)
    _check(share, among, damping)
    options: dict[str, Any] = {"where": where, "method": method, "share": share, "among": among}
    facts: dict[str, Any] = {}
    if method == "magnitude":
        tensors = {name: _masked(model.matrix(name), model.matrix(name).abs(), share, among) for name in names}
    else:
        require_linear(model, names)
        texts = base.calibration_texts(calibration)

        def change(name: str, W: Tensor, H: Tensor, C: Tensor) -> Tensor:
            if shuffle:
                order = torch.randperm(len(H), generator=base.generator(shuffle, name))
                H = H[order][:, order]
            if method == "wanda":
                return _masked(W, W.abs() * H.diagonal().sqrt().float(), share, among)
            return compensated(W, H, share, among, damping)

        tensors = through(model, names, texts, calibration_tokens, change, method)
        facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
        options |= {"damping": damping, "shuffle": shuffle}
        options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
    zeros = {name: float((W == 0).double().mean()) for name, W in tensors.items()}
    sizes = {name: W.numel() for name, W in tensors.items()}
    facts["zeros"] = sum(zeros[name] * sizes[name] for name in names) / sum(sizes.values())
    each = {name: {"zeros": value} for name, value in zeros.items()}
    return base.edited(model, "pruning", options, tensors, facts=facts, per_matrix=each)


def _check(share: float, among: int, damping: float) -> None:
    if not 0 <= share <= 1 or among < -1 or not damping > 0:
        raise OutOfRange(f"share={share}, among={among}, damping={damping}; allowed: share 0 .. 1, among -1 ..")
    if among > 0 and abs(share * among - round(share * among)) > 1e-9:
        raise OutOfRange(f"share={share} of every {among} columns is no whole number.", "For 2:4: share=0.5,among=4")


def _masked(W: Tensor, size: Tensor, share: float, among: int) -> Tensor:
    """W with its smallest entries at zero."""
    return torch.where(smallest(size, share, among), 0.0, W)


def smallest(size: Tensor, share: float, among: int) -> Tensor:
    """Say which entries (M, N) are the smallest: a share of the whole, of every row, or of every m columns."""
    M, N = size.shape
    if among > 0:
        whole, rest = size[:, : N // among * among], size[:, N // among * among :]
        mask = _lowest(whole.reshape(-1, among), round(share * among)).view(M, -1)
        return torch.cat([mask, torch.zeros_like(rest, dtype=torch.bool)], 1)
    if among == 0:
        return _lowest(size, round(share * N))
    return _lowest(size.reshape(1, -1), round(share * M * N)).view(M, N)


def _lowest(size: Tensor, count: int) -> Tensor:
    """Say which `count` entries of every row are the lowest; of equal ones those to the left."""
    at = size.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(size, dtype=torch.bool).scatter_(1, at, True)


def compensated(W: Tensor, H: Tensor, share: float, among: int, damping: float) -> Tensor:
    """SparseGPT (its algorithm 1): columns from left to right; the error of each goes to the columns after it."""
    N = W.shape[1]
    H = H.clone()
    H.diagonal().add_(damping * H.diagonal().mean().clamp_min(1e-12))
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True).float()
    rest, size = W.clone(), min(LAZY, N)
    step = size if among <= 0 else among
    for begin in range(0, N, step):
        end = min(begin + step, N)
        # its worth at this moment: after the repairs of what went before
        worth = rest[:, begin:end].square() / U.diagonal()[begin:end].square()
        mask = smallest(worth, share, among if among <= 0 or end - begin == among else 0)
        for i in range(begin, end):
            error = torch.where(mask[:, i - begin], rest[:, i], 0.0) / U[i, i]
            rest[:, i:] -= error[:, None] * U[i, i:]
            rest[:, i] = torch.where(mask[:, i - begin], 0.0, rest[:, i])
    return rest
