"""Logit lens: what the model would say if it stopped after each layer.

Source: nostalgebraist (2020), "interpreting GPT: the logit lens"; its limits: Belrose et al. (2023),
arXiv:2303.08112 (early layers do not write in the head's language, so a low rank there proves nothing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.interventions.base import positions, prompt_ids, record, shown_tokens, token_id
from kobza.interventions.planner import Run
from kobza.models.model import Model
from kobza.models.states import head

BITS = 1 / math.log(2)


@torch.inference_mode()
def run(model: Model, *, prompt: str, token: str = "", at: str = "*", top: int = 3) -> Result:
    """Apply final norm and head to the stream that enters each layer, and to the one that leaves the last.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run.
        token: whose rank and probability are followed; without one, the likeliest of the whole model at each position.
        at: positions, `*` for each, `-1` or `last`, `2:5`, or a token in quotes.
        top: likeliest tokens listed [count, 1 ..].

    Returns:
        A Result with one table: per stream (0: the embedding, L: the whole model) and position the entropy of the
        prediction [bit], rank (0: likeliest) and probability of the token, and the likeliest tokens. Its picture is
        the probability, streams x positions. The last stream gives the model's own logits.

    Raises:
        BadValue: `token` is no single token. OutOfRange, NothingMatched, EmptyText: see `interventions.base`.

    Cost: one forward pass, and L + 1 applications of the head to every position asked.
    """
    given = locals()
    if not 1 <= top <= model.vocabulary:
        raise OutOfRange(f"top={top}: list 1 .. {model.vocabulary} tokens.")
    ids = prompt_ids(model, prompt)
    clean = Run(model, ids)
    chosen = sorted({p for group, _ in positions(model, ids, at) for p in group})
    whole = _logits(clean, len(clean.streams) - 1, chosen)
    followed = whole.argmax(-1) if not token else torch.full((len(chosen),), token_id(model, token))
    shown = shown_tokens(model, ids)
    rows = [
        row
        for stream in range(len(clean.streams))
        for row in _rows(model, stream, chosen, shown, _logits(clean, stream, chosen), followed, top)
    ]
    what = repr(token) if token else "the token the whole model finds likeliest"
    caption = f"Logit lens of {prompt!r}, probability of {what}, {model.name}; stream i enters layer i."
    units = {"entropy": "bit", "prob": "share", "rank": "count"}
    picture = _picture(rows, chosen, shown, caption)
    table = Table(rows, units=units, title="Logit lens", note=caption, figures=[picture])
    return Result(f"Logit lens of {model.name}", tables=[table], made_by=record(model, "lens", given, prompt=ids))


def _logits(clean: Run, stream: int, chosen: Sequence[int]) -> Tensor:
    """Logits (P, V) of a stream at some positions."""
    return head(clean.model, clean.normed(clean.streams[stream][:, list(chosen)])[0]).float()


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
