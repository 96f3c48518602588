"""Latent continuation: before it speaks, the model reads its own last state as input, instead of a token.

An experiment on models that were not trained for it: the state behind the final norm is no vector of the input table.
`match` says how it is made like one.

Source: Hao et al. (2024), Coconut, arXiv:2412.06769 (the state itself, with training); Zhang et al. (2025), Soft
Thinking, arXiv:2505.15778 (the expected vector).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak, spread
from kobza.decoding.shaping import Shape
from kobza.models.bare import BareStepper
from kobza.models.model import Model
from kobza.models.prompts import Prompt

Match = Literal["state", "norm", "expected"]


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    latents: int = 2,
    match: Match = "norm",
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt after some steps without words.

    Args:
        model: one that the bare step runs.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        latents: states read before the first token; 0 is plain decoding [count, 0 ..].
        match: the state itself, the state with the mean norm of the input table, or the mean of the input table
            weighted by the model's distribution.
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation; a note for each latent step gives the entropy behind it [bits].

    Raises:
        BadValue: a model or a backend that cannot be fed vectors.
        OutOfRange: an option outside its range, or prompt, latents and tokens exceed what the model was trained for.

    Cost: one step per latent and per token.
    """
    check_ranges(("latents", latents, latents >= 0, "0 or more"))
    shape = Shape(temperature=temperature).checked()

    def strategy(session: Session) -> Iterator[Event]:
        run = session.run
        if not isinstance(run, BareStepper):
            raise BadValue(f"'{model.name}' cannot be fed vectors: it takes a Llama-type model, by auto or bare.")
        generator = torch.Generator().manual_seed(seed)
        session.passes += 1 + latents
        logits, states = run.feed_states([session.ids])
        for n in range(latents):
            logits, states = run.feed_vectors(matched(model, states[:, -1:], logits, match))
            yield Note(f"latent {n + 1}: {spread(logits[0].log_softmax(-1))[0] / 0.6931:.2f} bits")
        row = session.checked(logits[0])
        while True:
            event = session.say(shape.pick(shape(row), generator), row)
            yield event
            if isinstance(event, str) or not session.left:
                return
            row = session.feed(session.ids[-1:])

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat, ahead=latents)


def matched(model: Model, state: Tensor, logits: Tensor, match: Match) -> Tensor:
    """Return the vector (1, 1, D) that is read in place of a token's.

    Args:
        model: whose table is matched.
        state: behind the final norm (1, 1, D).
        logits: behind it (1, V).
        match: see `generate`.
    """
    module: Any = model.module
    table: Tensor = module.get_input_embeddings().weight.detach()
    if match == "state":
        return state
    if match == "norm":
        return state * (table.float().norm(dim=-1).mean() / state.float().norm())
    return (logits.softmax(-1) @ table.float())[None]
