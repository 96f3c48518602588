"""Activation patching: put what happened in one run into another, place by place.

Two prompts that differ in a word are run; at every place the value of one run is put into the other, and the metric
says how far the answer follows. With controls: the same is done with a random vector as far from the run's own value
as the patched one is; a place where that does as much is only sensitive.

Sources: Vig et al. (2020), arXiv:2004.12265; Meng et al. (2022), arXiv:2202.05262; Heimersheim & Nanda (2024),
arXiv:2404.15255 (denoising shows sufficiency, noising necessity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from kobza.core.result import Reading, Result
from kobza.interventions.base import (
    Cell,
    Edit,
    Metric,
    Place,
    aligned_ids,
    generator,
    metrics,
    places,
    record,
    shown_tokens,
)
from kobza.interventions.grid import Grid
from kobza.interventions.planner import Outcome, Run
from kobza.models.model import Model


def run(
    model: Model,
    *,
    clean: str,
    corrupt: str,
    over: str = "resid_pre.*@*",
    metric: str = "logit",
    direction: Literal["denoise", "noise"] = "denoise",
    controls: int = 1,
    how: Literal["planned", "naive"] = "planned",
    batch: int = 256,
    seed: int = 0,
) -> Result:
    """Patch every named place of one run with its value in the other.

    Args:
        model: the model; it is not changed.
        clean: the prompt with the answer asked about.
        corrupt: the same prompt with a word changed; it must have as many tokens.
        over: places, `resid_pre.*@*`, `z.*.*`, `mlp_out.*@' am'` (a token of the clean prompt); several joined by
            semicolons.
        metric: prob, logit, diff, top1, loss; a token may follow a colon (else the clean run's likeliest); several
            joined by commas.
        direction: denoise puts the clean value into the corrupt run, noise the corrupt one into the clean run.
        controls: random vectors tried per place; 0 leaves the result uncontrolled [count, 0 ..].
        how: planned, or naive: one whole forward pass per place.
        batch: cells run together at most [count, 1 ..].
        seed: of the random vectors [integer, 0 ..].

    Returns:
        A Result: a table (largest change first) with its picture, and readings `clean`, `corrupt`, `largest` and
        `control` (largest change by a random vector). Places before the first difference change exactly nothing.

    Raises:
        BadValue: the prompts have unequal numbers of tokens, or are the same.
        UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: per cell, the layers above it from the first difference on; as much again per control.
    """
    given = locals()
    ids, other_ids = aligned_ids(model, clean, corrupt)
    runs = {"clean": Run(model, ids), "corrupt": Run(model, other_ids)}
    source, target = (runs["clean"], runs["corrupt"]) if direction == "denoise" else (runs["corrupt"], runs["clean"])
    chosen = places(model, ids, over)
    wanted = metrics(model, metric, runs["clean"].top)
    cells = [_cell(source, place) for place in chosen]
    found = target.outcome(cells, wanted, how=how, batch=batch)
    caption = f"{direction} {over}: clean {clean!r}, corrupt {corrupt!r}, metric {metric}, {model.name}."
    grid = Grid(model, chosen, wanted, found, target.clean(wanted), shown_tokens(model, ids), caption)
    made = record(model, "patch", given, clean=ids, corrupt=other_ids)
    readings = [_ends(name, run, wanted[0], made) for name, run in runs.items()] + [_largest(grid, made)]
    draw = generator(seed)
    randoms = [[_random(target, cell, draw) for cell in cells] for _ in range(controls)]
    placebo = [target.outcome(one, wanted[:1], how=how, batch=batch) for one in randoms]
    if placebo:
        readings.append(_control(grid, placebo, made))
    label = "" if placebo else " (uncontrolled)"
    return Result(f"Patching of {over}{label}", readings, [grid.table(f"Change by patching{label}")], made_by=made)


def _cell(source: Run, place: Place) -> Cell:
    empty = Edit(place.site, place.positions, torch.tensor(0.0))
    return (Edit(place.site, place.positions, source.part(empty)),)


def _random(target: Run, cell: Cell, draw: torch.Generator) -> Cell:
    """The same cell with the difference turned into a random direction, position by position, of equal norm."""
    (edit,) = cell
    own = target.part(edit)
    difference = edit.value - own
    flat = difference.reshape(len(own), -1)
    noise = torch.randn(flat.shape, generator=draw).to(flat)
    norm = noise.norm(dim=1, keepdim=True).clamp_min(1e-12)
    scaled = (noise / norm * flat.norm(dim=1, keepdim=True)).reshape(own.shape)
    return (Edit(edit.site, edit.positions, own + scaled),)


def _ends(name: str, run: Run, metric: Metric, made: dict[str, object]) -> Reading:
    value = float(run.clean([metric]).values[0, 0])
    return Reading(name, value, metric.unit, record=made, note=f"top token {run.model.tokenizer.show(run.top)!r}")


def _largest(grid: Grid, made: dict[str, object]) -> Reading:
    at = grid.largest(1)[0]
    value = float(grid.changes[at, 0])
    return Reading("largest", value, grid.metrics[0].unit, record=made, note=f"change at {grid.places[at].short}")


def _control(grid: Grid, placebo: Sequence[Outcome], made: dict[str, object]) -> Reading:
    """The largest change a random vector makes, and how many places do no more than their own random vector."""
    changes = torch.stack([one.values[:, 0] for one in placebo]) - grid.base.values[0, 0]
    at = int(changes.abs().max(0).values.argmax())
    worst = changes[int(changes[:, at].abs().argmax()), at]
    live = grid.changes[:, 0] != 0
    beaten = int((changes.abs().max(0).values >= grid.changes[:, 0].abs())[live].sum())
    note = f"largest change by a random vector of equal norm, at {grid.places[at].short}; "
    note += f"{beaten} of {int(live.sum())} places do no more than theirs"
    return Reading("control", float(worst), grid.metrics[0].unit, record=made, note=note)
