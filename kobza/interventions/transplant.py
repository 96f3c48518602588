"""Transplant: put what a question leaves at each place into neutral texts, and see which answer it brings along.

A change alone says little: any question may do it. So the same is done with control questions whose answer is known
or absurd, and with several neutral texts; the result says how much of the profile the controls share, and is labelled
"not specific" where they share most of it.

Sources: Ghandeharioun et al. (2024), arXiv:2401.06102 (activations moved into other prompts); Makelov et al. (2023),
arXiv:2311.17030 (why a change of the answer does not show that its cause was found).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import (
    Edit,
    command,
    metrics,
    prompt_ids,
    record,
    sets,
    several,
    shifted,
    shown_tokens,
)
from kobza.interventions.grid import Grid, mean
from kobza.interventions.planner import Outcome, Run
from kobza.models.model import Model

SHARED = 0.7  # correlation with the controls above which half of the variance (0.7 squared) is theirs


def run(
    model: Model,
    *,
    prompt: str,
    into: str = "The weather today is||She opened the door and||On the table there was",
    controls: str = "",
    over: str = "mlp_out.*@-1",
    metric: str = "logprob",
    how: Literal["planned", "naive"] = "planned",
    batch: int = 256,
    memory: int = 1024,
) -> Result:
    """Put the value of every named place of one prompt into neutral texts, and read the metric there.

    Args:
        model: the model; it is not changed.
        prompt: the question whose values are moved.
        into: neutral texts that receive them, joined by `||`.
        controls: questions that should not lean the same way, joined by `||`; without any the result is labelled
            uncontrolled.
        over: places, positions counted from the end: `mlp_out.*@-1`, `z.*.*@-1`; several joined by semicolons.
        metric: diff, logprob, prob, logit, top1; tokens follow a colon, `diff: yes| no`, `logprob: yes| Yes` (else the
            neutral text's likeliest); several joined by commas.
        how: planned, or naive: one whole forward pass per place.
        batch: cells run together at most [count, 1 ..].
        memory: what the cells run together may take [MiB, 1 ..].

    Returns:
        A Result: a table with, per place, the mean change over the neutral texts with its interval, the mean change
        by the controls, and what is left when that is taken away (`specific`; largest first); a picture of it; and
        readings per metric: `neutral` (its value before), `shared` (correlation of the profile with those of the
        controls), `repeated` (correlation between neutral texts).

    Raises:
        BadValue, UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: places x neutral texts x (1 + controls) cells of `patch`.
    """
    given = locals()
    caption = command(model, "transplant", given)
    targets = [Run(model, prompt_ids(model, one)) for one in several(into)]
    sources = [Run(model, prompt_ids(model, one)) for one in [prompt, *(several(controls) if controls else [])]]
    limits = {"how": how, "batch": batch, "memory": memory, "crosses": False}
    grids = [[_grid(source, target, over, metric, caption, limits) for target in targets] for source in sources]
    own, *others = (mean(one, caption) for one in grids)
    made = record(model, "transplant", given, prompt=sources[0].ids) | {"command": caption}
    readings = [reading for at in range(len(own.metrics)) for reading in _readings(own, others, grids[0], at, made)]
    shared = next((r.value for r in readings if r.name == "shared"), None)
    label = " (uncontrolled)" if shared is None else " (not specific)" if shared >= SHARED else ""
    table = _table(own, others, f"Brought along, less what the controls bring{label}")
    return Result(f"Transplant of {over}{label}", readings, [table], made_by=made)


def _grid(source: Run, target: Run, over: str, metric: str, caption: str, limits: dict[str, Any]) -> Grid:
    model = target.model
    chosen = sets(model, target.ids, over)
    cells = [
        tuple(
            Edit(here.site, here.positions, source.part(Edit(there.site, there.positions, torch.tensor(0.0))))
            for here, there in zip(place.members, shifted(place, source.length - target.length).members, strict=True)
        )
        for place in chosen
    ]
    wanted = metrics(model, metric, target.top)
    found = target.outcome(cells, wanted, **limits)
    return Grid(model, chosen, wanted, found, target.clean(wanted), shown_tokens(model, target.ids), caption)


def _readings(own: Grid, others: Sequence[Grid], each: Sequence[Grid], at: int, made: dict[str, Any]) -> list[Reading]:
    metric = own.metrics[at]
    found = [Reading("neutral", float(own.base.values[0, at]), metric.unit, record=made,
                     note=f"{metric.text}, mean of {len(each)} neutral texts, before")]  # fmt: skip
    profile = own.changes[:, at]
    if others:
        values = [correlation(profile, other.changes[:, at]) for other in others]
        verdict = "the controls share it" if _mean(values) >= SHARED else "more than half of its variance is its own"
        note = f"{metric.text}: correlation of the profile with {len(others)} controls; {verdict}"
        found.append(_range("shared", values, note, made))
    if len(each) > 1:
        pairs = [(a, b) for i, a in enumerate(each) for b in each[:i]]
        values = [correlation(a.changes[:, at], b.changes[:, at]) for a, b in pairs]
        found.append(_range("repeated", values, f"{metric.text}: correlation between neutral texts", made))
    return found


def _range(name: str, values: Sequence[float], note: str, made: dict[str, Any]) -> Reading:
    return Reading(name, _mean(values), "", min(values), max(values), "smallest and largest", made, note)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two profiles (C,); 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))


def _table(own: Grid, others: Sequence[Grid], title: str) -> Table:
    """The grid's own table with the controls beside it, and a picture of what is left without them."""
    metric = own.metrics[0]
    zero = torch.zeros_like(own.changes)
    control = torch.stack([one.changes for one in others]).mean(0) if others else zero
    left = replace(own, found=Outcome(own.found.values - control, own.found.tops), each=())
    table = own.table(title)
    numbers = {place.address: i for i, place in enumerate(own.places)}
    at = [numbers[row["place"]] for row in table.rows]
    table = table.with_column("controls", control[at, 0].tolist(), metric.unit)
    table = table.with_column("specific", left.changes[at, 0].tolist(), metric.unit)
    order = sorted(table.rows, key=lambda row: -abs(row["specific"]))
    return Table(order, units=table.units, title=title, note=table.note, figures=[left.figure(title)])
