"""Uncertainty layer by layer: entropy and varentropy of what each layer would say, and how the stream's path bends.

Every stream is read through the final norm and the head (the logit lens): entropy is the mean surprise, varentropy its
variance (0 when one token is sure, and when all allowed tokens are equally likely). Curvature is the mean angle between
one step of the stream from token to token and the next; trained models straighten natural text on the way up. As a
control the same tokens are read in shuffled orders.

Sources: Kontoyiannis & Verdú (2014), doi:10.1109/TIT.2013.2291007 (varentropy); Hosseini & Fedorenko (2023),
arXiv:2311.04930 (curvature, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import generator, prompt_ids, record
from kobza.interventions.planner import Run
from kobza.models.model import Model
from kobza.models.passes import BITS
from kobza.models.states import head

COLUMNS = {"entropy": "bit", "varentropy": "bit^2", "curvature": "degree"}


def run(model: Model, *, prompt: str, chunk: int = 128, controls: int = 1, seed: int = 0) -> Result:
    """Read entropy, varentropy and curvature of every stream of a prompt.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run, of at least three tokens.
        chunk: positions whose logits are held at once [count, 1 ..].
        controls: shuffled orders of the same tokens; 0 leaves the result uncontrolled [count, 0 ..].
        seed: of the shuffling [integer, 0 ..].

    Returns:
        A Result: a table with a row per stream (0: the embedding, L: the whole model), means over positions but the
        first, and the same for shuffled tokens; a second table with the last stream's values at each position; and
        readings `straightened` (curvature of stream 0 less its least over streams [degree]) and `control` (shuffled).

    Raises:
        OutOfRange: fewer than three tokens, or more than the trained context. EmptyText: an empty prompt.

    Cost: a forward pass, and L + 1 applications of the head, for the prompt and each shuffled copy.
    """
    given = locals()
    ids = prompt_ids(model, prompt)
    first = 0 if model.tokenizer.start_id is None else 1
    if len(ids) - first < 3 or chunk < 1 or controls < 0:
        raise OutOfRange(f"{len(ids) - first} tokens, chunk={chunk}, controls={controls}: at least 3, 1 and 0.")
    clean = Run(model, ids)
    own = _values(clean, first, chunk)  # (3, L + 1, positions)
    draw = generator(seed)
    others = [_values(Run(model, _shuffled(ids, first, draw)), first, chunk).nanmean(2) for _ in range(controls)]
    made = record(model, "uncertainty", given, prompt=ids)
    label = "" if others else " (uncontrolled)"
    caption = f"Means over {len(ids) - first} positions of {prompt!r}, {model.name}; stream i enters layer i."
    tables = [_by_stream(own.nanmean(2), others, caption, label), _by_position(model, ids, first, own[:, -1])]
    return Result(f"Uncertainty of {model.name}{label}", _readings(own.nanmean(2), others, made), tables, made_by=made)


def _shuffled(ids: Sequence[int], first: int, draw: torch.Generator) -> list[int]:
    order = torch.randperm(len(ids) - first, generator=draw).tolist()
    return [*ids[:first], *(ids[first + i] for i in order)]


@torch.inference_mode()
def _values(clean: Run, first: int, chunk: int) -> Tensor:
    """Entropy, varentropy and curvature (3, L + 1, P) of the positions from `first` on; the ends have no curvature."""
    rows = []
    for stream in clean.streams:
        states = stream[0, first:]
        parts = [moments(head(clean.model, clean.normed(part[None])[0]).float()) for part in states.split(chunk)]
        rows.append(torch.stack([*torch.cat(parts, 1), curvature(states)]))
    return torch.stack(rows, 1)


def moments(logits: Tensor) -> Tensor:
    """Return mean and variance (2, P) of the surprise [bit, bit^2] under logits (P, V).

    >>> moments(torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]))[0]
    tensor([1.0000, 1.5850], dtype=torch.float64)
    """
    logs = logits.double().log_softmax(-1)
    p = logs.exp()
    surprise = torch.where(p > 0, -logs * BITS, 0.0)
    mean = (p * surprise).sum(-1)
    return torch.stack([mean, (p * (surprise - mean[:, None]).square()).sum(-1)])


def curvature(states: Tensor) -> Tensor:
    """Return the angle [degree] between the step to each position and the step from it, (P,); NaN at both ends.

    >>> curvature(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 3.0]])).tolist()
    [nan, 90.0, 0.0, nan]
    """
    steps = states.double().diff(dim=0)
    unit = steps / steps.norm(dim=1, keepdim=True).clamp_min(1e-30)
    cosines = (unit[1:] * unit[:-1]).sum(1).clamp(-1, 1)
    return torch.nn.functional.pad(torch.rad2deg(cosines.arccos()), (1, 1), value=math.nan)


def _by_stream(means: Tensor, others: Sequence[Tensor], caption: str, label: str) -> Table:
    rows = []
    shuffled = torch.stack(list(others)).mean(0) if others else None
    for stream in range(means.shape[1]):
        row: dict[str, object] = {"stream": stream}
        for i, name in enumerate(COLUMNS):
            row[name] = float(means[i, stream])
            if shuffled is not None:
                row[f"{name} shuffled"] = float(shuffled[i, stream])
        rows.append(row)
    figures = [_picture(rows, name, unit, caption) for name, unit in COLUMNS.items()]
    units = {key: unit for name, unit in COLUMNS.items() for key in (name, f"{name} shuffled")}
    return Table(rows, units=units, title=f"Uncertainty by layer{label}", note=caption, figures=figures)


def _picture(rows: Sequence[dict[str, object]], name: str, unit: str, caption: str) -> Figure:
    x = [row["stream"] for row in rows]
    series = [
        {"name": key, "x": x, "y": [row[key] for row in rows]} for key in (name, f"{name} shuffled") if key in rows[0]
    ]
    return Figure(
        "lines", {"series": series}, title=name.capitalize(), caption=caption, x="stream", y=f"{name} [{unit}]"
    )


def _by_position(model: Model, ids: Sequence[int], first: int, values: Tensor) -> Table:
    rows = []
    for i, (entropy, varentropy, angle) in enumerate(values.T.tolist()):
        row: dict[str, object] = {"position": first + i, "token": model.tokenizer.show(ids[first + i])}
        row |= {"entropy": entropy, "varentropy": varentropy, "curvature": None if math.isnan(angle) else angle}
        rows.append(row)
    pieces = [{"text": row["token"], "value": row["entropy"]} for row in rows]
    caption = "Entropy of the next token behind each token [bit], whole model."
    figure = Figure("tokens", {"pieces": pieces}, title="Entropy behind each token", caption=caption)
    return Table(rows, units=COLUMNS, title="The whole model, by position", figures=[figure])


def _readings(means: Tensor, others: Sequence[Tensor], made: dict[str, object]) -> list[Reading]:
    def straightened(values: Tensor) -> float:
        return float(values[2, 0] - values[2].min())

    at = int(means[2].argmin())
    note = f"mean curvature of stream 0 less that of stream {at}, the straightest"
    found = [Reading("straightened", straightened(means), "degree", record=made, note=note)]
    if others:
        values = [straightened(one) for one in others]
        mean = sum(values) / len(values)
        spread = "smallest and largest"
        found.append(
            Reading("control", mean, "degree", min(values), max(values), spread, made, "the same of shuffled tokens")
        )
    return found
