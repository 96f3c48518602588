"""Where a model's parameters are: counts by kind of matrix, the share of the embeddings, tied or not.

Source: counts of the opened tensors themselves; nothing is estimated.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.embeddings.base import Vectors

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject
    from kobza.models.matrices import Matrix

UNITS = {"parameters": "count", "share": "fraction", "bytes": "B"}


def table(model: Subject, *, by: Literal["kind", "layer", "matrix"] = "kind") -> Table:
    """Count parameters.

    Args:
        model: an opened model, or word vectors.
        by: one row per kind of matrix (`blocks.*.mlp.down`), per layer, or per matrix.

    Returns:
        Columns part, shape, tensors, parameters, share (of all parameters stored) and bytes, largest part first
        (layers and matrices in the model's order), and a bar figure. A tensor that serves under two names counts once.
    """
    if isinstance(model, Vectors):
        return _of_vectors(model)
    groups: dict[str, list[Matrix]] = {}
    for matrix in model.matrices.values():
        groups.setdefault(_part(matrix.name, by), []).append(matrix)
    total = sum(_count(matrix) for matrix in model.matrices.values())
    rows = [_row(part, group, total) for part, group in groups.items()]
    if by == "kind":
        rows.sort(key=lambda row: -row["parameters"])
    embedded = sum(_count(m) for name, m in model.matrices.items() if name.startswith("embed."))
    note = f"{total:,} parameters, {embedded / total:.2%} of them in embeddings; {_tie(model.is_tied, model.matrices)}"
    return Table(rows, units=UNITS, title=f"Parameters of {model.name}", note=note, figures=[_bars(rows, model.name)])


def _part(name: str, by: str) -> str:
    if by == "kind":
        return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
    layer = re.match(r"blocks\.\d+", name)
    return layer[0] if by == "layer" and layer else name


def _count(matrix: Matrix) -> int:
    """Numbers stored for a matrix; 0 where another name owns the tensor."""
    if matrix.shared:
        return 0
    return matrix.rank * sum(matrix.shape) if matrix.stored_as == "factors" else math.prod(matrix.shape)


def _row(part: str, group: list[Matrix], total: int) -> dict[str, Any]:
    shapes = list(dict.fromkeys(" x ".join(map(str, matrix.shape)) for matrix in group))
    count = sum(_count(matrix) for matrix in group)
    shared = next((f" (= {matrix.shared})" for matrix in group if matrix.shared), "")
    return {
        "part": part,
        "shape": (shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes") + shared,
        "tensors": sum(not matrix.shared for matrix in group),
        "parameters": count,
        "share": count / total if total else 0.0,
        "bytes": sum(matrix.bytes for matrix in group),
    }


def _tie(is_tied: bool, matrices: dict[str, Matrix]) -> str:
    if not is_tied:
        return "the two ends are tensors of their own (untied)."
    extra = _count(matrices["embed.in"])
    return f"both ends are one tensor (tied): untying would add {extra:,}."


def _bars(rows: list[dict[str, Any]], name: str) -> Figure:
    shown = [row for row in rows if row["parameters"]][:40]
    data = {"labels": [row["part"] for row in shown], "values": [row["parameters"] / 1e6 for row in shown]}
    caption = "Numbers stored, each shared tensor once."
    return Figure("bars", data | {"horizontal": True}, title=f"Parameters of {name}", caption=caption, x="million")


def _of_vectors(vectors: Vectors) -> Table:
    rows, width = vectors.matrix.shape
    row = {"part": vectors.name, "shape": f"{rows} x {width}", "tensors": 1, "parameters": rows * width, "share": 1.0}
    note = f"{rows:,} {vectors.kind} of {width} numbers."
    return Table([row | {"bytes": vectors.matrix.nbytes}], units=UNITS, title=f"Size of {vectors.name}", note=note)
