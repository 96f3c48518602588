"""Logit lens and tuned lens: what the model would say if it stopped after each layer.

The logit lens reads every stream through the final norm and the head. Early layers do not write in the head's language,
so a low rank there proves nothing; the tuned lens first maps each stream by an affine map of its own. The maps begin as
a ridge regression of the last stream on each stream, drawn to the identity (the logit lens), and are then fitted to the
model's own predictions by their divergence. How much they help is measured on tokens they were not fitted to.

Sources: nostalgebraist (2020), "interpreting GPT: the logit lens"; Belrose et al. (2023), arXiv:2303.08112 (tuned);
Din et al. (2023), arXiv:2303.09435 (maps by regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.interventions._collecting import collect, tokens_of
from kobza.interventions.base import generator, positions, prompt_ids, record, shown_tokens, token_id
from kobza.interventions.planner import Run
from kobza.models.fitting import fit
from kobza.models.model import Model
from kobza.models.passes import BITS
from kobza.models.states import head

BATCH = 16  # tokens per update: L x BATCH rows of logits are held at once
JUDGED = 96  # tokens on which the lenses are compared
RIDGE = 0.1  # of the mean square of a stream's coordinates: pulls the maps to the identity


@torch.inference_mode()
def run(
    model: Model,
    *,
    prompt: str,
    token: str = "",
    at: str = "*",
    top: int = 3,
    kind: Literal["logit", "tuned"] = "logit",
    text: str = "topics",
    sample: int = 2000,
    steps: int = 40,
    rate: float = 2e-4,
) -> Result:
    """Apply final norm and head to the stream that enters each layer, and to the one that leaves the last.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run.
        token: whose rank and probability are followed; without one, the likeliest of the whole model at each position.
        at: positions, `*` for each, `-1` or `last`, `2:5`, or a token in quotes.
        top: likeliest tokens listed [count, 1 ..].
        kind: logit, or tuned: through affine maps fitted to `text`.
        text: a named text or a file; of its tokens four parts in five fit the maps, the rest judges them.
        sample: tokens read from it [tokens, 10 ..].
        steps: updates behind the regression; 0 keeps the regression [count, 0 ..].
        rate: learning rate of the updates [per step, > 0 ..].

    Returns:
        A Result with one table: per stream (0: the embedding, L: the whole model) and position the entropy of the
        prediction [bit], rank (0: likeliest) and probability of the token, and the likeliest tokens. Its picture is
        the probability, streams x positions. The last stream gives the model's own logits. With kind=tuned a second
        table: the divergence [bit] from the model's own prediction, by stream, on held-out tokens, of the logit lens,
        of the regression and of the tuned lens.

    Raises:
        BadValue: `token` is no single token. OutOfRange, NothingMatched, EmptyText: see `interventions.base`.

    Cost: one forward pass, and L + 1 applications of the head to every position asked. kind=tuned: a
        pass over the sample, and per update L x 16 forward and backward applications of the head.
    """
    given = locals()
    if not 1 <= top <= model.vocabulary:
        raise OutOfRange(f"top={top}: list 1 .. {model.vocabulary} tokens.")
    ids = prompt_ids(model, prompt)
    clean = Run(model, ids)
    chosen = sorted({p for group, _ in positions(model, ids, at) for p in group})
    lenses = _tuned(clean, text, sample, steps, rate) if kind == "tuned" else None
    whole = _logits(clean, len(clean.streams) - 1, chosen)
    followed = whole.argmax(-1) if not token else torch.full((len(chosen),), token_id(model, token))
    shown = shown_tokens(model, ids)
    rows = [
        row
        for stream in range(len(clean.streams))
        for row in _rows(model, stream, chosen, shown, _logits(clean, stream, chosen, lenses), followed, top)
    ]
    what = repr(token) if token else "the token the whole model finds likeliest"
    caption = f"{kind.capitalize()} lens of {prompt!r}, probability of {what}, {model.name}; stream i enters layer i."
    units = {"entropy": "bit", "prob": "share", "rank": "count"}
    picture = _picture(rows, chosen, shown, caption)
    table = Table(rows, units=units, title=f"{kind.capitalize()} lens", note=caption, figures=[picture])
    tables = [table] if lenses is None else [table, lenses.judged]
    made = record(model, "lens", given, prompt=ids)
    return Result(f"{kind.capitalize()} lens of {model.name}", tables=tables, made_by=made)


@dataclass(frozen=True)
class _Lenses:
    """Affine maps of every stream but the last: x + x weights[i] + biases[i]; and how they were judged."""

    weights: Tensor  # (L, D, D)
    biases: Tensor  # (L, D)
    judged: Table


def _logits(clean: Run, stream: int, chosen: Sequence[int], lenses: _Lenses | None = None) -> Tensor:
    """Logits (P, V) of a stream at some positions."""
    states = clean.streams[stream][:, list(chosen)]
    if lenses is not None and stream < len(lenses.weights):
        states = states + states @ lenses.weights[stream] + lenses.biases[stream]
    return head(clean.model, clean.normed(states)[0]).float()


@torch.inference_mode(False)
def _tuned(clean: Run, text: str, sample: int, steps: int, rate: float) -> _Lenses:
    """Fit the maps to the first four fifths of a sample and judge them on the rest."""
    model, L = clean.model, clean.model.layers
    if steps < 0:
        raise OutOfRange(f"steps={steps}: 0 or more.")
    seen = collect(model, tokens_of(model, text, sample), ["resid_pre", f"resid_post.{L - 1}"])
    streams = torch.stack(list(seen.values.values()))  # (L + 1, N, D)
    cut = max(1, streams.shape[1] * 4 // 5)
    known, held = streams[:, :cut], streams[:, cut:][:, :JUDGED]
    maps = [_regression(one, known[-1]) for one in known[:-1]]
    weights, biases = (torch.stack(list(part)) for part in zip(*maps, strict=True))
    zero = torch.zeros(())
    found = {"logit": _divergences(clean, held, zero, zero), "regression": _divergences(clean, held, weights, biases)}
    draw = generator(0)

    def loss(_: int) -> Tensor:
        batch = known[:, torch.randint(cut, (BATCH,), generator=draw)]
        return _divergence(clean, batch[:-1] + batch[:-1] @ weights + biases[:, None], batch[-1]).mean()

    if steps:
        weights.requires_grad_(), biases.requires_grad_()
        fit([weights, biases], loss, steps=steps, rate=rate, label="lenses")
        weights, biases = weights.detach(), biases.detach()
    found["tuned"] = _divergences(clean, held, weights, biases)
    rows = [{"stream": i} | {name: float(values[i]) for name, values in found.items()} for i in range(L)]
    note = f"From the model's own prediction, mean over {held.shape[1]} held-out tokens of {text!r}, {model.name}."
    series = [{"name": name, "x": list(range(L)), "y": values.tolist()} for name, values in found.items()]
    figure = Figure("lines", {"series": series}, title="Divergence by lens", caption=note, x="stream", y="bit")
    units = dict.fromkeys(found, "bit")
    return _Lenses(weights, biases, Table(rows, units=units, title="Divergence by lens", note=note, figures=[figure]))


def _regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of y - x on x, both (N, D): weights (D, D) and bias (D,); weights 0 are the identity map."""
    mean, gap = x.double().mean(0), (y - x).double()
    centered = x.double() - mean
    gram = centered.T @ centered
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, centered.T @ (gap - gap.mean(0)))
    return weights.float(), (gap.mean(0) - mean @ weights).float()


def _divergence(clean: Run, states: Tensor, last: Tensor) -> Tensor:
    """KL (..., P) [bit] of what mapped states (..., P, D) predict from what the last stream (P, D) predicts."""
    own = head(clean.model, clean.normed(last)).float().log_softmax(-1)
    said = head(clean.model, clean.normed(states)).float().log_softmax(-1)
    return (own.exp() * (own - said)).sum(-1) * BITS


@torch.no_grad()
def _divergences(clean: Run, held: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Mean KL (L,) of every stream on held-out tokens, a stream at a time."""
    found = []
    for i, x in enumerate(held[:-1]):
        mapped = x + x @ weights[i] + biases[i] if weights.ndim else x
        found.append(_divergence(clean, mapped, held[-1]).double().mean())
    return torch.stack(found)


def _rows(
    model: Model, stream: int, chosen: Sequence[int], shown: Sequence[str], logits: Tensor, followed: Tensor, top: int
) -> list[dict[str, object]]:
    logs = logits.double().log_softmax(-1)
    own = logs.gather(1, followed[:, None])
    ranks = (logs > own).sum(-1).tolist()
    entropies = (-(logs.exp() * logs).sum(-1) * BITS).tolist()
    best = logs.topk(top).indices.tolist()
    return [
        {
            "stream": stream,
            "position": position,
            "token": shown[position],
            "entropy": max(0.0, entropies[i]),
            "followed": model.tokenizer.show(int(followed[i])),
            "rank": ranks[i],
            "prob": float(own[i].exp()),
            "top": " ".join(model.tokenizer.show(one) for one in best[i]),
        }
        for i, position in enumerate(chosen)
    ]


def _picture(rows: Sequence[dict[str, object]], chosen: Sequence[int], shown: Sequence[str], caption: str) -> Figure:
    T = len(chosen)
    values = [[row["prob"] for row in rows[i : i + T]] for i in range(0, len(rows), T)]
    data = {
        "values": values,
        "rows": [str(i) for i in range(len(values))],
        "columns": [f"{at} {shown[at]}" for at in chosen],
        "diverging": False,
    }
    return Figure("image", data, title="Probability, layer by layer", caption=caption, x="position", y="stream")
