"""Activation-aware scaling: columns that strong inputs meet are stretched before rounding, and shrunk after.

A column multiplied by s before rounding and divided by s after has its rounding error divided by s; which columns
deserve it, the mean size of the inputs says. s = size^a, with the exponent a chosen for every matrix by the error of
its output on the calibration text. One float16 number per column is stored; a = 0 is plain rounding.

Source: Lin et al. (2023), arXiv:2306.00978, section 3.2 (the grid of 20 exponents is theirs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.edits import _grids as grids
from kobza.edits import base
from kobza.edits._layers import require_linear, through
from kobza.edits.base import CALIBRATION, TOKENS
from kobza.models.model import Model, Quantized


def apply(
    model: Model,
    *,
    where: str = "blocks",
    bits: int = 4,
    block: int = 32,
    symmetric: bool = False,
    rule: Literal["reference", "absmax", "search"] = "reference",
    exponents: int = 20,
    shuffle: int = 0,
    store: Literal["codes", "dense"] = "codes",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Round every chosen linear layer after scaling its columns by the size of their inputs.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; linear layers of blocks.
        bits: of a code [bits, 2 .. 8].
        block: columns that share a scale [columns, 0 ..]; 0: a row.
        symmetric: codes around 0 without an offset; otherwise each block has its smallest value as well.
        rule: how scales are chosen, as in `rounding`.
        exponents: tried from 0 up to, not including, 1 [count, 1 ..].
        shuffle: the control: sizes of inputs in the random order of this seed [seed, 0 ..]; 0: in their own order.
        store: codes: stored so. dense: the rounded values, of the old size.
        calibration: texts whose inputs count; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A fork. Its last Change records relative error, stored bytes, bits per weight, and each matrix's exponent.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        BadValue: a chosen matrix is not a linear layer of a block.
        OutOfRange: an option outside its range.

    Cost: about four forward passes over the calibration tokens, and `exponents` roundings per matrix.
    """
    names = base.select(model, where)
    require_linear(model, names)
    if exponents < 1 or block < 0:
        raise OutOfRange(f"exponents={exponents}, block={block}; allowed: 1 .. exponents, block 0 ..")
    given = grids.grid("int", bits=bits, block=block, symmetric=symmetric, rule=rule)
    texts = base.calibration_texts(calibration)
    chosen: dict[str, float] = {}

    def change(name: str, W: Tensor, H: Tensor, C: Tensor) -> Quantized:
        if shuffle:
            order = torch.randperm(len(H), generator=base.generator(shuffle, name))
            H = H[order][:, order]
        value, chosen[name] = scaled_rounding(W, H, given, exponents)
        return value

    stored: dict[str, Quantized] = through(model, names, texts, calibration_tokens, change, "awq")
    options: dict[str, Any] = {"where": where, "bits": bits, "block": block, "symmetric": symmetric, "rule": rule}
    options |= {"exponents": exponents, "shuffle": shuffle, "store": store}
    options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
    facts = grids.facts(stored)
    each = {name: one | {"exponent": chosen[name]} for name, one in facts.pop("per_matrix").items()}
    facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    values = stored if store == "codes" else {name: value.dense() for name, value in stored.items()}
    return base.edited(model, "awq", options, values, facts=facts, per_matrix=each)


def scaled_rounding(W: Tensor, H: Tensor, given: grids.Grid, exponents: int) -> tuple[Quantized, float]:
    """The rounding of W (M, N) with the least output error under second moments H (N, N), and its exponent."""
    size = H.diagonal().sqrt().float()
    size = size.clamp_min(1e-4 * float(size.max()) + 1e-12)
    moments, best, least, chosen = H.float(), None, float("inf"), 0.0
    for step in range(exponents):
        s = size ** (step / exponents)
        columns = grids.half((s.max() * s.min()).sqrt() / s)  # centered, so that float16 holds both ends
        value = grids.rounded(W / columns.float(), given, H.diagonal() * columns.double() ** 2, columns=columns)
        E = value.dense() - W
        error = float((E @ moments * E).sum())
        if error < least:
            best, least, chosen = value, error, step / exponents
    assert best is not None, "the error of finite weights is finite"
    return best, chosen
