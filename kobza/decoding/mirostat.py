"""Mirostat 2: hold the surprisal of what is said near a target by moving the cut of the distribution.

Source: Basu et al. (2020), Mirostat, arXiv:2007.14966 (algorithm 2 of its code, as in llama.cpp): the cut starts at
twice the target and moves by `rate` times the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kobza.decoding.base import Generation, check_ranges, one_by_one, speak
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    target: float = 5.0,
    rate: float = 0.1,
    temperature: float = 1.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt at a steady surprisal.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        target: mean surprisal aimed at [bits, 0 ..].
        rate: share of the error by which the cut moves after each token [fraction, 0 .. 1].
        temperature: divides the logits before the cut [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws; equal seeds give equal tokens [number, 0 ..].

    Returns:
        A Generation.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step with cache per token.
    """
    check_ranges(
        ("target", target, target >= 0, "0 or more"),
        ("rate", rate, 0 <= rate <= 1, "0 to 1"),
        ("temperature", temperature, temperature > 0, "more than 0"),
    )
    generator = torch.Generator().manual_seed(seed)
    cut = 2 * target

    def choose(logits: Tensor, _: Sequence[int]) -> int:
        nonlocal cut
        kept = below(logits / temperature, cut).softmax(-1)
        token = int(torch.multinomial(kept, 1, generator=generator))
        cut -= rate * (-math.log2(float(kept[token])) - target)
        return token

    return speak(model, prompt, one_by_one(choose), tokens=tokens, stop=stop or (), chat=chat)


def below(logits: Tensor, bits: float) -> Tensor:
    """Keep the tokens (V,) of at most so many bits of surprisal, and always the likeliest.

    >>> below(torch.tensor([0.5, 0.25, 0.25]).log(), 1.5).exp()
    tensor([0.5000, 0.0000, 0.0000])
    """
    surprisal = -logits.log_softmax(-1) / math.log(2)
    return logits.masked_fill((surprisal > bits) & (logits < logits.max()), -torch.inf)
