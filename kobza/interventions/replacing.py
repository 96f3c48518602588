"""What an ablation puts in the place of a value: for one run as Edits, for any text as Hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.texts import text as open_text
from kobza.interventions.base import Edit, Place, generator
from kobza.interventions.planner import Run
from kobza.models.hooks import Hook
from kobza.models.model import Model
from kobza.models.sites import Site

Kind = Literal["zero", "mean", "value", "resample", "noise"]
TOKENS = 256  # of the named text, over which mean and deviation are taken


@dataclass
class Replacement:
    """What is put in the place of a value.

    Attributes:
        model: the model.
        kind: zero; mean over the text; a value; a sample of the text; noise added.
        value: the number of kind "value".
        strength: of the noise, in standard deviations over the text.
        text: named text or file.
        seed: of samples and noise.
    """

    model: Model
    kind: Kind = "zero"
    value: float = 0.0
    strength: float = 1.0
    text: str = "topics"
    seed: int = 0
    _kept: dict[Any, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise OutOfRange(f"strength={self.strength}: 0 or more standard deviations.")
        self.draw = generator(self.seed)

    @cached_property
    def other(self) -> Run:
        """The text as a run of its own."""
        sample = self.model.tokenizer.encode(open_text(self.text).data[: 8 * TOKENS], start=True)[:TOKENS]
        return Run(self.model, sample[: self.model.context or None])

    def edit(self, place: Place) -> Edit:
        """Return the edit of one place of a run.

        Raises:
            BadValue: a pattern or scores, whose width is that of the run, from another text.
        """
        size = len(place.positions)
        if self.kind in ("zero", "value"):
            return Edit(place.site, place.positions, torch.tensor(self.value if self.kind == "value" else 0.0))
        if self.kind == "resample":
            found = self._values(place.site)
            at = torch.randint(len(found), (size,), generator=self.draw)
            return Edit(place.site, place.positions, found[at.to(found.device)])
        if self.kind == "mean":
            return Edit(place.site, place.positions, self._mean(place.site))
        deviation = self._deviation(place.site)
        noise = torch.randn(size, *deviation.shape, generator=self.draw).to(deviation)
        return Edit(place.site, place.positions, self.strength * noise * deviation, adds=True)

    def hooks(self, chosen: Sequence[Site]) -> list[Hook]:
        """Return hooks that put the same in at every position of any text, later ones on top of earlier ones."""
        return [Hook(site, self._function(site)) for site in chosen]

    def _function(self, site: Site) -> Callable[[Tensor], Tensor]:
        if self.kind in ("zero", "value"):
            return lambda part: torch.full_like(part, self.value if self.kind == "value" else 0.0)
        if self.kind == "mean":
            average = self._mean(site)
            return lambda part: average.expand_as(part)
        whole, deviation = self._values(site), self._deviation(site)

        def put(part: Tensor) -> Tensor:
            if self.kind == "resample":
                at = torch.randint(len(whole), part.shape[:2], generator=self.draw)
                return whole[at.to(whole.device)]
            return part + self.strength * torch.randn(part.shape, generator=self.draw).to(part) * deviation

        return put

    def _values(self, site: Site) -> Tensor:
        """Values (S, ...) at the positions of the text but the first, whose activations are unlike all others."""
        if site.name in ("scores", "pattern"):
            raise BadValue(f"{site.name} has as many columns as the run: another text has no {self.kind} for it.")
        found = self.other.value(site.name, site.layer)
        found = found[1:] if len(found) > 1 else found  # attention sinks
        return found if site.index is None else found[:, site.index]

    def _mean(self, site: Site) -> Tensor:
        return self._statistic("mean", site, lambda values: values.double().mean(0).to(values))

    def _deviation(self, site: Site) -> Tensor:
        return self._statistic("std", site, lambda values: values.double().std(0, correction=0).to(values))

    def _statistic(self, name: str, site: Site, of: Callable[[Tensor], Tensor]) -> Tensor:
        """A statistic of the whole site, taken once, and its part at the index."""
        key = (name, site.name, site.layer)
        if key not in self._kept:
            self._kept[key] = of(self._values(Site(site.name, site.layer)))
        return self._kept[key] if site.index is None else self._kept[key][site.index]
