"""Attribution patching: the whole grid of a patching experiment from one gradient, with its error stated.

To first order, putting the clean value into the corrupt run changes the metric by (clean - corrupt) . gradient. The
preview is compared with the exact grid wherever that is asked for: it understates early layers. Integrated gradients
average the gradient over runs whose embedding lies between the two: at the embedding they sum to the whole difference.

Source: Nanda (2023), "Attribution patching"; Syed et al. (2023), arXiv:2310.10348; Kramár et al. (2024),
arXiv:2403.00745 (where it fails); Sundararajan et al. (2017), arXiv:1703.01365, and Hanna et al. (2024),
arXiv:2403.17806 (integrated gradients, at every site from interpolated embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.result import Reading, Result
from kobza.interventions.base import (
    Edit,
    Metric,
    Place,
    aligned_ids,
    metrics,
    places,
    record,
    shown_tokens,
)
from kobza.interventions.grid import Grid
from kobza.interventions.planner import Outcome, Run
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import Site


def run(
    model: Model,
    *,
    clean: str,
    corrupt: str,
    over: str = "resid_pre.*@*",
    metric: str = "logit",
    how: Literal["gradient", "integrated"] = "gradient",
    steps: int = 8,
    exact: bool = True,
    batch: int = 256,
) -> Result:
    """Estimate what patching each place would do from one backward pass of the corrupt run.

    Args:
        model: the model; it is not changed.
        clean: the prompt with the answer asked about.
        corrupt: the same prompt with a word changed; it must have as many tokens.
        over: places, `resid_pre.*@*`, `z.*.*`; several joined by semicolons.
        metric: prob, logit or diff; a token may follow a colon (else the clean run's likeliest).
        how: gradient of the corrupt run, or integrated over runs between the corrupt and the clean one.
        steps: runs that integrated averages over [count, 1 ..].
        exact: also patch exactly, and state the correlation; without it the result is labelled uncontrolled.
        batch: cells of the exact grid run together at most [count, 1 ..].

    Returns:
        A Result: a table of estimates (largest first) with its picture, and readings `correlation` (Pearson, of
        estimate and exact change over places that are not exactly 0) and `slope` (estimate over exact, least squares).

    Raises:
        BadValue: prompts of unequal length, or a metric without a gradient.
        UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: three forward passes and a backward one (a forward and a backward one per step if integrated); the exact
        grid costs what `patch` costs.
    """
    given = locals()
    ids, other_ids = aligned_ids(model, clean, corrupt)
    source, target = Run(model, ids), Run(model, other_ids)
    chosen = places(model, ids, over)
    wanted = metrics(model, metric, source.top)[:1]
    if wanted[0].name in ("top1", "loss"):
        raise BadValue(f"metric {wanted[0].name!r} has no gradient here.", "Take prob, logit or diff.")
    if steps < 1:
        raise OutOfRange(f"steps={steps}: at least 1.")
    shares = [0.0] if how == "gradient" else [(i + 0.5) / steps for i in range(steps)]
    gradients = _gradients(source, target, {(p.site.name, p.site.layer) for p in chosen}, wanted[0], shares)
    base = target.clean(wanted)
    estimates = torch.tensor([[_estimate(source, target, place, gradients)] for place in chosen], dtype=torch.float64)
    found = Outcome(base.values + estimates, base.tops.repeat(len(chosen)))
    caption = f"estimate by {how} of patching {over}: clean {clean!r}, corrupt {corrupt!r}, {metric}, {model.name}."
    grid = Grid(model, chosen, wanted, found, base, shown_tokens(model, ids), caption)
    made = record(model, "attribute", given, clean=ids, corrupt=other_ids)
    readings = _compared(source, target, grid, batch, made) if exact else []
    label = "" if exact else " (uncontrolled)"
    return Result(f"Attribution over {over}{label}", readings, [grid.table(f"Estimated change{label}")], made_by=made)


Sites = dict[tuple[str, int | None], Tensor]


def _gradients(
    source: Run, run: Run, sites: set[tuple[str, int | None]], metric: Metric, shares: Sequence[float]
) -> Sites:
    """Mean gradient (T, ...) of the metric at each site, over runs whose embedding is partly the source's."""
    found = [_gradient(source, run, sites, metric, share) for share in shares]
    return {site: torch.stack([one[site] for one in found]).mean(0) for site in sites}


def _gradient(source: Run, run: Run, sites: set[tuple[str, int | None]], metric: Metric, share: float) -> Sites:
    kept: Sites = {}

    def begin(value: Tensor) -> Tensor:
        between = value + share * (source.streams[0] - value) if share else value
        return between.detach().clone().requires_grad_()

    hooks = [Hook("embed", begin)]
    hooks += [Hook(Site(*site), _keeper(kept, site)) for site in sorted(sites, key=str)]
    # weights stay as they are: the graph begins at the embedding, a tensor of this run alone
    with torch.enable_grad(), hooked(run.model, hooks):
        ids = torch.tensor([run.ids], device=run.model.device)
        logits = run.model.module(input_ids=ids, use_cache=False).logits[:, -1].float()
        gradients = torch.autograd.grad(metric.read(logits)[0], list(kept.values()))
    return {site: gradient[0].detach() for site, gradient in zip(kept, gradients, strict=True)}


def _keeper(kept: dict[tuple[str, int | None], Tensor], site: tuple[str, int | None]) -> Callable[[Tensor], Tensor]:
    def keep(value: Tensor) -> Tensor:
        kept[site] = value * 1  # a node of its own, on the way from here to the metric
        return kept[site]

    return keep


def _estimate(source: Run, target: Run, place: Place, gradients: dict[tuple[str, int | None], Tensor]) -> float:
    edit = Edit(place.site, place.positions, torch.tensor(0.0))
    gradient = gradients[place.site.name, place.site.layer][list(place.positions)]
    gradient = gradient if place.site.index is None else gradient[:, place.site.index]
    return float(((source.part(edit) - target.part(edit)).double() * gradient.double()).sum())


def _compared(source: Run, target: Run, grid: Grid, batch: int, made: dict[str, object]) -> list[Reading]:
    empty = [Edit(p.site, p.positions, torch.tensor(0.0)) for p in grid.places]
    cells = [(Edit(e.site, e.positions, source.part(e)),) for e in empty]
    exact = target.outcome(cells, grid.metrics, batch=batch).values[:, 0] - grid.base.values[0, 0]
    estimate = grid.changes[:, 0]
    live = (exact != 0) | (estimate != 0)
    x, y = exact[live], estimate[live]
    note = f"of estimate and exact change over {int(live.sum())} of {len(cells)} places; the others are exactly 0"
    slope = float((x @ y) / (x @ x).clamp_min(1e-30))
    return [
        Reading("correlation", _correlation(x, y), "", record=made, note=note),
        Reading("slope", slope, "", record=made, note="estimate over exact, least squares through 0"),
    ]


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x.norm() * y.norm()).clamp_min(1e-30))
