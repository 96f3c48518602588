"""LASER: find the one matrix whose lower rank the loss misses least, or that it is better without.

Every chosen linear layer is tried alone at a share of its rank, on a calibration text: the blocks before it are run
once for all, so that the search costs half of what whole models would. The best `count` are then reduced together.

Source: Sharma et al. (2023), arXiv:2312.13558 (layer-selective rank reduction; there the search is by the accuracy of a
task, and the late matrices of the MLP gain).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.progress import progress
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits._layers import Walk, layer_of, require_linear
from kobza.edits._lowrank import whitened
from kobza.edits.base import CALIBRATION
from kobza.models import replacing
from kobza.models.model import Factors, Model, Value

TOKENS = 1024  # read by default: two windows


def apply(
    model: Model,
    *,
    where: str = "blocks",
    share: float = 0.1,
    count: int = 1,
    metric: Literal["none", "moments"] = "none",
    store: Literal["dense", "factors"] = "factors",
    multiple: int = 1,
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Reduce the rank of those matrices that a text misses least.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; linear layers of blocks.
        share: of the rank that stays in a reduced matrix [fraction, >0 .. 1]; the paper keeps 0.01 to 0.9.
        count: matrices reduced [count, 1 ..]; they are chosen one by one, not together.
        metric: which directions count. none: all alike, as in the paper. moments: second moments of what a layer
            reads.
        store: factors: stored and used so where they are smaller than the matrix. dense: the products, of the old
            size.
        multiple: ranks are rounded to a multiple of this [count, 1 ..]; 64 runs fastest.
        calibration: texts that choose; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A fork. Its last Change records the matrices reduced, and the change of bits per token that each of all the
        chosen ones would bring alone (`worth`).

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        BadValue: a chosen matrix is not a linear layer of a block.
        OutOfRange: a share or count outside its range.

    Cost: half a pass over the calibration tokens and an eigenvalue problem for each chosen matrix.
    """
    names = base.select(model, where)
    if not 0 < share <= 1 or multiple < 1 or not 1 <= count <= len(names):
        raise OutOfRange(
            f"share={share}, multiple={multiple}, count={count}; allowed: above 0 .. 1, 1 .., 1 .. {len(names)}."
        )
    texts = base.calibration_texts(calibration)
    worth, reduced = searched(model, names, texts, share, metric, multiple, calibration_tokens)
    chosen = sorted(names, key=worth.__getitem__)[:count]
    tensors: dict[str, Value] = {}
    for name in chosen:
        found = reduced(name)
        is_smaller = found.A.numel() + found.B.numel() < math.prod(found.shape)
        tensors[name] = found if store == "factors" and is_smaller else found.dense()
    options = base.options_of(
        where=where, share=share, count=count, metric=metric, store=store, multiple=multiple,
        calibration=list(calibration), calibration_tokens=calibration_tokens,
    )  # fmt: skip
    facts = {"worth": worth, "calibration": base.calibration_facts(texts, calibration_tokens)}
    return base.edited(model, "laser", options, tensors, facts=facts)


def searched(
    model: Model, names: Sequence[str], texts: Sequence[Text], share: float, metric: str, multiple: int, tokens: int
) -> tuple[dict[str, float], Any]:
    """Change of bits per token with each matrix reduced alone, and a function from a name to its factors."""
    require_linear(model, names)
    moments = base.input_moments(model, names, texts, tokens) if metric == "moments" else {}

    def reduced(name: str) -> Factors:
        W = model.matrix(name)
        return whitened(W, rank_of(W, share, multiple), moments.get(name))

    walk, work = Walk(model, texts, tokens), model.fork()
    found: dict[str, float] = {}
    for layer in progress(range(model.layers), "laser"):
        for name in (name for name in names if layer_of(name) == layer):
            replacing.put(work.module, model.matrices[name], reduced(name).dense())
            found[name] = _bits(walk, work, layer)
            replacing.put(work.module, model.matrices[name], model.matrix(name))
        walk.step(model, layer)
    whole = walk.bits(model, walk.hidden)
    return {name: found[name] - whole for name in names}, reduced


def rank_of(W: Tensor, share: float, multiple: int) -> int:
    """The rank that a share of the full one is, rounded to a multiple, at least one of them where that fits."""
    most = min(W.shape)
    return min(most, max(1, round(share * most / multiple)) * multiple)


def _bits(walk: Walk, model: Model, first: int) -> float:
    """Bits per token of a model from what enters a block."""
    hidden = walk.hidden
    for layer in range(first, model.layers):
        hidden = [walk.out(model, layer, h) for h in hidden]
    return walk.bits(model, hidden)


def table(
    model: Model,
    texts: Sequence[Text],
    *,
    where: str = "blocks",
    share: float = 0.1,
    metric: str = "none",
    tokens: int = TOKENS,
) -> Table:
    """Return a row per matrix, best first: change of bits per token when it alone is reduced; with a heat map.

    Args:
        model: the model.
        texts: read in whole windows, each alike.
        where, share, metric: as `apply`.
        tokens: read in all [count, 2 ..].
    """
    names = base.select(model, where)
    worth, _ = searched(model, names, texts, share, metric, 1, tokens)
    rows: list[dict[str, Any]] = [
        {"layer": layer_of(name), "matrix": name.split(".", 2)[2], "change": worth[name]}
        for name in sorted(names, key=worth.__getitem__)
    ]
    parts, layers = list(dict.fromkeys(row["matrix"] for row in rows)), sorted({row["layer"] for row in rows})
    at = {(row["matrix"], row["layer"]): row["change"] for row in rows}
    values = [[at.get((part, layer)) for layer in layers] for part in sorted(parts)]
    data = {"values": values, "rows": sorted(parts), "columns": list(map(str, layers))}
    title = f"One matrix at {share:.0%} of its rank: change of bits per token"
    figure = Figure("image", data, title=title, x="layer", y="matrix")
    return Table(rows, units={"change": "bit/token"}, title=title, figures=[figure])
