"""A grid of cells: one number per place, as a table, as a picture with named axes, and its largest cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.interventions.base import Metric, Place, generator
from kobza.interventions.planner import UNKNOWN, Outcome
from kobza.models.model import Model

PER_ROW = 64  # coordinates of one layer in a row of the picture
DRAWS, LEVEL = 2000, 0.95  # of the bootstrap over prompts, as for every interval of this project
CELLS_AT_ONCE = 4096  # of a bootstrap: 2000 draws x 4096 cells are 66 MB


@dataclass(frozen=True)
class Grid:
    """What changing each place did.

    Attributes:
        model: whose tokens are shown.
        places: C places.
        metrics: what was read; the first is the one pictured.
        found: values (C, metrics) and top tokens (C,).
        base: the same of the run that the cells change, of one cell.
        tokens: the prompt's tokens as written, T.
        caption: how it was taken: enough to take it again.
        each: the grids of single prompts whose mean this one is.
    """

    model: Model
    places: Sequence[Place]
    metrics: Sequence[Metric]
    found: Outcome
    base: Outcome
    tokens: Sequence[str]
    caption: str
    each: tuple[Grid, ...] = ()

    @property
    def changes(self) -> Tensor:
        """(C, metrics) float64: values minus those of the base."""
        return self.found.values - self.base.values

    @property
    def share_other(self) -> list[float]:
        """In what share of the prompts the likeliest token became another one, per cell; 0 where it is not known."""
        grids = self.each or (self,)
        is_other = [(one.found.tops != one.base.tops[0]) & (one.found.tops != UNKNOWN) for one in grids]
        return torch.stack(is_other).double().mean(0).tolist()

    @property
    def is_other(self) -> list[bool]:
        """Where the likeliest token became another one (in at least half of the prompts)."""
        return [share >= 0.5 for share in self.share_other]

    def largest(self, count: int) -> list[int]:
        """Numbers of the cells whose first metric changed most, largest first."""
        return torch.argsort(self.changes[:, 0].abs(), descending=True, stable=True)[:count].tolist()

    def interval(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return a 95 % interval (C,), (C,) of the mean change of the first metric: bootstrap over the prompts."""
        each = torch.stack([one.changes[:, 0] for one in self.each])  # (N, C)
        N = len(each)
        drawn = torch.randint(N, (DRAWS, N), generator=generator(seed))
        weights = torch.zeros(DRAWS, N, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(DRAWS, N).double()) / N
        tail = (1 - LEVEL) / 2
        at = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        parts = [(weights @ part).quantile(at, 0) for part in each.split(CELLS_AT_ONCE, 1)]
        low, high = torch.cat(parts, 1)
        return low, high

    def table(self, title: str) -> Table:
        """Return a row per place: where, each metric and its change, the token that is now on top."""
        order = self.largest(len(self.places))
        bounds = [b.tolist() for b in self.interval()] if self.each else []
        others = self.share_other
        rows = [self._row(i, bounds, others) for i in order]
        units = {m.text: m.unit for m in self.metrics} | {f"{m.text} change": m.unit for m in self.metrics}
        units |= {"low": self.metrics[0].unit, "high": self.metrics[0].unit, "other": "share"}
        figures = [self.figure(title)] if self.places else []
        return Table(rows, units=units, title=title, note=self.caption, figures=figures)

    def _row(self, i: int, bounds: Sequence[Sequence[float]], others: Sequence[float]) -> dict[str, object]:
        place = self.places[i]
        found: dict[str, object] = {"place": place.address, "short": place.short}
        for j, metric in enumerate(self.metrics):
            found[metric.text] = float(self.found.values[i, j])
            found[f"{metric.text} change"] = float(self.changes[i, j])
        if bounds:
            found |= {"low": bounds[0][i], "high": bounds[1][i]}
        if int(self.found.tops[i]) == UNKNOWN:
            return found
        if bounds:
            return found | {"other": others[i]}
        return found | {"top": self.model.tokenizer.show(int(self.found.tops[i])), "is_other": others[i] > 0}

    def figure(self, title: str) -> Figure:
        """Return the change of the first metric as a picture; crosses where the top token is another one."""
        spots = [self._spot(place) for place in self.places]
        rows, columns = (list(dict.fromkeys(sorted({spot[axis] for spot in spots}))) for axis in (0, 1))
        is_plane = len(set(spots)) == len(spots) and len({place.site.name for place in self.places}) == 1
        if not is_plane or len(spots) == 1 or len(rows) * len(columns) > 4 * len(spots):
            return self._bars(title)
        values: list[list[float | None]] = [[None] * len(columns) for _ in rows]
        marks = [[False] * len(columns) for _ in rows]
        down, across = ({key: at for at, key in enumerate(axis)} for axis in (rows, columns))
        for spot, value, other in zip(spots, self.changes[:, 0].tolist(), self.is_other, strict=True):
            i, j = down[spot[0]], across[spot[1]]
            values[i][j], marks[i][j] = value, other
        x, y = self._axes()
        named = [name for _, name in rows], [name for _, name in columns]
        data = {"values": values, "marks": marks, "rows": named[0], "columns": named[1], "diverging": True}
        return Figure("image", data, title=title, caption=self._legend(), x=x, y=y)

    def _legend(self) -> str:
        over = f" (mean of {len(self.each)} prompts)" if self.each else ""
        what = f"Change of {self.metrics[0].text} [{self.metrics[0].unit}]{over}; a cross: the top token is another one"
        return what + (" in half of them or more. " if self.each else ". ") + self.caption

    def _bars(self, title: str) -> Figure:
        shown = self.largest(30)
        data: dict[str, object] = {
            "labels": [self.places[i].short for i in shown],
            "values": self.changes[shown, 0].tolist(),
        }
        if self.each:
            data |= dict(zip(("low", "high"), (bound[shown].tolist() for bound in self.interval()), strict=True))
        return Figure("bars", data, title=title, caption=self.caption, y=f"change [{self.metrics[0].unit}]")

    def _is_one_layer(self) -> bool:
        indices = {place.site.index for place in self.places}
        return len({place.site.layer for place in self.places}) == 1 and len(indices) > PER_ROW

    def _is_pairs(self) -> bool:
        return any(place.also and not place.name for place in self.places)

    def _spot(self, place: Place) -> tuple[tuple[int, str], tuple[int, str]]:
        """Row and column of a place: an order and a name each."""
        layer, index = place.site.layer or 0, place.site.index
        if self._is_pairs():
            second = place.also[0] if place.also else place
            return _order(place.members[0]), _order(second)
        if index is None:
            at = place.positions[0]
            shown = self.tokens[at] if at < len(self.tokens) else ""
            name = f"{place.label} {shown}" if place.label.lstrip("-").isdigit() else place.label
            return (layer, str(layer)), (at, name)
        row, column = divmod(index, PER_ROW) if self._is_one_layer() else (layer, index)
        return (row, str(row)), (column, str(column))

    def _axes(self) -> tuple[str, str]:
        """Names of the x and y axes."""
        site = self.places[0].site
        if self._is_pairs():
            return "changed with", "place"
        if site.index is None:
            return "position", "layer"
        what = "neuron" if site.name in ("neuron", "gate", "up") else "coordinate" if _is_stream(site.name) else "head"
        if self._is_one_layer():
            return f"{what} (+ row)", f"{what} / {PER_ROW} of layer {site.layer}"
        return what, "layer"


def _is_stream(name: str) -> bool:
    return name in ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "final", "logits")


def _order(place: Place) -> tuple[int, str]:
    site = place.site
    return 10**6 * (site.layer or 0) + 1000 * (site.index or 0) + place.positions[0] % 1000, place.short


def mean(grids: Sequence[Grid], caption: str) -> Grid:
    """Return the mean grid over prompts; the one grid itself if there is but one.

    Raises:
        BadValue: the prompts do not have the same places.
    """
    if len(grids) == 1:
        return grids[0]
    if len({len(one.places) for one in grids}) > 1:
        counts = [len(one.tokens) for one in grids]
        hint = "Name positions by their token or from the end: @' am', @-1."
        raise BadValue(f"prompts of {counts} tokens do not have the same positions.", hint)
    places = [_common([one.places[i] for one in grids]) for i in range(len(grids[0].places))]
    tokens = [
        column[0] if len(set(column)) == 1 else "" for column in zip(*(one.tokens for one in grids), strict=False)
    ]
    values = torch.stack([one.found.values for one in grids]).mean(0)
    base = torch.stack([one.base.values for one in grids]).mean(0)
    found, clean = Outcome(values, grids[0].found.tops), Outcome(base, grids[0].base.tops)
    return Grid(grids[0].model, places, grids[0].metrics, found, clean, tokens, caption, tuple(grids))


def _common(places: Sequence[Place]) -> Place:
    """The place that stands for one of each prompt; where their positions differ it is called as they were written."""
    first = places[0]
    return first if len({place.label for place in places}) == 1 else replace(first, label=first.written)
