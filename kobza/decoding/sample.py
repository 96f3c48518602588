"""Sampling: draw the next token from the model's distribution, sharpened and cut off as asked.

Source: temperature and top-k (Fan et al. 2018, arXiv:1805.04833), top-p (Holtzman et al. 2019, arXiv:1904.09751),
min-p (Nguyen et al. 2024, arXiv:2407.01082); the distributions equal those of transformers' logits processors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.decoding import base
from kobza.decoding.base import Generation, run
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt by drawing each token.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        top_k: keep the likeliest tokens; 0 keeps all [count, 0 ..].
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all [fraction, 0 < .. 1].
        min_p: keep tokens at least this often as likely as the likeliest; 0 keeps all [fraction, 0 .. 1].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws; equal seeds give equal tokens [number, 0 ..].

    Returns:
        A Generation, to be iterated while it is made or read as a whole.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.
        EmptyText: an empty prompt, and the vocabulary has no start token.

    Cost: one step with cache per token.
    """
    _check(temperature, top_k, top_p, min_p)
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        if temperature == 0:
            return int(logits.argmax())
        shaped = shape(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        return int(torch.multinomial(shaped.softmax(-1), 1, generator=generator))

    return run(model, prompt, choose, tokens=tokens, stop=stop or (), chat=chat)


def shape(logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Return the logits (V,) that are drawn from, -inf where a token is left out."""
    logits = base.temper(logits, temperature)
    if top_k:
        logits = base.top_k(logits, top_k)
    if top_p < 1:
        logits = base.top_p(logits, top_p)
    return base.min_p(logits, min_p) if min_p else logits


def _check(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    for name, value, is_allowed, allowed in (
        ("temperature", temperature, temperature >= 0, "0 or more"),
        ("top_k", top_k, top_k >= 0, "0 (all) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "more than 0, 1 at most"),
        ("min_p", min_p, 0 <= min_p <= 1, "0 to 1"),
    ):
        if not is_allowed:
            raise OutOfRange(f"{name} is {value}; allowed is {allowed}.")
