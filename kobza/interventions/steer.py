"""Steering: a direction read from contrasting prompts, added to the stream while the model runs.

The direction is the mean difference of the stream at the last token of the positive and the negative prompts. Added
with a strength, it pushes what the model says; random directions of equal length stand beside it. `direction` gives a
Vector whose hooks work in any decoding and in any measure:

    vector = steer.direction(model, positive=[...], negative=[...])
    with hooked(model, vector.hooks(2.0)):
        ...

Sources: Turner et al. (2023), arXiv:2308.10248 (activation addition); Rimsky et al. (2024), arXiv:2312.06681
(contrastive means); for random directions as control, Tan et al. (2024), arXiv:2407.12404 (steering often fails).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kobza.core.errors import BadValue, Corrupt, MissingFile, OutOfRange
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import Edit, generator, metrics, prompt_ids, record
from kobza.interventions.planner import Run
from kobza.measures.bits_per_byte import measure
from kobza.models.forward import generate
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import Site

POSITIVE = ("{This|The} {song|book|day} is {wonderful|lovely|great}, I",)
NEGATIVE = ("{This|The} {song|book|day} is {terrible|awful|horrible}, I",)
HELD_OUT = ("{My|Our} {dinner|trip|house} was",)
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class Vector:
    """A direction of the stream.

    Attributes:
        layer: it is added to what this layer hands on (resid_post).
        values: (D,) the direction, in the stream's own units.
        made_from: how it was found, plain data.
    """

    layer: int
    values: Tensor
    made_from: dict[str, list[str]]

    def hooks(self, strength: float = 1.0) -> list[Hook]:
        """Return the hook that adds it, `strength` times, at every position that is run."""
        return [Hook(Site("resid_post", self.layer), lambda value: value + strength * self.values.to(value))]

    def save(self, path: str | Path) -> Path:
        """Write it to a safetensors file."""
        about = {"layer": self.layer, "made_from": self.made_from}
        return write_atomic(path, save({"vector": self.values.contiguous()}, {"kobza.vector": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Vector:
        """Read what `save` wrote.

        Raises:
            MissingFile: no such file. Corrupt: it is no direction.
        """
        if not Path(path).is_file():
            raise MissingFile(f"{path}: no such file.", "`kobza steer MODEL --keep FILE` writes one.")
        try:
            with safe_open(str(path), "pt") as file:
                return cls(values=file.get_tensor("vector"), **json.loads(file.metadata()["kobza.vector"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"{path} is not a direction that was kept ({error}).") from None


def direction(
    model: Model, *, positive: Sequence[str], negative: Sequence[str], layer: int | None = None, where: str = "last"
) -> Vector:
    """Return the mean stream over positive prompts minus that over negative ones.

    Args:
        model: the model.
        positive, negative: prompts; `{a|b}` stands for both.
        layer: whose output is read; None: two thirds of the way up [index, 0 .. L - 1].
        where: the last token of every prompt, or "all" for the mean over its tokens but the first.

    Raises:
        OutOfRange: no such layer. BadValue: both sides are the same. EmptyText: an empty prompt.
    """
    layer = model.layers * 2 // 3 if layer is None else layer
    if not 0 <= layer < model.layers:
        raise OutOfRange(f"layer {layer}: {model.name!r} has layers 0 .. {model.layers - 1}.")
    sides = {"positive": spelled_out(positive), "negative": spelled_out(negative)}
    if set(sides["positive"]) == set(sides["negative"]):
        raise BadValue("positive and negative prompts are the same.", "Change what the direction should be about.")
    plus, minus = (torch.stack([_state(model, text, layer, where) for text in side]) for side in sides.values())
    return Vector(layer, (plus.double().mean(0) - minus.double().mean(0)).float(), sides)


def spelled_out(texts: Sequence[str]) -> list[str]:
    """Return every text that `{a|b}` stands for.

    >>> spelled_out(["{one|two} {am|pm}", "x"])
    ['one am', 'one pm', 'two am', 'two pm', 'x']
    """
    found = []
    for text in texts:
        pieces = _CHOICE.split(text)  # text, choices, text, choices, text
        ways = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
        found += ["".join(one) for one in itertools.product(*ways)]
    return found


def _state(model: Model, text: str, layer: int, where: str) -> Tensor:
    if where not in ("last", "all"):
        raise BadValue(f"where={where!r}: 'last' or 'all'.")
    stream = model.trace(prompt_ids(model, text), f"resid_post.{layer}")["resid_post", layer]
    # the first position is left out of a mean: it is a sink of attention, many times longer than all others
    return stream[-1] if where == "last" or len(stream) == 1 else stream[1:].mean(0)


def run(
    model: Model,
    *,
    positive: tuple[str, ...] = POSITIVE,
    negative: tuple[str, ...] = NEGATIVE,
    held_out: tuple[str, ...] = HELD_OUT,
    metric: str = "logit",
    layer: int | None = None,
    where: str = "last",
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    controls: int = 3,
    text: str = "",
    limit: int = 2000,
    tokens: int = 0,
    keep: str = "",
    seed: int = 0,
) -> Result:
    """Read a direction from contrasting prompts and add it to held-out ones at several strengths.

    Args:
        model: the model; it is not changed.
        positive: prompts the direction leads to; several joined by semicolons, `{a|b}` stands for both.
        negative: prompts it leads away from.
        held_out: prompts it is tried on; none of them may be one it was read from.
        metric: prob, logit or diff; a token may follow a colon (else the likeliest of the first held-out prompt).
        layer: whose output is read and changed; none: two thirds of the way up [index, 0 ..].
        where: last reads the last token of every prompt, all the mean over its tokens.
        strengths: how many times the direction is added [ratio].
        controls: random directions of equal length; 0 leaves the result uncontrolled [count, 0 ..].
        text: a named text or file; with one, its bits per byte are measured at every strength.
        limit: bytes of that text [bytes, 1 ..].
        tokens: length of a sample that goes on with the first held-out prompt at every strength [tokens, 0 ..].
        keep: a file in which the direction is kept (safetensors).
        seed: of the random directions [integer, 0 ..].

    Returns:
        A Result: a table with a row per strength (mean of the metric over held-out prompts, the same for random
        directions), its picture, and readings `slope` (of the mean, per unit of strength), `monotone` (share of
        prompts whose metric rises, or falls, with every strength as the mean does), `length` (of the direction over
        that of the stream it joins), `control` (slope of random directions).

    Raises:
        BadValue: a held-out prompt that is not held out, equal sides, a metric without a value per prompt.
        OutOfRange, EmptyText: see `direction`.

    Cost: a forward pass per prompt, and the layers above per strength, control and held-out prompt.
    """
    given = locals()
    if len(strengths) < 2 or controls < 0:
        raise OutOfRange(f"strengths={strengths}, controls={controls}: at least two strengths, 0 controls.")
    vector = direction(model, positive=positive, negative=negative, layer=layer, where=where)
    prompts = spelled_out(held_out)
    seen = set(itertools.chain(*vector.made_from.values())) & set(prompts)
    if seen:
        raise BadValue(f"{min(seen)!r} is not held out: the direction was read from it.")
    draw = generator(seed)
    randoms = [_like(vector, draw) for _ in range(controls)]
    grids = _grids(model, [vector, *randoms], prompts, metric, sorted(strengths))  # (1 + controls, prompts, strengths)
    made = record(model, "steer", given)
    label = "" if controls else " (uncontrolled)"
    table = _table(grids, sorted(strengths), metric, vector, len(prompts), label, model.name)
    if text:
        costs = [_cost(model, vector, strength, text, limit) for strength in sorted(strengths)]
        table = table.with_column("bits_per_byte", costs, "bit/B")
    if keep:
        vector.save(keep)
    readings = _readings(grids, sorted(strengths), vector, model, prompts, made)
    samples = [_sample(model, vector, strength, prompts[0], tokens) for strength in sorted(strengths) if tokens]
    return Result(
        f"Steering layer {vector.layer} of {model.name}{label}", readings, [table], samples=samples, made_by=made
    )


def _like(vector: Vector, draw: torch.Generator) -> Vector:
    noise = torch.randn(vector.values.shape, generator=draw)
    return Vector(vector.layer, noise / noise.norm() * vector.values.norm(), {})


def _grids(
    model: Model, vectors: Sequence[Vector], prompts: Sequence[str], metric: str, strengths: Sequence[float]
) -> Tensor:
    """The metric (vectors, prompts, strengths) with each vector added at every position."""
    top: int | None = None
    found = []
    with task("prompts", len(prompts)) as shown:
        for prompt in prompts:
            clean = Run(model, prompt_ids(model, prompt))
            top = clean.top if top is None else top
            wanted = metrics(model, metric, top)[:1]
            if wanted[0].name in ("top1", "loss"):
                raise BadValue(f"metric {metric!r} says nothing about a direction.", "Take prob, logit or diff.")
            spots = tuple(range(clean.length))
            cells = [
                (Edit(Site("resid_post", v.layer), spots, strength * v.values, adds=True),)
                for v in vectors
                for strength in strengths
            ]
            found.append(clean.outcome(cells, wanted).values[:, 0].reshape(len(vectors), len(strengths)))
            shown.step()
    return torch.stack(found, 1)


def _table(
    grids: Tensor, strengths: Sequence[float], metric: str, vector: Vector, count: int, label: str, name: str
) -> Table:
    means = grids.mean(1)
    rows: list[dict[str, object]] = []
    for i, strength in enumerate(strengths):
        row: dict[str, object] = {"strength": strength, metric: float(means[0, i])}
        row |= {"lowest": float(grids[0, :, i].min()), "highest": float(grids[0, :, i].max())}
        if len(means) > 1:
            row["random"] = float(means[1:, i].mean())
        rows.append(row)
    caption = f"Mean over {count} held-out prompts, direction added to resid_post.{vector.layer}, {name}."
    series = [{"name": "the direction", "x": list(strengths), "y": means[0].tolist()}]
    series += [{"name": f"random {i}", "x": list(strengths), "y": one.tolist()} for i, one in enumerate(means[1:], 1)]
    figure = Figure("lines", {"series": series}, title="Steering", caption=caption, x="strength", y=metric)
    return Table(rows, title=f"Steering{label}", note=caption, figures=[figure])


def _slopes(grids: Tensor, strengths: Sequence[float]) -> Tensor:
    """Least-squares slopes (vectors,) of the mean over prompts."""
    x = torch.tensor(strengths, dtype=torch.float64)
    x = x - x.mean()
    return grids.mean(1) @ x / (x @ x)


def _readings(
    grids: Tensor, strengths: Sequence[float], vector: Vector, model: Model, prompts: Sequence[str],
    made: dict[str, object],
) -> list[Reading]:  # fmt: skip
    slopes = _slopes(grids, strengths)
    steps = grids[0].diff(dim=1) * slopes[0].sign()
    monotone = (steps > 0).all(1).double().mean()
    stream = torch.stack([_state(model, prompt, vector.layer, "last") for prompt in prompts[:8]])
    share = float(vector.values.norm() / stream.norm(dim=1).mean())
    is_mean = bool((grids[0].mean(0).diff() * slopes[0].sign() > 0).all())
    note = f"of {len(prompts)} held-out prompts; the mean is {'' if is_mean else 'not '}monotone"
    found = [
        Reading("slope", float(slopes[0]), "per strength", record=made, note="of the mean over held-out prompts"),
        Reading("monotone", float(monotone), "share", record=made, note=note),
        Reading("length", share, "ratio", record=made, note="of the direction over the stream at the last token"),
    ]
    if len(slopes) > 1:
        others = slopes[1:].abs()
        low, high = float(others.min()), float(others.max())
        note = f"mean size of the slope of {len(others)} random directions of equal length"
        spread = "smallest and largest"
        found.append(Reading("control", float(others.mean()), "per strength", low, high, spread, made, note))
    return found


def _cost(model: Model, vector: Vector, strength: float, text: str, limit: int) -> float:
    with hooked(model, vector.hooks(strength)):
        return measure(model, text, limit=limit).value


def _sample(model: Model, vector: Vector, strength: float, prompt: str, tokens: int) -> dict[str, str]:
    with hooked(model, vector.hooks(strength)):
        ids = [i for i, _ in generate(model, prompt_ids(model, prompt), tokens=tokens)]
    said = model.tokenizer.decode(ids).decode("utf-8", "replace")
    return {"title": f"strength {strength:g}", "prompt": prompt, "text": said}
