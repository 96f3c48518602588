"""Sampling: draw the next token from the model's distribution, sharpened and cut off as asked.

Source: temperature and top-k (Fan et al. 2018, arXiv:1805.04833), top-p (Holtzman et al. 2019, arXiv:1904.09751),
min-p (Nguyen et al. 2024, arXiv:2407.01082), typical (Meister et al. 2022, arXiv:2202.00666), eta (Hewitt et al. 2022,
arXiv:2210.15191), repetition penalty (Keskar et al. 2019, arXiv:1909.05858); the distributions equal those of
transformers' logits processors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kobza.decoding.base import Event, Generation, Session, one_by_one, speak
from kobza.decoding.shaping import Shape
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
    typical: float = 1.0,
    eta: float = 0.0,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
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
        typical: keep tokens of the most typical surprisal up to this probability; 1 keeps all [fraction, 0 < .. 1].
        eta: leave out tokens under a bound that falls with the entropy; 0 keeps all [probability, 0 .. < 1].
        repetition: factor against tokens of prompt and text; 1 changes nothing [ratio, 0 < ..].
        frequency: subtracted from a logit for each time its token was said [logits].
        presence: subtracted once from the logit of a token that was said [logits].
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
    shape = Shape(temperature, top_k, top_p, min_p, typical, eta, repetition, frequency, presence).checked()
    generator = torch.Generator().manual_seed(seed)

    def strategy(session: Session) -> Iterator[Event]:
        start = session.prompt_tokens
        return one_by_one(lambda logits, text: shape.pick(shape(logits, text, start), generator))(session)

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)
