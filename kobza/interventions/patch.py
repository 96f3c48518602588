"""Activation patching: put what happened in one run into another, place by place.

Two prompts that differ in a word are run; at every place the value of one run is put into the other, and the metric
says how far the answer follows. With controls: the same is done with a random vector as far from the run's own value
as the patched one is; a place where that does as much is only sensitive.

Sources: Vig et al. (2020), arXiv:2004.12265; Meng et al. (2022), arXiv:2202.05262; Heimersheim & Nanda (2024),
arXiv:2404.15255 (denoising shows sufficiency, noising necessity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.result import Reading, Result
from kobza.interventions.base import (
    Cell,
    Edit,
    Place,
    aligned_ids,
    command,
    generator,
    metrics,
    record,
    sets,
    several,
    shifted,
    shown_tokens,
)
from kobza.interventions.grid import Grid, mean
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
    align: Literal["same", "end"] = "same",
    controls: int = 1,
    crosses: bool = True,
    how: Literal["planned", "naive"] = "planned",
    batch: int = 256,
    memory: int = 1024,
    seed: int = 0,
) -> Result:
    """Patch every named place (or set of places) of one run with its value in the other.

    Args:
        model: the model; it is not changed.
        clean: the prompt with the answer asked about; several are joined by `||`, and changes averaged.
        corrupt: the same prompt with a word changed, as many as there are of the clean one.
        over: places, `resid_pre.*@*`, `z.*.*`, `mlp_out.*@' am'` (a token of the clean prompt); `block.*` for whole
            layers; places joined by `+` are patched together, `z.17.*+z.18.*` every pair; several joined by
            semicolons.
        metric: prob, logprob, logit, diff, top1, loss; a token may follow a colon (else the clean run's likeliest);
            several joined by commas.
        direction: denoise puts the clean value into the corrupt run, noise the corrupt one into the clean run.
        align: same refuses prompts of unequal length; end lets positions correspond that are equally far from it.
        controls: random vectors tried per place; 0 leaves the result uncontrolled [count, 0 ..].
        crosses: also find where another token comes on top; without it logit and diff are several times faster.
        how: planned, or naive: one whole forward pass per place.
        batch: cells run together at most [count, 1 ..].
        memory: what the cells run together may take [MiB, 1 ..].
        seed: of the random vectors [integer, 0 ..].

    Returns:
        A Result: a table (largest change first) with its picture, and readings `clean`, `corrupt`, `largest` and
        `control` (largest change by a random vector). Places before the first difference change exactly nothing.
        Over several pairs the table gives means, a 95 % interval (bootstrap over pairs) and the share of pairs whose
        top token changed.

    Raises:
        BadValue: the prompts have unequal numbers of tokens, or are the same.
        UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: per cell, the layers above it, from the first difference on; as much again per control.
    """
    given = locals()
    pairs = _paired(clean, corrupt)
    limits = {"how": how, "batch": batch, "memory": memory}
    caption = command(model, "patch", given)
    parts = []
    for one, other in pairs:
        ids = dict(zip(("clean", "corrupt"), aligned_ids(model, one, other, align), strict=True))
        runs = {name: Run(model, found) for name, found in ids.items()}
        parts.append(_part(model, runs, over, metric, direction, caption, {**limits, "crosses": crosses}))
    grid = mean([part.grid for part in parts], caption)
    made = record(model, "patch", given, clean=parts[0].runs["clean"].ids, corrupt=parts[0].runs["corrupt"].ids)
    made |= {"command": caption}
    readings = [_end(name, parts, made) for name in ("clean", "corrupt")] + [_largest(grid, made)]
    draw = generator(seed)
    placebo = torch.stack([_placebo(part, controls, draw, limits) for part in parts]).mean(0)  # (controls, C)
    if controls:
        readings.append(_control(grid, placebo, made))
    label = "" if controls else " (uncontrolled)"
    return Result(f"Patching of {over}{label}", readings, [grid.table(f"Change by patching{label}")], made_by=made)


@dataclass(frozen=True)
class _Part:
    """One pair of prompts: its runs, the cells that change the target, what they did."""

    runs: dict[str, Run]
    target: Run
    cells: list[Cell]
    grid: Grid


def _paired(clean: str, corrupt: str) -> list[tuple[str, str]]:
    ones, others = several(clean), several(corrupt)
    if len(ones) != len(others):
        raise BadValue(f"{len(ones)} clean prompts and {len(others)} corrupt ones.", "Give as many of each.")
    return list(zip(ones, others, strict=True))


def _part(
    model: Model,
    runs: dict[str, Run],
    over: str,
    metric: str,
    direction: str,
    caption: str,
    limits: dict[str, Any],
) -> _Part:
    order = ("clean", "corrupt") if direction == "denoise" else ("corrupt", "clean")
    source, target = (runs[name] for name in order)
    chosen = _chosen(model, runs, source, target, over)
    wanted = metrics(model, metric, runs["clean"].top)
    cells = [_cell(source, place, source.length - target.length) for place in chosen]
    found = target.outcome(cells, wanted, **limits)
    grid = Grid(model, chosen, wanted, found, target.clean(wanted), shown_tokens(model, target.ids), caption)
    return _Part(runs, target, cells, grid)


def _chosen(model: Model, runs: dict[str, Run], source: Run, target: Run, over: str) -> list[Place]:
    """Places of the target that the source has as well; tokens are those of the clean prompt, if it is as long."""
    by = source.length - target.length
    if not by:
        return sets(model, runs["clean"].ids, over)
    found = sets(model, target.ids, over)
    if any(one.site.name in ("scores", "pattern") for place in found for one in place.members):
        raise BadValue("scores and patterns have as many columns as their run.", "Patch them between equal lengths.")
    return [place for place in found if place.written != "*" or min(place.positions) + by >= 0]


def _cell(source: Run, place: Place, by: int) -> Cell:
    """Edits that put in what the source has at the corresponding positions."""
    return tuple(
        Edit(here.site, here.positions, source.part(Edit(there.site, there.positions, torch.tensor(0.0))))
        for here, there in zip(place.members, shifted(place, by).members, strict=True)
    )


def _placebo(part: _Part, controls: int, draw: torch.Generator, limits: dict[str, Any]) -> Tensor:
    """Changes (controls, C) of the first metric by random vectors of equal norm."""
    base, first = part.grid.base.values[0, 0], part.grid.metrics[:1]
    found: list[Outcome] = []
    for _ in range(controls):
        cells = [tuple(_random(part.target, edit, draw) for edit in cell) for cell in part.cells]
        found.append(part.target.outcome(cells, first, crosses=False, **limits))
    changes = [one.values[:, 0] - base for one in found]
    return torch.stack(changes) if changes else torch.zeros(0, len(part.cells))


def _random(target: Run, edit: Edit, draw: torch.Generator) -> Edit:
    """The same edit with the difference turned into a random direction, position by position, of equal norm."""
    own = target.part(edit)
    difference = edit.value - own
    flat = difference.reshape(len(own), -1)
    noise = torch.randn(flat.shape, generator=draw).to(flat)
    norm = noise.norm(dim=1, keepdim=True).clamp_min(1e-12)
    scaled = (noise / norm * flat.norm(dim=1, keepdim=True)).reshape(own.shape)
    return Edit(edit.site, edit.positions, own + scaled)


def _end(name: str, parts: Sequence[_Part], made: dict[str, object]) -> Reading:
    metric = parts[0].grid.metrics[0]
    values = [float(part.runs[name].clean(part.grid.metrics[:1]).values[0, 0]) for part in parts]
    run = parts[0].runs[name]
    note = f"top token {run.model.tokenizer.show(run.top)!r}" if len(parts) == 1 else f"mean of {len(parts)} pairs"
    return Reading(name, sum(values) / len(values), metric.unit, record=made, note=note)


def _largest(grid: Grid, made: dict[str, object]) -> Reading:
    at = grid.largest(1)[0]
    value = float(grid.changes[at, 0])
    return Reading("largest", value, grid.metrics[0].unit, record=made, note=f"change at {grid.places[at].short}")


def _control(grid: Grid, changes: Tensor, made: dict[str, object]) -> Reading:
    """The largest change a random vector makes, and how many places do no more than their own random vector."""
    at = int(changes.abs().max(0).values.argmax())
    worst = changes[int(changes[:, at].abs().argmax()), at]
    live = grid.changes[:, 0] != 0
    beaten = int((changes.abs().max(0).values >= grid.changes[:, 0].abs())[live].sum())
    note = f"largest change by a random vector of equal norm, at {grid.places[at].short}; "
    note += f"{beaten} of {int(live.sum())} places do no more than theirs"
    return Reading("control", float(worst), grid.metrics[0].unit, record=made, note=note)
