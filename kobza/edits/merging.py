"""Merging: one model out of several of the same shape, without training.

linear: the weighted mean. slerp: along the arc between two. task: the first model plus weighted differences of the
others from it. ties: differences cut to their largest entries, the sign that weighs more wins, the mean of those that
agree. dare: differences with random entries dropped and the rest scaled up; dare_ties with the sign vote as well.
passthrough: layers of several models on top of each other.

Sources: Wortsman et al. (2022), arXiv:2203.05482 (linear); Shoemake (1985), doi:10.1145/325334.325242 (slerp);
Ilharco et al. (2022), arXiv:2212.04089 (task arithmetic); Yadav et al. (2023), arXiv:2306.01708 (TIES); Yu et al.
(2023), arXiv:2311.03099 (DARE). Normalization and thresholds as in mergekit (Goddard et al. 2024, arXiv:2403.13257).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange, WrongTensors, WrongVocabulary
from kobza.core.figure import Figure
from kobza.core.progress import progress
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits._shapes import with_layers
from kobza.models import forward, opening
from kobza.models.model import Change, Model

NEARLY_PARALLEL = 0.9995  # cosine above which slerp is a straight line (mergekit's DOT_THRESHOLD)


def apply(
    model: Model,
    *,
    others: Sequence[str] | None = None,
    method: Literal["linear", "slerp", "task", "ties", "dare", "dare_ties", "passthrough"] = "linear",
    weights: Sequence[float] | None = None,
    t: float = 0.5,
    density: float = 0.5,
    slices: Sequence[str] | None = None,
    random: int = 1,
) -> Model:
    """Merge a model with others of the same family, shape and vocabulary.

    Args:
        model: the first model, for task, ties and dare the one that the others were trained from.
        others: models to open, as anywhere; none: the model is merged with itself, which changes nothing.
        method: how.
        weights: of the models [factor, -100 .. 100], for linear all of them, for task, ties and dare the others;
            none: 1 for each. linear and ties divide by their sum.
        t: how far slerp goes from the first model to the other [fraction, 0 .. 1].
        density: share of the entries of a difference that ties and dare keep [fraction, >0 .. 1].
        slices: layers for passthrough, from below: "0:0-15" is layers 0 to 14 of the first model, "1:8-30" layers 8
            to 29 of the first of the others.
        random: seed of what dare drops; each matrix draws from a generator of (seed, its name) [integer, 0 ..].

    Returns:
        A fork (passthrough: a model with as many layers as named).

    Raises:
        WrongVocabulary: the vocabularies differ, so that equal rows mean different tokens.
        WrongTensors: another family, another shape, or only one of the models is tied.
        BadValue, OutOfRange: options that do not fit the method or the number of models.

    Cost: one pass over the weights; the others are opened, memory-mapped where they can be.
    """
    models = [opening.open(spec) for spec in others or ()]
    options = base.options_of(others=list(others or ()), method=method)
    return merged(
        model, models, method=method, weights=weights or (), t=t, density=density, slices=slices or (), random=random,
        options=options,
    )  # fmt: skip


def merged(
    model: Model,
    others: Sequence[Model],
    *,
    method: str = "linear",
    weights: Sequence[float] = (),
    t: float = 0.5,
    density: float = 0.5,
    slices: Sequence[str] = (),
    random: int = 1,
    options: dict[str, Any] | None = None,
) -> Model:
    """Merge opened models; arguments and errors as in `apply`."""
    models = [model, *others] if others else [model, model]
    for other in models[1:]:
        require_alike(model, other)
    about = dict(options or {"others": [other.name for other in others], "method": method})
    facts = {"fingerprints": [one.fingerprint for one in models[1:]]}
    if method == "passthrough":
        return _stacked(models, slices, about | {"slices": list(slices)}, facts)
    given = _weights(models, method, weights)
    if not 0 <= t <= 1 or not 0 < density <= 1:
        raise OutOfRange(f"t={t}, density={density}; allowed: t 0 .. 1, density above 0 .. 1.")
    tensors = {}
    for name in progress(_names(model), "merge"):
        values = [one.matrix(name) for one in models]
        tensors[name] = _one(values, method, given, t, density, base.generator(random, name))
    about |= {"weights": given} if method != "slerp" else {"t": t}
    about |= {"density": density} if method in ("ties", "dare", "dare_ties") else {}
    about |= {"random": random} if method.startswith("dare") else {}
    return base.edited(model, "merging", about, tensors, facts=facts)


def require_alike(first: Model, second: Model) -> None:
    """Refuse models whose weights do not mean the same.

    Raises:
        WrongVocabulary, WrongTensors: names both models and what differs.
    """
    pair = f"{first.name!r} and {second.name!r}"
    if first.family.name != second.family.name:
        raise WrongTensors(
            f"{pair} are of the families {first.family.name!r} and {second.family.name!r}: they cannot be merged."
        )
    if first.tokenizer.fingerprint != second.tokenizer.fingerprint:
        raise WrongVocabulary(
            f"the vocabularies of {pair} differ: equal rows mean different tokens.",
            "Merge models with one vocabulary, or move one to the other's first (kobza help transplant).",
        )
    if first.is_tied != second.is_tied:
        tied, other = (first, second) if first.is_tied else (second, first)
        raise WrongTensors(
            f"{tied.name!r} is tied and {other.name!r} is not: a merge would have to invent or lose a head.",
            "Untie the first by an edit of one end, e.g. scaling:where=embed.out,factor=1",
        )
    sizes = ({name: matrix.shape for name, matrix in one.matrices.items()} for one in (first, second))
    ours, theirs = sizes
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            sizes_of = f"{ours.get(name)} in {first.name!r}, {theirs.get(name)} in {second.name!r}"
            raise WrongTensors(f"{name!r} is {sizes_of}: they cannot be merged.")


def _names(model: Model) -> list[str]:
    """Every weight once, a tied pair of ends as one."""
    names = [name for name, matrix in model.matrices.items() if not matrix.shared]
    return ["embed" if name == "embed.in" and model.is_tied else name for name in names]


def _weights(models: Sequence[Model], method: str, weights: Sequence[float]) -> list[float]:
    count = len(models) if method == "linear" else len(models) - 1
    given = [float(w) for w in weights] or [1.0] * count
    if method == "slerp" and len(models) != 2:
        raise BadValue(f"slerp goes between two models; {len(models)} were given.")
    if method != "slerp" and len(given) != count:
        raise BadValue(f"{len(given)} weights for {count} models, method {method!r}.", "Give one each, or none.")
    if method == "linear" and sum(given) == 0:
        raise OutOfRange("the weights sum to 0: their mean does not exist.")
    return given


def _one(
    values: list[Tensor], method: str, weights: list[float], t: float, density: float, draw: torch.Generator
) -> Tensor:
    if method == "linear":
        total = torch.stack([v * w for v, w in zip(values, weights, strict=True)]).sum(0)
        return total / sum(weights)
    if method == "slerp":
        return slerp(values[0], values[1], t)
    deltas = torch.stack([v - values[0] for v in values[1:]])
    if method == "ties":
        deltas = torch.stack([largest(delta, density) for delta in deltas])
    elif method.startswith("dare"):
        deltas = torch.stack([dropped(delta, density, draw) for delta in deltas])
    weighted = deltas * torch.tensor(weights).view(-1, *[1] * (deltas.ndim - 1))
    if method in ("ties", "dare_ties"):
        agrees = weighted.sign() == majority(weighted)
        # mergekit normalizes TIES by the weights of those that agree, DARE not
        total = (weighted * agrees).sum(0)
        if method == "ties":
            share = (agrees * torch.tensor(weights).view(-1, *[1] * (deltas.ndim - 1))).sum(0)
            total = total / torch.where(share.abs() < 1e-8, 1.0, share)
        return values[0] + total
    return values[0] + weighted.sum(0)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at t on the arc between two tensors as vectors; a straight line where they are nearly parallel.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.7071, 0.7071])
    """
    norms = a.double().norm(), b.double().norm()
    if min(norms) < 1e-8:
        return a + t * (b - a)
    cosine = float((a.double() * b.double()).sum() / (norms[0] * norms[1]))
    if abs(cosine) > NEARLY_PARALLEL:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) / math.sin(angle)) * a + (math.sin(t * angle) / math.sin(angle)) * b


def largest(delta: Tensor, density: float) -> Tensor:
    """A difference with all but its largest entries at 0."""
    count = int(density * delta.numel())
    if count >= delta.numel():
        return delta
    if count == 0:
        return torch.zeros_like(delta)
    at = delta.abs().flatten().topk(count).indices
    return torch.zeros_like(delta).flatten().scatter(0, at, delta.flatten()[at]).view_as(delta)


def dropped(delta: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """A difference with random entries at 0 and the others scaled up, so that its mean stays."""
    return delta * (torch.rand(delta.shape, generator=draw) < density) / density


def majority(weighted: Tensor) -> Tensor:
    """The sign (...) of the sum of differences (G, ...); + where they cancel."""
    return torch.where(weighted.sum(0) >= 0, 1.0, -1.0)


# --- layers on top of each other -------------------------------------------------------------------------------------


def _stacked(models: Sequence[Model], slices: Sequence[str], options: dict[str, Any], facts: dict[str, Any]) -> Model:
    places = [place for one in slices or [f"0:0-{models[0].layers}"] for place in _slice(one, models)]
    kept, owners = [layer for _, layer in places], [models[index] for index, _ in places]
    return with_layers(models[0], kept, "merging", options, facts, owners)


def _slice(given: str, models: Sequence[Model]) -> list[tuple[int, int]]:
    """(model, layer) of "1:8-30".

    Raises:
        BadValue: not of that form. OutOfRange: a model or layer that is not there.
    """
    index, colon, span = given.partition(":")
    begin, dash, end = span.partition("-")
    if not (colon and dash and index.isdigit() and begin.isdigit() and end.isdigit()):
        hint = 'Write for example slices="0:0-15;1:8-30"'
        raise BadValue(f"slice {given!r} is not of the form MODEL:FIRST-END.", hint)
    if int(index) >= len(models) or not int(begin) < int(end) <= models[int(index)].layers:
        raise OutOfRange(
            f"slice {given!r}: models are 0 .. {len(models) - 1}, layers 0 .. {models[0].layers}, the end not included."
        )
    return [(int(index), layer) for layer in range(int(begin), int(end))]


# --- the line between two --------------------------------------------------------------------------------------------


def barrier(model: Model, other: Model, text: Text, *, points: int = 5, window: int = 512) -> Table:
    """Return the loss along the straight line between two models: is there a barrier between them?

    Args:
        model, other: the two ends.
        text: what the loss is taken on.
        points: places on the line, both ends included [count, 2 ..].
        window: tokens read at once [count, 2 ..].

    Returns:
        A row per point: t, bits per byte; the note gives the barrier, the most that the line rises above the straight
        line between its ends (Frankle et al. 2020, arXiv:1912.05671), and a picture shows it.

    Raises:
        OutOfRange: fewer than two points. WrongTensors, WrongVocabulary: see `require_alike`.
    """
    require_alike(model, other)
    if points < 2:
        raise OutOfRange(f"points={points}; a line has two ends.")
    ids = base.token_ids(model, text)
    window = min(window, model.context or window)
    rows = []
    for step in progress(range(points), "line"):
        t = step / (points - 1)
        names = _names(model)
        line = {name: (1 - t) * model.matrix(name) + t * other.matrix(name) for name in names}
        there = model.replace(line, change=Change("merging", {"t": t}))
        bits = float(forward.token_bits(there, ids, window=window, overlap=0).double().sum())
        rows.append({"t": t, "bits_per_byte": bits / len(text)})
    ends = rows[0]["bits_per_byte"], rows[-1]["bits_per_byte"]
    rise = max(row["bits_per_byte"] - ends[0] - row["t"] * (ends[1] - ends[0]) for row in rows)
    found = Table(rows, title=f"From {model.name} to {other.name}", note=f"barrier {rise:.4f} bit/B")
    x, y = ([row[name] for row in rows] for name in ("t", "bits_per_byte"))
    series = [{"name": "on the line", "x": x, "y": y}, {"name": "between its ends", "x": [0, 1], "y": list(ends)}]
    caption = f"{text.name}, windows of {window} tokens. The barrier is the most that the line rises above its ends."
    found.figures = [Figure("lines", {"series": series}, title=found.title, caption=caption, x="t", y="bit/B")]
    return found
