"""Divergence: how far an edited model's predictions lie from the original's.

Source: Kullback & Leibler (1951), doi:10.1214/aoms/1177729694; as a yardstick for edited models it is stricter than a
difference of code lengths, in which gains and losses of single tokens cancel (llama.cpp, pull request 5076).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import NotComparable, WrongVocabulary
from kobza.core.result import Reading
from kobza.measures.base import (
    CHUNKS,
    LIMIT,
    Given,
    Sample,
    fitting,
    reading,
    record,
    require_finite,
    require_tokens,
    take,
)
from kobza.models.forward import log_probabilities
from kobza.models.model import Model

CHUNK = 128  # positions whose distributions are held at once, for both models


def measure(
    model: Model,
    text: Given,
    *,
    original: Model,
    of: Literal["kl", "agreement"] = "kl",
    window: int = 1024,
    overlap: int = 256,
    limit: int = LIMIT,
    chunks: int = CHUNKS,
) -> Reading:
    """Compare the next-token distributions of two models over a text.

    Args:
        model: the edited model.
        text: the text that both read.
        original: the model it is compared with; its tokenizer must be the same.
        of: "kl" is the mean of KL(original || model) in bits per token, "agreement" the share of tokens at which both
            put the same token first.
        window: tokens the models see at most [tokens, 1 ..]; never more than the model was trained for.
        overlap: tokens of a window that the next one sees again [tokens, 0 .. window - 1].
        limit: bytes taken from the beginning of the text [bytes, 0 ..]; 0 takes all.
        chunks: parts of the text for the spread [count, 1 ..].

    Returns:
        A Reading with a bootstrap interval over chunks; the note gives the other of the two figures. A model compared
        with itself gives exactly 0 and exactly 1.

    Raises:
        WrongVocabulary: the tokenizers differ.
        NotFinite: a distribution is not finite; the message names the token.

    Cost: a forward pass of each model; memory for 128 distributions of each.
    """
    _require_equal_vocabularies(model, original)
    sample = take(model, text, limit=limit)
    require_tokens(sample)
    window, overlap, remark = fitting(model, window, overlap)
    kl, agrees = torch.empty(len(sample.ids)), torch.empty(len(sample.ids))
    for at, p, q in _both(original, model, sample, window, overlap):
        kl[at] = divergence(p, q)
        agrees[at] = (p.argmax(-1) == q.argmax(-1)).float()
    require_finite(kl, sample, model, "divergence from the original")
    how = record(model, sample, window=window, overlap=overlap, original=original.fingerprint)
    note = (
        f"{agrees.double().mean():.2%} agree on the first token" if of == "kl" else f"KL {kl.double().mean():.4f} bit"
    )
    name, unit, values = ("divergence", "bit/token", kl) if of == "kl" else ("agreement", "", agrees)
    per_chunk = _per_token(sample, values, chunks)
    return reading(name, per_chunk, unit, record=how, note="; ".join([note, *sample.remarks]) + remark)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) in bits (t,) of log2-probabilities (t, V); exactly 0 where both are equal."""
    share = p.exp2()
    return torch.where(share > 0, share * (p - q), torch.zeros((), device=p.device)).double().sum(-1).float().cpu()


def _both(
    original: Model, model: Model, sample: Sample, window: int, overlap: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    first = log_probabilities(original, sample.ids, window=window, overlap=overlap, chunk=CHUNK)
    second = log_probabilities(model, sample.ids, window=window, overlap=overlap, chunk=CHUNK)
    for (at, p), (also, q) in zip(first, second, strict=True):
        if p.shape != q.shape:
            raise NotComparable(
                f"the original gives {p.shape[-1]} probabilities at {at}, the model {q.shape[-1]} at {also}."
            )
        yield at, p, q


def _per_token(sample: Sample, values: Tensor, chunks: int) -> list[tuple[float, float]]:
    sums = sample.parts(values.double().numpy(), chunks)
    tokens = sample.parts([1.0] * len(values), chunks)
    return [(value, count) for (value, _), (count, _) in zip(sums, tokens, strict=True)]


def _require_equal_vocabularies(model: Model, original: Model) -> None:
    if model.tokenizer.fingerprint != original.tokenizer.fingerprint or model.vocabulary != original.vocabulary:
        raise WrongVocabulary(
            f"'{model.name}' ({len(model.tokenizer)} ids, {model.vocabulary} logits) and '{original.name}' "
            f"({len(original.tokenizer)} ids, {original.vocabulary} logits) have different vocabularies: their "
            "distributions cannot be compared token by token.",
            "Compare them by bits_per_byte, which holds across vocabularies.",
        )
