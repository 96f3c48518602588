"""Cutting a text into windows and sending them through the body of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from kobza.core.errors import EmptyText, OutOfRange
from kobza.models.model import Model
from kobza.models.states import final_states, head_fits

BATCH = 256  # positions fed at once, when windows are shorter; more gains no time on a CPU and costs memory
WINDOW, OVERLAP, CHUNK = 1024, 256, 128
BITS = 1 / math.log(2)  # nats to bits


def windows(n_tokens: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cut a text into windows: (begin, score_from, end) of each, in tokens.

    A window reads the tokens begin .. end-1, at most `window`, and gives figures for score_from .. end-1; the
    `overlap` tokens before are context only. Every token is scored exactly once.

    >>> windows(10, 4, 1)
    [(0, 0, 4), (3, 4, 7), (6, 7, 10)]

    Raises:
        OutOfRange: not 0 <= overlap < window.
    """
    if window < 1 or not 0 <= overlap < window:
        raise OutOfRange(f"window {window} and overlap {overlap}: need 0 <= overlap < window and window >= 1.")
    cut = [(0, 0, min(window, n_tokens))]
    while cut[-1][2] < n_tokens:
        end = cut[-1][2]
        cut.append((end - overlap, end, min(end - overlap + window, n_tokens)))
    return cut


def checked(model: Model, ids: Sequence[int] | Tensor, window: int, overlap: int = 0, chunk: int = CHUNK) -> Tensor:
    """Return the ids as a tensor (T,) after checking them, the window and the chunk (errors: see `token_bits`)."""
    tokens = torch.as_tensor(ids, dtype=torch.long).reshape(-1).cpu()
    if not len(tokens):
        raise EmptyText("there is not a single token to measure.", "Give a text of at least one byte.")
    windows(1, window, overlap)
    if chunk < 1:
        raise OutOfRange(f"chunk {chunk} is not a number of positions: give 1 or more.")
    if model.context and window > model.context:
        raise OutOfRange(
            f"a window of {window} tokens exceeds the {model.context} positions that {model.name!r} was trained for.",
            f"Give a window of at most {model.context}.",
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.vocabulary:
        raise OutOfRange(f"token ids {low} .. {high} do not fit the {model.vocabulary} ids of {model.name!r}.")
    return tokens


def logits(model: Model, ids: Tensor) -> Tensor:
    """Return the module's own logits (B, T, V) for ids (B, T), all at once: for short inputs."""
    with torch.inference_mode():
        out: Tensor = model.module(input_ids=ids.to(model.device), use_cache=False).logits
    return out


def scored_states(model: Model, tokens: Tensor, window: int, overlap: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield (positions (n,), final states (n, D), False), batch by batch; short windows of equal length go together.

    For a family whose head cannot be applied apart, (positions, logits (n, V), True).
    """
    start = model.tokenizer.start_id
    cut = windows(len(tokens), window, overlap)
    for _, same in groupby(cut, key=lambda w: (w[2] - w[0], w[1] - w[0])):
        group = list(same)
        at_once = max(1, BATCH // window)
        for first in range(0, len(group), at_once):
            batch = group[first : first + at_once]
            fed = torch.stack([fed_ids(tokens[begin:end], start) for begin, _, end in batch])
            if fed.shape[1]:
                at, kept = positions(batch, start)
                run = final_states if head_fits(model) else logits
                rows = run(model, fed)[:, kept:]
                yield at, rows.reshape(-1, rows.shape[-1]), run is logits


def positions(batch: list[tuple[int, int, int]], start: int | None) -> tuple[Tensor, int]:
    """Return the scored positions of a batch of equal windows, and how many leading states of each are not needed."""
    shift = 0 if start is not None else 1  # state i predicts token begin + i + shift
    first = [max(score_from, begin + shift) for begin, score_from, _ in batch]
    at = torch.cat([torch.arange(f, end) for f, (_, _, end) in zip(first, batch, strict=True)])
    return at, first[0] - batch[0][0] - shift


def fed_ids(tokens: Tensor, start: int | None) -> Tensor:
    """Return what is fed to score a window: the start token, if there is one, and all tokens but the last."""
    return tokens[:-1] if start is None else torch.cat([torch.tensor([start]), tokens[:-1]])
