"""Explaining a neuron: a rule about tokens, and how well it foretells when the neuron is active.

An explanation is worth what it predicts on text it was not made from. A given rule (a set of tokens or a regular
expression) is correlated with the neuron's activity; without one, the set of tokens on which the neuron is most active
in the first half of the text becomes the rule, and the second half judges it. Beside it stand the same for other
neurons of the layer: what the best rule of the same making reaches there, and what this rule reaches on them.

Sources: Bills et al. (2023), "Language models can explain neurons in language models" (score = correlation of simulated
with real activity); Huang et al. (2023), arXiv:2309.10312 (why an explanation has to be held against other neurons).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions._collecting import Seen, collect, tokens_of
from kobza.interventions._rules import correlations, indicator
from kobza.interventions.base import generator, record
from kobza.models.model import Model
from kobza.models.sites import HEADS, Site, expand

RARE = 2  # a token must stand at least so often in the first half to enter a rule


def run(
    model: Model,
    *,
    neuron: str = "neuron.0.0",
    rule: str = "",
    text: str = "topics",
    sample: int = 8000,
    count: int = 10,
    controls: int = 20,
    seed: int = 0,
) -> Result:
    """Say when a neuron is active, and how well that foretells it.

    Args:
        model: the model; it is not changed.
        neuron: a single coordinate of a site, `neuron.20.1189`, `resid_post.3.17`.
        rule: `tokens: am| pm` or `regex:[0-9]+`; none: made from the first half of the text.
        text: a named text or a file.
        sample: tokens read from it [tokens, 10 ..].
        count: tokens of a rule that is made here, and rows of the table [count, 1 ..].
        controls: other coordinates of the same site; 0 leaves the result uncontrolled [count, 0 ..].
        seed: of the choice of other coordinates [integer, 0 ..].

    Returns:
        A Result: a table of the places where the neuron is most active (either sign), a picture of its text, and
        readings on the second half of the text: `agreement` (Pearson's correlation of activity and rule; a given rule
        is judged on both halves), `best_on_others` (median and largest size reached on other neurons by rules made for
        them the same way, or by the given rule), `control` (size this very rule reaches on them).

    Raises:
        BadValue: no single coordinate, or no rule. NothingMatched: a rule that holds nowhere. EmptyText.

    Cost: one pass over the sample up to the site.
    """
    given = locals()
    site = _coordinate(model, neuron)
    if count < 1 or controls < 0:
        raise OutOfRange(f"count={count}, controls={controls}: at least 1 and 0.")
    ids = tokens_of(model, text, sample)
    place = str(Site(site.name, site.layer))
    seen = collect(model, ids, [place])
    values, own = seen.values[place], int(site.index or 0)
    if own >= values.shape[1]:
        raise OutOfRange(f"{neuron!r}: its index goes from 0 to {values.shape[1] - 1}.")
    judge = _Judge(model, seen, values, rule, count)
    order = torch.randperm(values.shape[1], generator=generator(seed)).tolist()
    others = [i for i in order if i != own][:controls]
    made = record(model, "explain", given)
    rule_ids, agreement = judge.explained(own)
    said = rule or "tokens:" + "|".join(model.tokenizer.show(i) for i in rule_ids)
    readings = [Reading("agreement", agreement, "", record=made, note=f"correlation with {said}")]
    readings += _controls(judge, own, others, made)
    label = "" if others else " (uncontrolled)"
    return Result(f"{site} of {model.name}{label}", readings, [_table(judge, own, str(site), label)], made_by=made)


def _coordinate(model: Model, text: str) -> Site:
    site = Site.parse(text)
    if site.index is None or site.layer is None or site.position is not None or site.name in HEADS:
        raise BadValue(f"{text!r} is no single neuron.", "Write neuron.20.1189 or resid_post.3.17.")
    expand(model, site)
    return site


@dataclass(frozen=True)
class _Judge:
    """The text in two halves: rules are made from the first and judged on the second."""

    model: Model
    seen: Seen
    values: Tensor
    rule: str
    count: int

    @property
    def half(self) -> int:
        """Where the second half begins."""
        return len(self.values) // 2

    def explained(self, index: int) -> tuple[list[int], float]:
        """Return the tokens of the rule for a coordinate (none if the rule was given) and its agreement."""
        if self.rule:
            holds = indicator(self.model, self.seen.ids, self.rule)
            return [], float(correlations(self.values[:, index : index + 1], holds)[0])
        tokens = self.made(index)
        return tokens, self.agreement(index, tokens)

    def made(self, index: int) -> list[int]:
        """The tokens on which a coordinate differs most, on average and in one direction, from its mean."""
        ids, activity = self.seen.ids[: self.half], self.values[: self.half, index].double()
        known, which, counts = ids.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(known), dtype=torch.float64).index_add_(0, which, activity - activity.mean())
        # the sum over the root of the count: a token must be both unlike the mean and not a single accident
        strength = torch.where(counts >= RARE, sums / counts.double().sqrt(), 0.0)
        sign = float(strength[strength.abs().argmax()].sign())
        best = (strength * sign).argsort(descending=True)[: self.count]
        return known[best[(strength * sign)[best] > 0]].tolist()

    def agreement(self, index: int, tokens: list[int]) -> float:
        """Correlation of a coordinate with a set of tokens on the second half; 0 if none stands there."""
        holds = torch.isin(self.seen.ids[self.half :], torch.tensor(tokens, dtype=torch.long))
        return float(correlations(self.values[self.half :, index : index + 1], holds)[0])


def _controls(judge: _Judge, own: int, others: list[int], made: dict[str, object]) -> list[Reading]:
    if not others:
        return []
    tokens, agreement = judge.explained(own)
    best = [abs(judge.explained(i)[1]) for i in others]
    same = best if judge.rule else [abs(judge.agreement(i, tokens)) for i in others]
    found = []
    for name, sizes, what in (("best_on_others", best, "their own rules"), ("control", same, "this rule")):
        above = sum(size >= abs(agreement) for size in sizes)
        note = f"median size of the correlation with {what} over {len(others)} other neurons; {above} reach this one's"
        found.append(Reading(name, median(sizes), "", min(sizes), max(sizes), "smallest and largest", made, note))
    return found


def _table(judge: _Judge, own: int, name: str, label: str) -> Table:
    activity = judge.values[:, own]
    centered = activity - activity.mean()
    best = centered.abs().argsort(descending=True)[: judge.count].tolist()
    rows = [{"activity": float(activity[at]), "text": judge.seen.around(judge.model, at)} for at in best]
    at = best[0] // judge.seen.window * judge.seen.window
    pieces = [
        {"text": judge.model.tokenizer.show(int(i)).replace("▁", " "), "value": float(v)}
        for i, v in zip(judge.seen.ids[at : at + 120], centered[at : at + 120], strict=True)
    ]
    caption = f"Activity of {name}, less its mean, over {len(activity)} tokens, {judge.model.name}."
    figure = Figure("tokens", {"pieces": pieces}, title=name, caption=caption)
    return Table(rows, title=f"Where {name} is most active{label}", note=caption, figures=[figure])
