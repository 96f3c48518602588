"""Ablation: switch off neurons, heads, layers or sets of them, and read what the model then says.

With controls: the places that mattered most are switched off together, and so are equally many drawn at random from
the rest; if the random ones do as much, the places found are nothing special.

Sources: Morcos et al. (2018), arXiv:1803.06959 (single units); Michel et al. (2019), arXiv:1905.10650 (heads);
Wang et al. (2022), arXiv:2211.00593 (mean and resample instead of zero); Meng et al. (2022), arXiv:2202.05262 (noise).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.result import Reading, Result
from kobza.interventions.base import (
    Cell,
    command,
    generator,
    metrics,
    prompt_ids,
    record,
    sets,
    several,
    shown_tokens,
)
from kobza.interventions.grid import Grid, mean
from kobza.interventions.planner import Run
from kobza.interventions.replacing import Replacement
from kobza.models.model import Model


def run(
    model: Model,
    *,
    prompt: str,
    over: str = "z.*.*",
    kind: Literal["zero", "mean", "value", "resample", "noise"] = "zero",
    value: float = 0.0,
    strength: float = 1.0,
    text: str = "topics",
    metric: str = "prob",
    top: int = 10,
    controls: int = 3,
    crosses: bool = True,
    how: Literal["planned", "naive"] = "planned",
    batch: int = 256,
    memory: int = 1024,
    seed: int = 0,
) -> Result:
    """Replace the value at every named place, one place (or set of places) at a time, and read the metric.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run; over several, joined by `||`, changes are averaged, with an interval.
        over: places, `neuron.29.*`, `z.*.*@-1`, `mlp_out.*`; `block.*` for whole layers; places joined by `+` are
            changed together, `z.17.*+z.18.*` every pair; several joined by semicolons.
        kind: what is put there: zero; the mean over `text`; `value`; with resample, what stands at a random position
            of `text`; with noise, normal noise is added.
        value: the number put there by kind=value [number].
        strength: of the noise, in standard deviations of the place over `text` [factor, 0 ..].
        text: a named text or a file; its first 256 tokens give mean, deviation and samples.
        metric: prob, logprob, logit, diff, top1, loss; a token may follow a colon; several joined by commas.
        top: the largest effects that are also switched off together; at most half of all [count, 1 ..].
        controls: random sets of as many places, switched off together; 0 leaves the result uncontrolled [count, 0 ..].
        crosses: also find where another token comes on top; without it logit and diff are several times faster.
        how: planned, or naive: one whole forward pass per place.
        batch: cells run together at most [count, 1 ..].
        memory: what the cells run together may take [MiB, 1 ..].
        seed: of the random sets, samples and noise [integer, 0 ..].

    Returns:
        A Result: a table (largest change first) with its picture, and readings `clean`, `together`, `control`. Over
        several prompts the table gives means, a 95 % interval (bootstrap over prompts) and the share of prompts
        whose top token changed.

    Raises:
        BadValue, UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: per cell, the layers above it, from its first position on.
    """
    given = locals()
    if top < 1 or controls < 0:
        raise BadValue(f"top={top}, controls={controls}: at least 1 and 0.")
    replacement = Replacement(model, kind, value, strength, text, seed)
    limits = {"how": how, "batch": batch, "memory": memory}
    caption = command(model, "ablate", given)
    ids = [prompt_ids(model, one) for one in several(prompt)]
    parts = [_part(model, one, over, replacement, metric, caption, limits, crosses) for one in ids]
    grid = mean([part.grid for part in parts], caption)
    made = record(model, "ablate", given, prompt=ids[0]) | {"command": caption}
    readings = _readings(parts, grid, top, controls, seed, limits, made)
    label = "" if readings[-1].name == "control" else " (uncontrolled)"
    title = f"Change of {grid.metrics[0].text}{label}"
    return Result(f"Ablation of {over}{label}", readings, [grid.table(title)], made_by=made)


@dataclass(frozen=True)
class _Part:
    """One prompt: its clean run, its cells and what they did."""

    clean: Run
    cells: list[Cell]
    grid: Grid

    def joint(self, chosen: Sequence[Sequence[int]], limits: Mapping[str, Any]) -> Tensor:
        """Change of the first metric (sets,) when the cells of a set are all made at once."""
        cells = [tuple(edit for i in one for edit in self.cells[i]) for one in chosen]
        found = self.clean.outcome(cells, self.grid.metrics[:1], **limits)
        return found.values[:, 0] - self.grid.base.values[0, 0]


def _part(
    model: Model,
    ids: list[int],
    over: str,
    replacement: Replacement,
    metric: str,
    caption: str,
    limits: Mapping[str, Any],
    crosses: bool,
) -> _Part:
    clean = Run(model, ids)
    chosen = sets(model, ids, over)
    wanted = metrics(model, metric, clean.top)
    cells = [tuple(replacement.edit(member) for member in place.members) for place in chosen]
    found = clean.outcome(cells, wanted, crosses=crosses, **limits)
    grid = Grid(model, chosen, wanted, found, clean.clean(wanted), shown_tokens(model, ids), caption)
    return _Part(clean, cells, grid)


def _readings(
    parts: Sequence[_Part],
    grid: Grid,
    top: int,
    controls: int,
    seed: int,
    limits: Mapping[str, Any],
    made: dict[str, object],
) -> list[Reading]:
    unit, base, count = grid.metrics[0].unit, float(grid.base.values[0, 0]), len(grid.places)
    best = grid.largest(max(1, min(top, count // 2)))  # half is left for the controls
    rest = [i for i in range(count) if i not in set(best)]
    draw = generator(seed)
    chosen = [best] + [_drawn(rest, len(best), draw) for _ in range(controls) if len(rest) >= len(best)]
    values = torch.stack([part.joint(chosen, limits) for part in parts]).mean(0).tolist()
    names = " ".join(grid.places[i].short for i in best)
    about = (
        f"mean of {len(parts)} prompts" if grid.each else f"top token {grid.model.tokenizer.show(parts[0].clean.top)!r}"
    )
    found = [
        Reading("clean", base, unit, record=made, note=about),
        Reading("together", values[0], unit, record=made, note=f"change; {names} at once"),
    ]
    if len(values) > 1:
        note = f"mean change; {len(values) - 1} random sets of {len(best)} of the other places, seed {seed}"
        spread = "smallest and largest of the sets"
        average = sum(values[1:]) / (len(values) - 1)
        low, high = min(values[1:]), max(values[1:])
        found.append(Reading("control", average, unit, low, high, spread, made, note))
    return found


def _drawn(rest: Sequence[int], count: int, draw: torch.Generator) -> list[int]:
    return [rest[i] for i in torch.randperm(len(rest), generator=draw)[:count].tolist()]
