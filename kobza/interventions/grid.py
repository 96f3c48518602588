"""A grid of cells: one number per place, as a table, as a picture with named axes, and its largest cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.interventions.base import Metric, Place
from kobza.interventions.planner import Outcome
from kobza.models.model import Model

PER_ROW = 64  # coordinates of one layer in a row of the picture


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
    """

    model: Model
    places: Sequence[Place]
    metrics: Sequence[Metric]
    found: Outcome
    base: Outcome
    tokens: Sequence[str]
    caption: str

    @property
    def changes(self) -> Tensor:
        """(C, metrics) float64: values minus those of the base."""
        return self.found.values - self.base.values

    @property
    def is_other(self) -> list[bool]:
        """Where the likeliest token became another one."""
        top = int(self.base.tops[0])
        return [int(one) != top for one in self.found.tops]

    def largest(self, count: int) -> list[int]:
        """Numbers of the cells whose first metric changed most, largest first."""
        return torch.argsort(self.changes[:, 0].abs(), descending=True, stable=True)[:count].tolist()

    def table(self, title: str) -> Table:
        """Return a row per place: where, each metric and its change, the token that is now on top."""
        order = self.largest(len(self.places))
        rows = [self._row(i) for i in order]
        units = {m.text: m.unit for m in self.metrics} | {f"{m.text} change": m.unit for m in self.metrics}
        figures = [self.figure(title)] if self.places else []
        return Table(rows, units=units, title=title, note=self.caption, figures=figures)

    def _row(self, i: int) -> dict[str, object]:
        place = self.places[i]
        found: dict[str, object] = {"place": place.address, "short": place.short}
        for j, metric in enumerate(self.metrics):
            found[metric.text] = float(self.found.values[i, j])
            found[f"{metric.text} change"] = float(self.changes[i, j])
        top = self.model.tokenizer.show(int(self.found.tops[i]))
        return found | {"top": top, "is_other": self.is_other[i]}

    def figure(self, title: str) -> Figure:
        """Return the change of the first metric as a picture; crosses where the top token is another one."""
        at = [self._spot(place) for place in self.places]
        rows, columns = (sorted({spot[axis] for spot in at}) for axis in (0, 1))
        is_plane = len(set(at)) == len(at) and len({place.site.name for place in self.places}) == 1
        if not is_plane or len(at) == 1:
            return self._bars(title)
        values: list[list[float | None]] = [[None] * len(columns) for _ in rows]
        marks = [[False] * len(columns) for _ in rows]
        for spot, value, other in zip(at, self.changes[:, 0].tolist(), self.is_other, strict=True):
            i, j = rows.index(spot[0]), columns.index(spot[1])
            values[i][j], marks[i][j] = value, other
        x, y, names = self._axes()
        data = {
            "values": values,
            "marks": marks,
            "rows": [str(row) for row in rows],
            "columns": [names[c] if names else str(c) for c in columns],
            "diverging": True,
        }
        unit = f"Change of {self.metrics[0].text} [{self.metrics[0].unit}]; a cross: the top token is another one. "
        return Figure("image", data, title=title, caption=unit + self.caption, x=x, y=y)

    def _bars(self, title: str) -> Figure:
        shown = self.largest(30)
        data = {"labels": [self.places[i].short for i in shown], "values": self.changes[shown, 0].tolist()}
        return Figure("bars", data, title=title, caption=self.caption, y=f"change [{self.metrics[0].unit}]")

    def _is_one_layer(self) -> bool:
        indices = {place.site.index for place in self.places}
        return len({place.site.layer for place in self.places}) == 1 and len(indices) > PER_ROW

    def _spot(self, place: Place) -> tuple[int, int]:
        layer, index = place.site.layer or 0, place.site.index
        if index is None:
            return layer, place.positions[0]
        return divmod(index, PER_ROW) if self._is_one_layer() else (layer, index)

    def _axes(self) -> tuple[str, str, list[str]]:
        """Names of the x and y axes, and of the columns where they are positions."""
        site = self.places[0].site
        if site.index is None:
            return "position", "layer", [f"{at} {token}" for at, token in enumerate(self.tokens)]
        what = "head" if site.name != "neuron" else "neuron"
        if self._is_one_layer():
            return f"{what} (+ row)", f"{what} / {PER_ROW} of layer {site.layer}", []
        return what, "layer", []
