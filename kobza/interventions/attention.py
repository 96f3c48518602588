"""Attention over a long input: where every head looks, and pictures in tiles instead of single cells.

A pattern of T x T cells cannot be drawn for thousands of tokens, nor need all heads' be held: each layer is read by
itself, summed up, and only the heads asked for keep a picture, in which a tile shows the strongest attention any of
its queries pays to any of its keys (a mean would hide a single strong line). Numbers describe; what a head does is seen
by switching it off (`ablate`).

Source: Clark et al. (2019), arXiv:1906.04341 (entropy and targets of heads); Xiao et al. (2023), arXiv:2309.17453
(the first position as a sink).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.figure import Figure
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.core.texts import text as open_text
from kobza.interventions.base import prompt_ids, record, shown_tokens
from kobza.interventions.planner import Run
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.passes import BITS
from kobza.models.sites import Site

UNITS = {"entropy": "bit", "distance": "token", "first": "share", "previous": "share", "itself": "share"}


def run(
    model: Model,
    *,
    prompt: str = "",
    text: str = "topics",
    limit: int = 2000,
    heads: str = "",
    tiles: int = 64,
) -> Result:
    """Describe where every head looks in a text, and draw some.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run; none: the beginning of `text`.
        text: a named text or a file.
        limit: bytes of that text [bytes, 1 ..].
        heads: heads to draw, `18.6` or `L18H6`; several joined by semicolons; none: the one that looks farthest back
            and the most local one, of those that pay less than half to the first position.
        tiles: tiles along each side of a picture; as many as there are tokens if there are fewer [count, 1 ..].

    Returns:
        A Result: a table with a row per head (means over queries but the first: entropy of the attention, distance
        looked back, and shares paid to the first position, to the previous token, to the token itself), pictures of the
        heads drawn, and readings `first` and `distance` (means over heads).

    Raises:
        BadValue: no head. OutOfRange: a head the model has not, or a text longer than the trained context.
        EmptyText: nothing to run.

    Cost: one forward pass and one block per layer; memory of one layer's attention, H T^2 numbers.
    """
    given = locals()
    ids = prompt_ids(model, prompt or open_text(text, limit=limit).string)
    if len(ids) < 2 or tiles < 1:
        raise OutOfRange(f"{len(ids)} tokens, tiles={tiles}: at least 2 and 1.")
    clean = Run(model, ids)
    rows, wanted = [], [_head(model, one) for one in heads.split(";") if one]
    drawn: dict[tuple[int, int], Tensor] = {}
    with task("layers", model.layers) as shown:
        for layer in range(model.layers):
            pattern = _pattern(clean, layer)
            rows += _described(layer, pattern)
            drawn |= {
                (layer, h): tiled(pattern[h], tiles) for h in range(len(pattern)) if not wanted or (layer, h) in wanted
            }
            shown.step()
    chosen = wanted or _telling(rows)
    missing = [one for one in chosen if one not in drawn]
    if missing:
        raise OutOfRange(f"no head L{missing[0][0]}H{missing[0][1]}: {model.name!r} has {model.layers} layers.")
    source = repr(prompt) if prompt else f"{text}[:{limit}]"
    caption = f"{len(ids)} tokens of {source}, {model.name}."
    figures = [_picture(model, ids, one, drawn[one], caption) for one in chosen]
    table = Table(rows, units=UNITS, title="Where heads look", note=caption, figures=figures)
    made = record(model, "attention", given, prompt=ids)
    first, distance = (sum(row[key] for row in rows) / len(rows) for key in ("first", "distance"))
    readings = [
        Reading("first", first, "share", record=made, note="of all attention goes to the first position"),
        Reading("distance", distance, "token", record=made, note="mean distance looked back"),
    ]
    return Result(f"Attention of {model.name}", readings, [table], made_by=made)


@torch.inference_mode()
def _pattern(clean: Run, layer: int) -> Tensor:
    """The attention (H, T, T) of one layer, from its clean stream; nothing of it is kept in the run."""
    seen: list[Tensor] = []
    with hooked(clean.model, [Hook(Site("pattern", layer), lambda value: seen.append(value[0].float()))]):
        clean._block(layer, clean.streams[layer], 0)
    return seen[0].transpose(0, 1).contiguous()


def _head(model: Model, text: str) -> tuple[int, int]:
    pieces = text.strip().lstrip("L").replace("H", ".").split(".")
    if len(pieces) != 2 or not all(piece.isdigit() for piece in pieces):
        raise BadValue(f"{text!r} is no head.", "Write 18.6 or L18H6.")
    layer, head = map(int, pieces)
    if layer >= model.layers or head >= int(model.config.num_attention_heads):
        raise OutOfRange(f"no head {text!r}: {model.layers} layers of {model.config.num_attention_heads} heads.")
    return layer, head


def _described(layer: int, pattern: Tensor) -> list[dict[str, Any]]:
    """A row per head for its pattern (H, T, T)."""
    T = pattern.shape[1]
    back = (torch.arange(T)[:, None] - torch.arange(T)).to(pattern).clamp_min(0)
    queries = pattern[:, 1:]
    values = {
        "entropy": torch.special.entr(queries).sum(-1).mean(1) * BITS,
        "distance": (queries * back[1:]).sum(-1).mean(1),
        "first": queries[:, :, 0].mean(1),
        "previous": pattern.diagonal(-1, 1, 2).mean(1),
        "itself": pattern.diagonal(0, 1, 2)[:, 1:].mean(1),
    }
    rows: list[dict[str, Any]] = [{"head": f"L{layer}H{h}", "layer": layer, "index": h} for h in range(len(pattern))]
    return [row | {key: float(value[row["index"]]) for key, value in values.items()} for row in rows]


def tiled(pattern: Tensor, tiles: int) -> Tensor:
    """Return the largest value in each tile of a pattern (T, T), as (n, n) with n = min(tiles, T).

    >>> tiled(torch.eye(4), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    n = min(tiles, len(pattern))
    return torch.nn.functional.adaptive_max_pool2d(pattern[None, None], n)[0, 0]


def _telling(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """The head that looks farthest back and the most local one, of those that do not mostly look at the first."""
    free = sorted([row for row in rows if float(row["first"]) < 0.5] or rows, key=lambda row: float(row["distance"]))
    return list(dict.fromkeys((int(row["layer"]), int(row["index"])) for row in (free[-1], free[0])))


def _picture(model: Model, ids: Sequence[int], head: tuple[int, int], values: Tensor, caption: str) -> Figure:
    shown = shown_tokens(model, ids)
    step = len(ids) / len(values)
    names = [f"{int(i * step)} {shown[int(i * step)]}" for i in range(len(values))]
    data = {"values": values.tolist(), "rows": names, "columns": names, "diverging": False}
    words = f"Largest attention within each tile, queries down, keys across. {caption}"
    return Figure("image", data, title=f"L{head[0]}H{head[1]}", caption=words, x="key", y="query")
