"""Running a model over text: windows, bits per token, states, head, cached steps, sampling.

Never holds the logits of a whole window: the head is applied to `chunk` positions at a time, and log-sum-exp is
taken in float32. Bits of tokens are float32; callers sum them in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from kobza.core.errors import EmptyText, OutOfRange
from kobza.models.model import Model

BITS = 1 / math.log(2)  # nats to bits
BATCH = 1024  # positions fed at once, when windows are shorter


def windows(n_tokens: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cut a text into windows: (begin, score_from, end) of each, in tokens.

    A window reads the tokens begin .. end-1, at most `window`, and gives figures for score_from .. end-1; the
    `overlap` tokens before are context only. Every token is scored exactly once.

    >>> windows(10, 4, 1)
    [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    """
    if window < 1 or not 0 <= overlap < window:
        raise OutOfRange(f"window {window} and overlap {overlap}: need 0 <= overlap < window, window >= 1.")
    cut = [(0, 0, min(window, n_tokens))]
    while cut[-1][2] < n_tokens:
        end = cut[-1][2]
        cut.append((end - overlap, end, min(end - overlap + window, n_tokens)))
    return cut


@torch.inference_mode()
def token_bits(
    model: Model, ids: Sequence[int] | Tensor, *, window: int = 1024, overlap: int = 256, chunk: int = 128
) -> Tensor:
    """Return the bits each token costs, given the tokens before it in its window.

    Every window is begun by the start token, if the tokenizer has one. Without one the first token of a window has
    no context and, where it is scored, costs log2 V bits: every token alike.

    Args:
        model: the model asked.
        ids: the T tokens of a text, without a start token.
        window: tokens read at once [count, 1 .. the trained context].
        overlap: tokens of a window that are context only [count, 0 .. window - 1].
        chunk: positions whose logits are held at once [count, 1 ..].

    Returns:
        (T,) float32, on the CPU. Sum it in float64.
    """
    tokens = _checked(model, ids, window)
    bits = torch.empty(len(tokens))
    for at, targets, states in _scored(model, tokens, window, overlap, chunk):
        logits = head(model, states).float()
        cost = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
        bits[at] = (cost * BITS).cpu()
    bits[_without_context(model, len(tokens), window, overlap)] = math.log2(model.vocabulary)
    return bits


@torch.inference_mode()
def final_states(model: Model, ids: Tensor) -> Tensor:
    """Return the states behind the final norm, (B, T, D), for ids (B, T)."""
    states: Tensor = model.module.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator, union-attr]
    return states


def head(model: Model, states: Tensor) -> Tensor:
    """Return the logits (..., V) of final states (..., D), with the family's own scale and soft cap.

    It is the module's own forward, with the body replaced by one that hands back the states.
    """
    flat = states.reshape(1, -1, states.shape[-1])
    logits: Tensor = _headed(model.module, flat)(input_ids=None, use_cache=False).logits
    return logits.reshape(*states.shape[:-1], -1)


class _Given(nn.Module):
    """A body that returns given states, whatever it is asked."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    @property
    def decoder(self) -> _Given:  # OPT calls the decoder within its body
        return self

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


def _headed(module: nn.Module, states: Tensor) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin._modules[str(module.base_model_prefix)] = _Given(states)
    return twin


def _checked(model: Model, ids: Sequence[int] | Tensor, window: int) -> Tensor:
    tokens = torch.as_tensor(ids, dtype=torch.long).reshape(-1)
    if not len(tokens):
        raise EmptyText("there is not a single token to measure.")
    if model.context and min(window, len(tokens)) > model.context:
        raise OutOfRange(f"window {window} exceeds the {model.context} positions that {model.name!r} was trained for.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.vocabulary:
        raise OutOfRange(f"token ids {low} .. {high} do not fit the {model.vocabulary} ids of {model.name!r}.")
    return tokens


def _without_context(model: Model, count: int, window: int, overlap: int) -> list[int]:
    if model.tokenizer.start_id is not None:
        return []
    return [begin for begin, score_from, _ in windows(count, window, overlap) if begin == score_from]


def _scored(
    model: Model, tokens: Tensor, window: int, overlap: int, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (positions (t,), targets (t,), final states (t, D)) of the scored tokens that have a context."""
    start = model.tokenizer.start_id
    cut = windows(len(tokens), window, overlap)
    for _, same in groupby(cut, key=lambda w: (w[2] - w[0], w[1] - w[0])):
        group = list(same)
        at_once = max(1, BATCH // window)
        for first in range(0, len(group), at_once):
            yield from _batch(model, tokens, group[first : first + at_once], start, chunk)


def _batch(
    model: Model, tokens: Tensor, group: list[tuple[int, int, int]], start: int | None, chunk: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    fed = torch.stack([fed_ids(tokens[begin:end], start) for begin, _, end in group])
    if not fed.shape[1]:
        return
    states = final_states(model, fed.to(model.device))
    shift = 0 if start is not None else 1  # state i predicts token begin + i + shift
    first = [max(score_from, begin + shift) for begin, score_from, _ in group]
    positions = torch.cat([torch.arange(f, end) for f, (_, _, end) in zip(first, group, strict=True)])
    skipped = first[0] - group[0][0] - shift
    flat = states[:, skipped:].reshape(-1, states.shape[-1])
    for part in range(0, len(flat), chunk):
        at = positions[part : part + chunk]
        yield at, tokens[at].to(model.device), flat[part : part + chunk]


def fed_ids(tokens: Tensor, start: int | None) -> Tensor:
    """Return what is fed to score a window: the start token, if there is one, and all tokens but the last."""
    body = tokens[:-1]
    return body if start is None else torch.cat([torch.tensor([start]), body])
