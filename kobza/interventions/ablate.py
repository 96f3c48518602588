"""Ablation: switch off neurons, heads or layers, one at a time, and read what the model then says.

With controls: the places that mattered most are switched off together, and so are equally many drawn at random from
the rest; if the random ones do as much, the places found are nothing special.

Sources: Morcos et al. (2018), arXiv:1803.06959 (single units); Michel et al. (2019), arXiv:1905.10650 (heads);
Wang et al. (2022), arXiv:2211.00593 (mean and resample instead of zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.result import Reading, Result
from kobza.core.texts import text as open_text
from kobza.interventions.base import Cell, Edit, Place, generator, metrics, places, prompt_ids, record, shown_tokens
from kobza.interventions.grid import Grid
from kobza.interventions.planner import How, Run
from kobza.models.model import Model

Kind = Literal["zero", "mean", "value", "resample"]
MEAN_TOKENS = 256  # of the named text, over which the mean is taken


def run(
    model: Model,
    *,
    prompt: str,
    over: str = "z.*.*",
    kind: Literal["zero", "mean", "value", "resample"] = "zero",
    value: float = 0.0,
    text: str = "topics",
    metric: str = "prob",
    top: int = 10,
    controls: int = 3,
    how: Literal["planned", "naive"] = "planned",
    batch: int = 256,
    seed: int = 0,
) -> Result:
    """Replace the value at every named place, one place at a time, and read the metric.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run.
        over: places, `neuron.29.*`, `z.*.*@-1`, `mlp_out.*`; several joined by semicolons.
        kind: what is put there: zero; the mean over `text`; `value`; or, with resample, what stands at a random
            position of `text`.
        value: the number put there by kind=value [number].
        text: a named text or a file; its first 256 tokens give mean and samples.
        metric: prob, logit, diff, top1, loss; a token may follow a colon; several joined by commas.
        top: the largest effects that are also switched off together; at most half of all [count, 1 ..].
        controls: random sets of as many places, switched off together; 0 leaves the result uncontrolled [count, 0 ..].
        how: planned, or naive: one whole forward pass per place.
        batch: cells run together at most [count, 1 ..].
        seed: of the random sets and samples [integer, 0 ..].

    Returns:
        A Result: a table (largest change first) with its picture, and readings `clean`, `together`, `control`.

    Raises:
        BadValue, UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: per cell, the layers above it, from its first position on.
    """
    given = locals()
    ids = prompt_ids(model, prompt)
    clean = Run(model, ids)
    chosen = places(model, ids, over)
    wanted = metrics(model, metric, clean.top)
    cells = _cells(model, clean, chosen, kind, value, text, seed)
    found = clean.outcome(cells, wanted, how=how, batch=batch)
    caption = f"ablate {over} by {kind}, prompt {prompt!r}, positions as written, metric {metric}, {model.name}."
    grid = Grid(model, chosen, wanted, found, clean.clean(wanted), shown_tokens(model, ids), caption)
    made = record(model, "ablate", given, prompt=ids)
    readings = _readings(clean, cells, grid, top, controls, seed, how, made)
    label = "" if readings[-1].name == "control" else " (uncontrolled)"
    return Result(
        f"Ablation of {over}{label}", readings, [grid.table(f"Change of {wanted[0].text}{label}")], made_by=made
    )


def _cells(
    model: Model, clean: Run, chosen: Sequence[Place], kind: Kind, value: float, text: str, seed: int
) -> list[Cell]:
    if kind in ("zero", "value"):
        number = torch.tensor(value if kind == "value" else 0.0)
        return [(Edit(place.site, place.positions, number),) for place in chosen]
    sample = model.tokenizer.encode(open_text(text).data[: 8 * MEAN_TOKENS], start=True)[:MEAN_TOKENS]
    other = Run(model, sample[: model.context or None])
    draw = generator(seed)
    return [(Edit(place.site, place.positions, _from(other, place, kind, draw)),) for place in chosen]


def _from(other: Run, place: Place, kind: Kind, draw: torch.Generator) -> Tensor:
    """The mean over the other text's positions, or its values at random ones."""
    found = other.value(place.site.name, place.site.layer)
    found = found if place.site.index is None else found[:, place.site.index]
    if kind == "mean":
        # the first position is left out: its activations are unlike all others (attention sinks)
        return found[1:].double().mean(0).to(found) if len(found) > 1 else found[0]
    return found[torch.randint(len(found), (len(place.positions),), generator=draw)]


def _readings(
    clean: Run, cells: Sequence[Cell], grid: Grid, top: int, controls: int, seed: int, how: How, made: dict[str, object]
) -> list[Reading]:
    first = grid.metrics[0]
    unit, base = first.unit, float(grid.base.values[0, 0])
    if top < 1 or controls < 0:
        raise BadValue(f"top={top}, controls={controls}: at least 1 and 0.")
    best = grid.largest(max(1, min(top, len(cells) // 2)))  # half is left for the controls
    rest = [i for i in range(len(cells)) if i not in set(best)]
    draw = generator(seed)
    sets = [best] + [_drawn(rest, len(best), draw) for _ in range(controls) if len(rest) >= len(best)]
    joint = [tuple(edit for i in one for edit in cells[i]) for one in sets]
    values = (clean.outcome(joint, [first], how=how).values[:, 0] - base).tolist()
    names = " ".join(grid.places[i].short for i in best)
    found = [
        Reading("clean", base, unit, record=made, note=f"top token {grid.model.tokenizer.show(clean.top)!r}"),
        Reading("together", values[0], unit, record=made, note=f"change; {names} at once"),
    ]
    if len(values) > 1:
        note = f"mean change; {len(values) - 1} random sets of {len(best)} of the other places, seed {seed}"
        spread = "smallest and largest of the sets"
        mean = sum(values[1:]) / (len(values) - 1)
        low, high = min(values[1:]), max(values[1:])
        found.append(Reading("control", mean, unit, low, high, spread, made, note))
    return found


def _drawn(rest: Sequence[int], count: int, draw: torch.Generator) -> list[int]:
    return [rest[i] for i in torch.randperm(len(rest), generator=draw)[:count].tolist()]
