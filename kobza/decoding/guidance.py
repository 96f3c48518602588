"""Classifier-free guidance: away from what the model would say without the prompt, or with another one.

Source: Sanchez et al. (2023), Stay on topic with Classifier-Free Guidance, arXiv:2306.17806; the same tokens as
transformers' `generate(guidance_scale=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kobza.decoding.base import Event, Generation, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.models.model import Model
from kobza.models.prompts import Prompt, prompt_ids


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    scale: float = 1.5,
    against: str = "",
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, its influence multiplied.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        scale: 1 changes nothing, more follows the prompt more [ratio].
        against: the text compared with; empty takes the last token of the prompt alone.
        temperature: divides the guided logits; 0 takes the greatest [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the texts into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: two steps with cache per token.
    """
    check_ranges(("scale", scale, scale == scale, "a number"))
    shape = Shape(temperature).checked()

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        other = session.begun(model)
        new = session.ids
        plain = prompt_ids(model, against, chat=chat) if against else session.ids[-1:]
        while session.left:
            logits = session.feed(new)
            without = other.feed([list(plain)])[0].cpu()
            event = session.say(shape.pick(shape(guided(logits, without, scale)), generator), logits)
            yield event
            if isinstance(event, str):
                return
            new = plain = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def guided(logits: Tensor, without: Tensor, scale: float) -> Tensor:
    """Return scale (log p - log p') + log p' (V,)."""
    plain = without.log_softmax(-1)
    return scale * (logits.log_softmax(-1) - plain) + plain
