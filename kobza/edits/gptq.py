"""GPTQ: round column by column, and let the columns not yet rounded make up for what each rounding spoils.

The error that counts is |X (W - W')^T| on the inputs X of a layer, so the second moments H of X decide which column
can repair which. Blocks are done from below, each on what the already rounded ones before it give; with `correct`
the target is what the layer gave on the *original* inputs, so that a layer also repairs its predecessors. After each
round scale and offset of every block are fitted again to the codes under H.

Sources: Frantar et al. (2022), arXiv:2210.17323; columns in the order of their inputs with scales fixed before:
their `act-order` and `static_groups`; correction towards the original inputs: Li et al. (2025), arXiv:2504.02692.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.edits import _grids as grids
from kobza.edits import base
from kobza.edits._grids import Grid, Scales
from kobza.edits._layers import require_linear, through
from kobza.edits.base import CALIBRATION
from kobza.models.model import Model, Quantized

TOKENS = 8192  # read by default; 1.6 minutes per pass for 135M parameters on one core
LAZY = 128  # columns whose repairs are gathered before the rest of the matrix is updated (the paper's block)


def apply(
    model: Model,
    *,
    where: str = "blocks",
    format: Literal["int", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "nf4", "fp4", "ternary"] = "int",
    bits: int = 4,
    block: int = 32,
    symmetric: bool = False,
    outliers: float = 0.0,
    rotate: int = 0,
    correct: float = 0.5,
    rounds: int = 2,
    damping: float = 0.01,
    shuffle: int = 0,
    store: Literal["codes", "dense"] = "codes",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Round every chosen linear layer to a grid so that its outputs on a text change least.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; linear layers of blocks.
        format: as in `rounding`: q4_0 .. q8_0 are stored as GGUF stores them; int takes the next three options.
        bits: of a code of format int [bits, 2 .. 8].
        block: columns that share a scale, for formats other than GGUF's [columns, 0 ..]; 0: a row.
        symmetric: codes around 0 without an offset; otherwise each block has an offset as well.
        outliers: share of the entries kept exactly, at 16 bits and their place [fraction, 0 .. 0.5].
        rotate: turn the inputs by a Hadamard matrix with the random signs of this seed first [seed, 0 ..]; 0: do not.
        correct: how far the target moves to what the layer gave on the original inputs [fraction, 0 .. 1].
        rounds: times that scales are fitted and codes chosen [count, 1 ..].
        damping: added to the second moments in all directions, in units of their mean [fraction, >0 ..].
        shuffle: the control: inputs in the random order of this seed [seed, 0 ..]; 0: in their own order.
        store: codes: stored so. dense: the rounded values, of the old size.
        calibration: texts whose inputs count; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A fork. Its last Change records relative error, stored bytes, bits per weight (scales and all), use of codes,
        and the calibration texts by hash.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        BadValue: a chosen matrix is not a linear layer of a block.
        OutOfRange: an option outside its range.

    Cost: about five forward passes over the calibration tokens and O(M N^2) per matrix and round: 6 minutes for 135M
        parameters and 8192 tokens on one core.
    """
    names = base.select(model, where)
    rule = Rule(
        grids.grid(format, bits=bits, block=block, symmetric=symmetric, rule="search"),
        outliers, rotate, correct, rounds, damping, shuffle,
    )  # fmt: skip
    rule.check(model, names)
    texts = base.calibration_texts(calibration)
    stored: dict[str, Quantized] = through(
        model, names, texts, calibration_tokens, lambda name, W, H, C: round_matrix(W, H, C, rule, name), "gptq"
    )
    options: dict[str, Any] = {"where": where, "format": format}
    if format not in grids.PRESETS:
        options |= {"bits": bits, "block": block, "symmetric": symmetric}
    options |= {"outliers": outliers, "rotate": rotate, "correct": correct, "rounds": rounds, "damping": damping}
    options |= {"shuffle": shuffle, "store": store}
    options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
    facts = grids.facts(stored)
    each = facts.pop("per_matrix")
    facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    values = stored if store == "codes" else {name: value.dense() for name, value in stored.items()}
    return base.edited(model, "gptq", options, values, facts=facts, per_matrix=each)


@dataclass(frozen=True)
class Rule:
    """The options that one matrix is rounded by."""

    grid: Grid
    outliers: float
    rotate: int
    correct: float
    rounds: int
    damping: float
    shuffle: int

    def check(self, model: Model, names: Sequence[str]) -> None:
        """Refuse matrices that are no linear layers of blocks, and options out of range."""
        require_linear(model, names)
        if self.grid.block == -1 or self.rounds < 1 or not self.damping > 0 or not 0 <= self.correct <= 1:
            raise OutOfRange(
                f"block={self.grid.block}, rounds={self.rounds}, damping={self.damping}, correct={self.correct}; "
                "allowed: block 0 .., rounds 1 .., damping above 0, correct 0 .. 1."
            )


# --- one matrix ------------------------------------------------------------------------------------------------------


def round_matrix(W: Tensor, H: Tensor, C: Tensor, rule: Rule, name: str = "") -> Quantized:
    """Round W (M, N) under second moments H of its inputs and cross moments C with the original inputs, (N, N)."""
    if rule.shuffle:
        order = torch.randperm(len(H), generator=base.generator(rule.shuffle, name))
        H, C = H[order][:, order], C[order][:, order]
    H = H.clone()
    H.diagonal().add_(rule.damping * H.diagonal().mean().clamp_min(1e-12))
    target = W.double()
    if rule.correct:
        # the least squares answer to W x0 = W' x, part of the way
        C = C.clone()
        C.diagonal().add_(rule.damping * H.diagonal().mean())
        target = target + rule.correct * (target @ torch.linalg.solve(H, C - H, left=False))
    kept = grids.outliers(target.float(), rule.outliers, H.diagonal())
    plain, extra = grids.without(target.float(), kept), dict(kept)
    if rule.rotate:
        extra["signs"] = grids.signs(W.shape[1], base.generator(rule.rotate, name))
        plain, H = grids.turned(plain, extra["signs"]), grids.turned_moments(H, extra["signs"])
    codes, scales = _rounded(plain, H, rule)
    return grids.assembled(codes, scales, rule.grid, **extra)


def _rounded(W: Tensor, H: Tensor, rule: Rule) -> tuple[Tensor, Scales]:
    """Codes (M, N) and scales: columns by falling input, then scales fitted to the codes, `rounds` times."""
    order = H.diagonal().argsort(descending=True)
    U = _inverse_root(H[order][:, order])
    scales = grids.fitted(W, rule.grid, H.diagonal().float()).stored()
    best: tuple[Tensor, Scales] | None = None
    least = float("inf")
    for _ in range(rule.rounds):
        codes = _columns(W, U, order, scales, rule.grid)
        scales = refit(W, H, codes, scales, rule.grid).stored()
        loss = output_error(W, H, codes, scales, rule.grid)
        if loss < least:
            best, least = (codes, scales), loss
    assert best is not None, "the loss of finite weights is finite"
    return best


def _inverse_root(H: Tensor) -> Tensor:
    """U upper triangular with U^T U = H^-1, (N, N) float32."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _columns(W: Tensor, U: Tensor, order: Tensor, scales: Scales, given: Grid) -> Tensor:
    """The codes: round a column, spread its error over those after it as U says (Frantar et al., algorithm 1)."""
    M, N = W.shape
    size = min(given.block or N, N)
    rest = W[:, order].clone()
    codes = torch.empty(M, N, dtype=torch.uint8)
    for begin in range(0, N, LAZY):
        end = min(begin + LAZY, N)
        part, errors = rest[:, begin:end], torch.empty(M, end - begin)
        for i in range(end - begin):
            column = int(order[begin + i])
            own = _own(scales, column // size)
            code = grids.encode(part[:, i : i + 1], own, given)
            error = (part[:, i] - grids.decode(code, own, given)[:, 0]) / U[begin + i, begin + i]
            part[:, i:] -= error[:, None] * U[begin + i, begin + i : end]
            errors[:, i] = error
            codes[:, column] = code[:, 0]
        rest[:, end:] -= errors @ U[begin:end, end:]
    return codes


def _own(scales: Scales, group: int) -> Scales:
    """Scale and offset (M, 1) of one block of every row."""
    return Scales(scales.scale[:, group], None if scales.offset is None else scales.offset[:, group])


def _values(codes: Tensor, scales: Scales, given: Grid) -> Tensor:
    blocks = grids.decode(grids.blocked(codes, given.block), scales, given)
    return grids.joined(blocks, (codes.shape[0], codes.shape[1]))


def output_error(W: Tensor, H: Tensor, codes: Tensor, scales: Scales, given: Grid) -> float:
    """Mean square of X (W - W')^T over the inputs, summed over the M outputs: trace of E H E^T."""
    E = (W - _values(codes, scales, given)).float()
    return float((E @ H.float() * E).sum())


def refit(W: Tensor, H: Tensor, codes: Tensor, scales: Scales, given: Grid) -> Scales:
    """Scales and offsets of all blocks of a row together that minimize trace E H E^T for given codes.

    A row of W' is z^T Z with Z (2 G, N) the levels of each block, and ones where there are offsets; the normal
    equations Z H Z^T z = Z H w are solved row by row.
    """
    M, N = W.shape
    levels = grids.joined(given.values[grids.blocked(codes, given.block).long()], (M, N))
    size = min(given.block or N, N)
    rows = [levels] if scales.offset is None else [levels, torch.ones_like(levels)]
    starts = range(0, N, size)
    G, H = len(starts), H.float()
    A, b = torch.zeros(M, len(rows) * G, len(rows) * G), torch.zeros(M, len(rows) * G)
    WH = W @ H
    for i, left in enumerate(rows):
        for g, start in enumerate(starts):
            part = slice(start, min(start + size, N))
            Y = left[:, part] @ H[part]  # (M, N)
            for j, right in enumerate(rows):
                A[:, i * G + g, j * G : (j + 1) * G] = _block_sums(Y * right, size)
        b[:, i * G : (i + 1) * G] = _block_sums(WH * left, size)
    old = torch.cat([scales.scale[..., 0], *([] if scales.offset is None else [scales.offset[..., 0]])], 1)
    # held to the old ones a little, so that blocks without inputs, or with one code only, stay where they are
    hold = 1e-3 * A.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
    A.diagonal(dim1=1, dim2=2).add_(hold[:, None])
    found = torch.linalg.solve(A.double(), (b + hold[:, None] * old).double()[..., None]).float()
    return Scales(found[:, :G], None if scales.offset is None else found[:, G:])


def _block_sums(X: Tensor, size: int) -> Tensor:
    """Sums (M, G) over blocks of columns of X (M, N)."""
    short = -X.shape[1] % size
    whole = X if not short else torch.cat([X, X.new_zeros(len(X), short)], 1)
    return whole.view(len(X), -1, size).sum(-1)
