"""Sampling held to an alphabet: only characters that occur in a text can be said.

A model whose vocabulary is larger than its data has ids, and with bytes among them whole scripts, that it was never
taught; what is drawn from their share of the distribution is noise. The cut renormalizes the rest, token by token.

Source: kobza's own; the automaton over bytes is that of constrained decoding (Willard & Louf 2023, arXiv:2307.09702).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kobza.core.texts import text as open_text
from kobza.decoding.base import Event, Generation, Session, speak
from kobza.decoding.shaping import Shape
from kobza.models.alphabet import Alphabet
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    of: str = "topics",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt by drawing among the tokens that consist of a text's characters.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        of: the text whose characters are allowed: a file, or a name such as "topics" or "ukrainian".
        temperature: divides the logits; 0 takes the likeliest allowed token [ratio, 0 ..].
        top_k: keep the likeliest allowed tokens; 0 keeps all [count, 0 ..].
        top_p: keep the likeliest that together reach this probability; 1 keeps all [fraction, 0 < .. 1].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws; equal seeds give equal tokens [number, 0 ..].

    Returns:
        A Generation; its log-probabilities are the model's own, not those of the cut distribution.

    Raises:
        BadValue: no token consists of these characters.

    Cost: one step per token, and a look at every token's bytes for each way in which a character can be begun.
    """
    shape = Shape(temperature, top_k, top_p).checked()
    letters = Alphabet(model.tokenizer, open_text(of).string)

    def strategy(session: Session) -> Iterator[Event]:
        generator = torch.Generator().manual_seed(seed)
        new, begun = session.ids, b""
        while session.left:
            logits = session.feed(new)
            token = shape.pick(shape(letters.cut(logits, begun)), generator)
            event = session.say(token, logits)
            yield event
            if isinstance(event, str):
                return
            begun = letters.after(begun, token)
            new = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)
