"""Greedy decoding: always the likeliest token.

Source: the same tokens as transformers' `generate(do_sample=False)`. Small models fall into repetition with it
(Holtzman et al. 2019, arXiv:1904.09751).
"""

from __future__ import annotations

from kobza.decoding.base import Generation, one_by_one, speak
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    decided: bool = False,
    stop: list[str] | None = None,
    chat: bool = False,
) -> Generation:
    """Go on with a prompt by the likeliest token each time (the smallest id among equals).

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        decided: tell for every token the layer that decided it (`Step.decided`).
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.

    Returns:
        A Generation, to be iterated while it is made or read as a whole.

    Raises:
        OutOfRange: prompt and tokens exceed what the model was trained for; the message has the numbers.
        EmptyText: an empty prompt, and the vocabulary has no start token.

    Cost: one step with cache per token; with `decided` one read-out by the head more for every layer (SmolLM2: about
        six more steps).
    """
    strategy = one_by_one(lambda logits, _: int(logits.argmax()), is_deep=decided)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)
