"""Rounding: every weight to the nearest value of a grid of 2 to 16 bits, stored as codes and scales.

Plain (round to nearest) or weighed by what a text shows of the inputs: then scales are chosen so that columns with
strong inputs err least, and the largest weighted entries can be kept exactly. `shuffle` is the control: the same
importances, in the wrong order.

A model that was read from a q4_1 file (`smollm2` is) already lies on q4_1's grid: rounding it to q4_1, or to 4 bits
asymmetric in blocks of 32, changes nothing, and says nothing about q4_1.

Sources: GGUF formats, ggml-quants.c (github.com/ggml-org/llama.cpp); NF4: Dettmers et al. (2023), arXiv:2305.14314;
outliers: Dettmers et al. (2023), arXiv:2306.03078; rotation: Ashkboos et al. (2024), arXiv:2404.00456.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.texts import Text
from kobza.edits import _grids as grids
from kobza.edits import base
from kobza.edits.base import CALIBRATION, TOKENS
from kobza.models.model import Model, Quantized


def apply(
    model: Model,
    *,
    where: str = "blocks",
    format: Literal["int", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "nf4", "fp4", "ternary", "f16"] = "int",
    bits: int = 4,
    block: int = 32,
    symmetric: bool = False,
    rule: Literal["reference", "absmax", "search"] = "reference",
    importance: Literal["none", "inputs"] = "none",
    shuffle: int = 0,
    outliers: float = 0.0,
    rotate: int = 0,
    store: Literal["codes", "dense"] = "codes",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Round every chosen matrix to a grid.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix. `blocks` is all linear layers.
        format: q4_0 .. q8_0 are GGUF's, code for code; nf4 and fp4 have 16 unequal steps; ternary is -1, 0, 1; f16
            is half precision; int takes the next three options.
        bits: of a code of format int [bits, 2 .. 8].
        block: columns that share a scale, for formats other than GGUF's [columns, -1 ..]; 0: a row, -1: the matrix.
        symmetric: codes around 0 without an offset; otherwise each block has its smallest value as well.
        rule: how scales are chosen. reference: as ggml does (signed codes: the entry of largest size becomes the
            lowest code). absmax: largest size over the largest code. search: least squares over clipped ranges.
        importance: weights of the columns for rule=search and outliers. none: all alike. inputs: mean square of what
            a layer reads; at the ends of a model second moments of gradients and final states.
        shuffle: the control: importances in the random order of this seed [seed, 0 ..]; 0: in their own order.
        outliers: share of the entries kept exactly, at 16 bits and their place [fraction, 0 .. 0.5].
        rotate: turn the inputs by a Hadamard matrix with the random signs of this seed first, which spreads what
            sticks out [seed, 0 ..]; 0: do not.
        store: codes: stored so. dense: the rounded values, of the old size.
        calibration: texts that importance is taken from; not the text to be measured.
        calibration_tokens: tokens read for it, shared over the texts [count, 2 ..].

    Returns:
        A fork. Its last Change records relative error, stored bytes, bits per weight (scales and all) and how often
        each code is used.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        OutOfRange: bits, block or outliers outside their range.
        NotFinite: a scale does not fit float16.

    Cost: O(M N) per matrix, 30 times that for rule=search; importance reads the calibration texts once.
    """
    names = base.select(model, where)
    given = grids.grid(format, bits=bits, block=block, symmetric=symmetric, rule=rule)
    texts = base.calibration_texts(calibration) if importance != "none" else []
    weights = _importances(model, names, texts, calibration_tokens, shuffle) if texts else {}
    stored: dict[str, Quantized] = {}
    for name in names:
        stored[name] = _rounded(model.matrix(name), given, weights.get(name), outliers, rotate, name)
    options: dict[str, Any] = {"where": where, "format": format}
    if format not in grids.PRESETS:
        options |= {"bits": bits, "block": block, "symmetric": symmetric}
    options |= {"rule": rule, "importance": importance, "outliers": outliers, "rotate": rotate, "store": store}
    options |= {"shuffle": shuffle} if texts else {}
    facts = grids.facts(stored)
    each = facts.pop("per_matrix")
    if texts:
        options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
        facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    values = stored if store == "codes" else {name: value.dense() for name, value in stored.items()}
    return base.edited(model, "rounding", options, values, facts=facts, per_matrix=each)


def _rounded(W: Tensor, given: grids.Grid, weights: Tensor | None, share: float, rotate: int, name: str) -> Quantized:
    kept = grids.outliers(W, share, weights)
    plain, extra = grids.without(W, kept), dict(kept)
    if rotate and given.kind != "float16":
        extra["signs"] = grids.signs(W.shape[1], base.generator(rotate, name))
        plain, weights = grids.turned(plain, extra["signs"]), None  # turned inputs are all about alike
    return grids.rounded(plain, given, weights, **extra)


def _importances(model: Model, names: list[str], texts: Sequence[Text], tokens: int, shuffle: int) -> dict[str, Tensor]:
    """Importance of the columns of every matrix, (N,)."""
    linear = [name for name in names if name not in base.ENDS]
    found = {name: H.diagonal() for name, H in base.input_moments(model, linear, texts, tokens).items()}
    found |= {name: base.end_metric(model, name, texts, tokens).diagonal() for name in names if name in base.ENDS}
    if shuffle:
        order = {name: torch.randperm(len(w), generator=base.generator(shuffle, name)) for name, w in found.items()}
        return {name: w[order[name]] for name, w in found.items()}
    return found
