"""Contrastive decoding: what a model knows more than a worse one.

Source: Li et al. (2022), Contrastive Decoding, arXiv:2210.15097, in the form of O'Brien & Lewis (2023),
arXiv:2309.09117: (1 + beta) log p - beta log p', among the tokens at least `share` times as likely as the likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kobza.core.errors import WrongVocabulary
from kobza.decoding.base import Event, Generation, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    amateur: str = "self",
    beta: float = 0.5,
    share: float = 0.1,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, turned away from what a worse model would say.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        amateur: the worse model, as `kobza.open` takes it; "self" is the model itself, which changes nothing.
        beta: strength of the contrast; 0 changes nothing [ratio, 0 ..].
        share: tokens less likely than this share of the likeliest are left out [fraction, 0 .. 1].
        temperature: divides the contrasted logits; 0 takes the greatest [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation.

    Raises:
        WrongVocabulary: the amateur has another vocabulary.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step of each model per token.
    """
    check_ranges(("beta", beta, beta >= 0, "0 or more"), ("share", share, 0 <= share <= 1, "0 to 1"))
    shape = Shape(temperature).checked()
    worse = model if amateur == "self" else _opened(amateur, model)

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        other = session.begun(worse)
        new = session.ids
        while session.left:
            logits = session.feed(new)
            against = other.feed([list(new)])[0].cpu()
            event = session.say(shape.pick(shape(contrasted(logits, against, beta, share)), generator), logits)
            yield event
            if isinstance(event, str):
                return
            new = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def contrasted(logits: Tensor, against: Tensor, beta: float, share: float) -> Tensor:
    """Return the contrasted logits (V,), -inf for tokens under `share` of the likeliest."""
    own = logits.log_softmax(-1)
    out = (1 + beta) * own - beta * against.log_softmax(-1)
    return out.masked_fill(own < own.max() + math.log(share), -torch.inf) if share else out


def _opened(name: str, model: Model) -> Model:
    from kobza.models import opening

    worse = opening.open(name)
    if worse.tokenizer.fingerprint != model.tokenizer.fingerprint or worse.vocabulary != model.vocabulary:
        raise WrongVocabulary(
            f"the amateur '{worse.name}' has {worse.vocabulary} tokens of its own, '{model.name}' {model.vocabulary}.",
            "Take a smaller model of the same family.",
        )
    return worse
