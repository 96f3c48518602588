"""DoLa: what the last layer knows more than an early one, the one that differs most.

Source: Chuang et al. (2023), DoLa, arXiv:2309.03883, equations 3 to 5. transformers had it until version 4.56.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak
from kobza.models import rules
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    layers: list[int] | None = None,
    share: float = 0.1,
    repetition: float = 1.2,
    stop: list[str] | None = None,
    chat: bool = False,
) -> Generation:
    """Go on with a prompt by the token that gained most between an early layer and the last.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        layers: early layers that may be contrasted, counted as blocks run; none takes every second one of the lower
            half [layers].
        share: tokens less likely than this share of the likeliest are left out [fraction, 0 < .. 1].
        repetition: factor against tokens of prompt and text, which the source recommends [ratio, 0 < ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.

    Returns:
        A Generation whose notes name the layer contrasted at every token.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.
        BadValue: the model's last norm is not known.

    Cost: one step per token and the head once more for every early layer.
    """
    early = layers if layers else list(range(2, model.layers // 2 + 1, 2)) or [1]
    check_ranges(
        ("share", share, 0 < share <= 1, "more than 0, 1 at most"),
        ("repetition", repetition, repetition > 0, "more than 0"),
        *(("layers", n, 1 <= n < model.layers, f"1 to {model.layers - 1}") for n in early),
    )

    def strategy(session: Session) -> Iterator[Event]:
        new = session.ids
        while session.left:
            found = session.run.feed_layers([list(new)], early)
            session.passes += 1
            mature = session.checked(found[model.layers][0].cpu())
            rows = {n: found[n][0].cpu() for n in early}
            layer = farthest(mature, rows)
            event = session.say(
                int(rules.repetition(contrast(mature, rows[layer], share), session.ids, repetition).argmax()), mature
            )
            yield Note(f"layer {layer}")
            yield event
            if isinstance(event, str):
                return
            new = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def farthest(mature: Tensor, early: dict[int, Tensor]) -> int:
    """Return the layer whose distribution has the greatest Jensen-Shannon divergence from the last one's."""
    return max(early, key=lambda n: divergence(mature, early[n]))


def divergence(one: Tensor, other: Tensor) -> float:
    """Return the Jensen-Shannon divergence of the distributions of two logits (V,) [nats].

    >>> round(divergence(torch.tensor([0.0, -100.0]), torch.tensor([-100.0, 0.0])) / math.log(2), 3)
    1.0
    """
    p, q = one.softmax(-1), other.softmax(-1)
    middle = ((p + q) / 2).clamp(min=1e-30).log()
    halves = [(x * (x.clamp(min=1e-30).log() - middle)).sum() for x in (p, q)]
    return float(sum(halves) / 2)


def contrast(mature: Tensor, early: Tensor, share: float) -> Tensor:
    """Return log p_last - log p_early (V,), -inf where p_last is under `share` of its maximum."""
    late = mature.log_softmax(-1)
    return (late - early.log_softmax(-1)).masked_fill(late < late.max() + math.log(share), -torch.inf)
