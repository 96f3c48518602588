"""Self-extend: read a prompt longer than the model was trained for, far positions counted in groups.

Source: Jin et al. (2024), arXiv:2401.01325.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.models.bare import misfit
from kobza.models.extending import ExtendedStepper
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    group: int = 4,
    window: int = 0,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt of up to `group` times the trained length.

    Args:
        model: one that the bare step runs, of rotary positions.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        group: far positions that count as one [positions, 1 ..]; 1 is plain decoding.
        window: distance up to which every position counts; 0 is a quarter of the trained length [positions, 0 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Raises:
        BadValue: a model that the bare step cannot run.
        OutOfRange: an option outside its range, or prompt and tokens exceed group x (trained - window) + window.

    Cost: attention twice, by torch; one step with cache per token.
    """
    if reason := misfit(model):
        raise BadValue(f"'{model.name}' does not fit the bare step: {reason}.", "Use another technique of decoding.")
    trained = model.context or 0
    check_ranges(
        ("group", group, group >= 1, "1 or more"),
        ("window", window, 0 <= window <= trained, f"0 to {trained}, the trained positions"),
    )
    window = window or max(1, trained // 4)
    shape = Shape(temperature=temperature).checked()

    def strategy(session: Session) -> Iterator[Event]:
        run = ExtendedStepper(model, group=group, window=window)
        generator = torch.Generator().manual_seed(seed)
        new = session.ids
        while session.left:
            session.passes += 1
            logits = session.checked(run.feed([new])[0])
            event = session.say(shape.pick(shape(logits), generator), logits)
            yield event
            if isinstance(event, str):
                return
            new = session.ids[-1:]

    reach = group * (trained - window) + window
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat, context=reach)
