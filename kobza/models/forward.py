"""Running a model over text: windows, bits per token, log-probabilities.

Never holds the logits of a whole window: the head is applied to `chunk` positions at a time, and log-sum-exp is
taken in float32. Bits of tokens are float32; callers sum them in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kobza.models.gradients import OutputMoments, embedding_gradients, output_moments
from kobza.models.model import Model
from kobza.models.passes import BITS, CHUNK, OVERLAP, WINDOW, checked, fed_ids, logits, scored_states, windows
from kobza.models.states import final_states, head, head_fits
from kobza.models.stepping import Stepper, generate

__all__ = [
    "OutputMoments",
    "Stepper",
    "embedding_gradients",
    "fed_ids",
    "final_states",
    "generate",
    "head",
    "head_fits",
    "log_probabilities",
    "logits",
    "output_moments",
    "token_bits",
    "windows",
]


@torch.inference_mode()
def token_bits(
    model: Model, ids: Sequence[int] | Tensor, *, window: int = WINDOW, overlap: int = OVERLAP, chunk: int = CHUNK
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

    Raises:
        EmptyText: no tokens. OutOfRange: window, overlap or an id outside its range.
    """
    tokens = checked(model, ids, window, overlap, chunk)
    bits = torch.empty(len(tokens))
    for at, rows in logit_chunks(model, tokens, window, overlap, chunk):
        targets = tokens[at].to(rows.device)
        bits[at] = (_surprise(rows, targets) * BITS).cpu()
        del rows  # before the next chunk is made
    bits[without_context(model, len(tokens), window, overlap)] = math.log2(model.vocabulary)
    return bits


def log_probabilities(
    model: Model, ids: Sequence[int] | Tensor, *, window: int = WINDOW, overlap: int = OVERLAP, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor]]:
    """Return an iterator over the log2-probabilities of all V tokens at every position, a few positions at a time.

    Arguments and the treatment of windows are those of `token_bits`; equal arguments yield equal slices in an
    equal order for any two models whose tokenizers both have, or both lack, a start token.

    Yields:
        (positions, (t, V) float32): the rows for tokens ids[positions]. Each position comes once; positions without
        any context come first, as uniform rows.
    """
    return _log_probabilities(model, checked(model, ids, window, overlap, chunk), window, overlap, chunk)


def _log_probabilities(
    model: Model, tokens: Tensor, window: int, overlap: int, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    for position in without_context(model, len(tokens), window, overlap):
        yield slice(position, position + 1), torch.full((1, model.vocabulary), -math.log2(model.vocabulary))
    chunks = logit_chunks(model, tokens, window, overlap, chunk)
    while True:
        with torch.inference_mode():
            step = next(chunks, None)
            if step is None:
                return
            at, rows = step
            rows = (rows.log_softmax(-1) * BITS).cpu()
        yield from _runs(at, rows)


def without_context(model: Model, count: int, window: int, overlap: int) -> list[int]:
    """Return the positions that nothing stands before: with a start token none, else scored beginnings of windows."""
    if model.tokenizer.start_id is not None:
        return []
    return [begin for begin, score_from, _ in windows(count, window, overlap) if begin == score_from]


def logit_chunks(
    model: Model, tokens: Tensor, window: int, overlap: int, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (positions (t,), float32 logits (t, V) from which the tokens there are predicted), t <= chunk."""
    for at, states, is_logits in scored_states(model, tokens, window, overlap):
        for part in range(0, len(at), chunk):
            rows = states[part : part + chunk]
            yield at[part : part + chunk], (rows if is_logits else head(model, rows)).float()


def _surprise(rows: Tensor, targets: Tensor) -> Tensor:
    """Return log-sum-exp minus the target's logit, in nats; the logits (t, V) are overwritten.

    In place it is as fast as torch's cross_entropy, whose float32 sums over 49,152 ids read 1e-5 bits a token low.
    """
    wanted = rows.gather(-1, targets[:, None])[:, 0]
    top = rows.amax(-1, keepdim=True)
    return rows.sub_(top).exp_().sum(-1).log_().add_(top[:, 0]).sub_(wanted)


def _runs(at: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Split rows where their positions are not neighbors (a chunk may span two windows)."""
    breaks = (torch.nonzero(at[1:] != at[:-1] + 1).reshape(-1) + 1).tolist()
    for begin, end in zip([0, *breaks], [*breaks, len(at)], strict=True):
        yield slice(int(at[begin]), int(at[end - 1]) + 1), rows[begin:end]
