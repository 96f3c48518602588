"""Grids: which values a block of weights may take, how its scale is chosen, and the codes of its entries.

The reference rules are those of GGUF's q4_0, q4_1, q5_0, q5_1 and q8_0, float for float; the rule `search` tries
clipped ranges and fits scale and offset to the codes by weighted least squares.

Source: ggml-quants.c (github.com/ggml-org/llama.cpp), quantize_row_q*_ref and, for the search, make_qkx2_quants;
absmean for ternary codes: Ma et al. (2024), arXiv:2402.17764.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, NotFinite, OutOfRange
from kobza.models.quantized import Quantized, levels, pack, rotated

FORMATS = ("int", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "nf4", "fp4", "ternary", "f16")
CLIPS = tuple(1.0 - 0.04 * step for step in range(16))  # 1 .. 0.4 of the full range
LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Grid:
    """The values that codes can say.

    Attributes:
        kind: see `models.quantized.LEVELS`.
        bits: of a code.
        block: columns that share a scale; 0: a row; -1: the whole matrix.
        rule: how the scale is chosen: `reference` as GGUF does, `absmax`, or `search`.
    """

    kind: str
    bits: int
    block: int
    rule: str = "reference"

    @property
    def values(self) -> Tensor:
        """The values (2^bits,) at scale 1."""
        return levels(self.kind, self.bits)


PRESETS = {
    "q4_0": Grid("signed", 4, 32),
    "q4_1": Grid("unsigned", 4, 32),
    "q5_0": Grid("signed", 5, 32),
    "q5_1": Grid("unsigned", 5, 32),
    "q8_0": Grid("signed", 8, 32, "absmax"),
    "f16": Grid("float16", 16, 0),
}


def grid(form: str, *, bits: int, block: int, symmetric: bool, rule: str) -> Grid:
    """Return the grid that options describe; a GGUF format fixes bits and block.

    Raises:
        OutOfRange: bits outside 2 .. 8, or no possible block.
    """
    if form in PRESETS:
        return PRESETS[form] if rule == "reference" else replace(PRESETS[form], rule=rule)
    if not 2 <= bits <= 8 or block < -1:
        raise OutOfRange(f"bits={bits}, block={block}; allowed: 2 .. 8 bits, blocks of 1 .. N columns, 0 (a row), -1.")
    if form in ("nf4", "fp4"):
        return Grid(form, 4, block, rule)
    if form == "ternary":
        return Grid(form, 2, block, rule)
    return Grid("signed" if symmetric else "unsigned", bits, block, rule)


@dataclass(frozen=True)
class Scales:
    """Scale and offset of every block, (M, G, 1) float32; offset None for grids around 0.

    `stored()` is what float16 keeps of them.
    """

    scale: Tensor
    offset: Tensor | None

    def stored(self) -> Scales:
        """Both as they read back from float16."""
        offset = None if self.offset is None else half(self.offset).float()
        return Scales(half(self.scale).float(), offset)


def half(tensor: Tensor) -> Tensor:
    """Return a tensor as float16.

    Raises:
        NotFinite: a value is too large for it.
    """
    if float(tensor.abs().max()) > LARGEST:
        raise NotFinite(f"a scale of {float(tensor.abs().max()):.3g} does not fit float16 (at most {LARGEST:.0f}).")
    return tensor.to(torch.float16)


def blocked(W: Tensor, block: int) -> Tensor:
    """(M, N) as (M, G, B); the last column is repeated where B does not divide N. B 0: a row, -1: (1, 1, M N)."""
    M, N = W.shape
    if block == -1:
        return W.reshape(1, 1, -1)
    size = min(block or N, N)
    short = -N % size
    whole = W if not short else torch.cat([W, W[:, -1:].expand(M, short)], 1)
    return whole.reshape(M, -1, size)


def joined(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Undo `blocked`: (M, N)."""
    if len(blocks) != shape[0]:
        return blocks.reshape(shape)
    return blocks.reshape(shape[0], -1)[:, : shape[1]]


def encode(X: Tensor, scales: Scales, given: Grid) -> Tensor:
    """Nearest codes, uint8, of values X (..., B) on the grid of their blocks.

    Signed and unsigned codes round as ggml does: truncation of x / d + 1/2 in float32.
    """
    inverse = torch.where(scales.scale == 0, 0.0, 1 / scales.scale)
    Y = (X if scales.offset is None else X - scales.offset) * inverse
    top = 2**given.bits - 1
    if given.kind == "unsigned":
        return (Y + 0.5).trunc().clamp(0, top).to(torch.uint8)
    if given.kind == "signed" and given.rule != "absmax":
        return (Y + (2 ** (given.bits - 1) + 0.5)).trunc().clamp(0, top).to(torch.uint8)
    if given.kind == "signed":
        rounded = Y.sign() * (Y.abs() + 0.5).floor()
        return (rounded + 2 ** (given.bits - 1)).clamp(0, top).to(torch.uint8)
    ordered, order = given.values.sort()
    return order[torch.bucketize(Y, (ordered[1:] + ordered[:-1]) / 2)].to(torch.uint8)


def decode(codes: Tensor, scales: Scales, given: Grid) -> Tensor:
    """Values of codes (..., B) on the grid of their blocks."""
    Y = given.values[codes.long()] * scales.scale
    return Y if scales.offset is None else Y + scales.offset


def fitted(W: Tensor, given: Grid, weights: Tensor | None = None) -> Scales:
    """Choose the scale of every block of W (M, N).

    Args:
        W: the matrix.
        given: the grid.
        weights: importance of entries (N,) or (M, N) [>= 0], for the rule `search`.
    """
    X = blocked(W.float(), given.block)
    if given.rule != "search":
        return _by_rule(X, given)
    w = torch.ones_like(X)
    if weights is not None:
        # a share of plain importance: columns that the calibration never moved still count a little
        even = (weights + 0.01 * weights.mean()).float().expand(W.shape)
        w = blocked(even, given.block)
    if given.block > 0 and W.shape[1] % min(given.block, W.shape[1]):
        w = w.clone()
        w.view(len(W), -1)[:, W.shape[1] :] = 0  # the repeated column
    return _searched(X, w, given)


def _by_rule(X: Tensor, given: Grid) -> Scales:
    top = 2**given.bits - 1
    if given.kind == "unsigned":
        low, high = X.amin(-1, keepdim=True), X.amax(-1, keepdim=True)
        return Scales((high - low) / top, low)
    if given.kind == "signed" and given.rule == "reference":
        at = X.abs().argmax(-1, keepdim=True)
        return Scales(X.gather(-1, at) / -(2 ** (given.bits - 1)), None)
    if given.kind == "ternary":
        return Scales(X.abs().mean(-1, keepdim=True), None)
    largest = X.abs().amax(-1, keepdim=True)
    return Scales(largest / (2 ** (given.bits - 1) - 1) if given.kind == "signed" else largest, None)


def _searched(X: Tensor, w: Tensor, given: Grid) -> Scales:
    """Of clipped ranges, each refitted to its own codes, keep the one with the least weighted error per block."""
    starts = [_by_rule(X, replace(given, rule="reference"))]
    if given.kind == "signed":  # the largest entry may also lie at the positive end, or both ends alike
        starts += [_by_rule(X, replace(given, rule="absmax"))]
    best, least = starts[0].stored(), torch.full(X.shape[:-1], math.inf)[..., None]
    for start in starts:
        for clip in CLIPS:
            center = 0.0 if start.offset is None else start.offset + start.scale * (2**given.bits - 1) / 2
            offset = None if start.offset is None else center + (start.offset - center) * clip
            tried = Scales(start.scale * clip, offset)
            for _ in range(2):
                tried = refitted(X, w, encode(X, tried, given), given, tried).stored()
            error = ((decode(encode(X, tried, given), tried, given) - X).square() * w).sum(-1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = Scales(
                torch.where(better, tried.scale, best.scale),
                None if tried.offset is None or best.offset is None else torch.where(better, tried.offset, best.offset),
            )
    return best


def refitted(X: Tensor, w: Tensor, codes: Tensor, given: Grid, old: Scales) -> Scales:
    """Scale and offset that fit the codes best, by weighted least squares per block; old ones where undetermined."""
    L = given.values[codes.long()]

    def total(values: Tensor) -> Tensor:
        return (values * w).sum(-1, keepdim=True)

    ll, xl = total(L * L), total(X * L)
    if old.offset is None:
        return Scales(torch.where(ll > 0, xl / ll.clamp_min(1e-30), old.scale), None)
    n, sum_l, sum_x = total(torch.ones_like(X)), total(L), total(X)
    spread = n * ll - sum_l * sum_l
    is_fit = spread > 1e-6 * n * ll
    scale = torch.where(is_fit, (n * xl - sum_l * sum_x) / spread.clamp_min(1e-30), old.scale)
    offset = torch.where(is_fit, (sum_x - scale * sum_l) / n.clamp_min(1e-30), old.offset)
    return Scales(scale, offset)


# --- a matrix --------------------------------------------------------------------------------------------------------


def signs(N: int, generator: torch.Generator) -> Tensor:
    """Random signs (N,) int8."""
    return (2 * torch.randint(0, 2, (N,), generator=generator) - 1).to(torch.int8)


def turned(W: Tensor, sign: Tensor) -> Tensor:
    """W (M, N) in the coordinates that a signed Hadamard rotation gives its inputs."""
    return rotated(W * sign.float())


def turned_moments(H: Tensor, sign: Tensor) -> Tensor:
    """Second moments (N, N) of inputs in the coordinates of `turned`."""
    return rotated(rotated(H * sign.double()).T * sign.double())


def assembled(codes: Tensor, scales: Scales | None, given: Grid, **extra: Tensor) -> Quantized:
    """Build the stored matrix from codes (M, N), scales and what else belongs to it (see `Quantized.tensors`)."""
    M, N = codes.shape
    assert scales is not None
    tensors = {"codes": pack(codes, given.kind, given.bits)}
    size = (1, 1) if given.block == -1 else (M, -1)
    tensors["scales"] = half(scales.scale).reshape(size)
    if scales.offset is not None:
        tensors["offsets"] = half(scales.offset).reshape(size)
    return Quantized((M, N), given.kind, given.bits, min(given.block, N) if given.block > 0 else N, tensors | extra)


def as_float16(W: Tensor) -> Quantized:
    """Store a matrix as float16 numbers, 16 bits each."""
    codes = half(W).contiguous().view(-1).view(torch.uint8)
    return Quantized((W.shape[0], W.shape[1]), "float16", 16, W.shape[1], {"codes": codes})


def rounded(W: Tensor, given: Grid, weights: Tensor | None = None, **extra: Tensor) -> Quantized:
    """Round a matrix to the nearest values of a grid."""
    if given.kind == "float16":
        return as_float16(W)
    scales = fitted(W, given, weights)
    X = blocked(W.float(), given.block)
    return assembled(joined(encode(X, scales, given), (W.shape[0], W.shape[1])), scales, given, **extra)


def outliers(W: Tensor, share: float, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Choose the entries whose squares, weighted by importance (N,), are largest; store them exactly (float16).

    Source: Dettmers et al. (2023), arXiv:2306.03078 (SpQR keeps about 1 % of the weights at 16 bits).
    """
    count = round(share * W.numel())
    if not 0 <= share < 0.5:
        raise OutOfRange(f"outliers={share}; allowed: 0 .. below 0.5 of the entries.")
    if count == 0:
        return {}
    size = (W.float() - W.float().mean(1, keepdim=True)).square() * (1 if weights is None else weights.float())
    at = size.flatten().topk(count).indices.sort().values
    narrow = torch.int16 if W.shape[1] < 2**15 else torch.int32
    return {
        "outlier_counts": torch.bincount(at // W.shape[1], minlength=len(W)).to(torch.int32),
        "outlier_columns": (at % W.shape[1]).to(narrow),
        "outlier_values": half(W.flatten()[at]),
    }


def without(W: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """W with its outliers set to the mean of their row, so that they do not stretch a block."""
    if not kept:
        return W
    rows = torch.repeat_interleave(torch.arange(len(W)), kept["outlier_counts"].long())
    plain = W.clone()
    plain[rows, kept["outlier_columns"].long()] = W.mean(1)[rows]
    return plain


def code_use(value: Quantized) -> list[int]:
    """How often each code occurs; empty for float16."""
    if value.kind == "float16":
        return []
    count = 3 if value.kind == "ternary" else 2**value.bits
    found: list[int] = torch.bincount(value.codes().flatten(), minlength=count).tolist()
    return found


def facts(values: dict[str, Quantized]) -> dict[str, Any]:
    """What a Change says about its codes: bits per weight over all, scales included, and the histogram of codes."""
    weights = sum(math.prod(value.shape) for value in values.values())
    use = [code_use(value) for value in values.values()]
    total = [sum(column) for column in zip(*use, strict=True)] if all(use) else []
    return {
        "bits_per_weight": 8 * sum(value.nbytes for value in values.values()) / weights,
        "code_use": total,
        "per_matrix": {name: {"bits_per_weight": value.bits_per_weight} for name, value in values.items()},
    }


def require_whole(name: str, is_part: bool) -> None:
    """Refuse to store codes for a part of a fused matrix."""
    if is_part:
        raise BadValue(f"{name!r} is a part of a fused matrix and cannot be stored as codes.", "Name the whole matrix.")
