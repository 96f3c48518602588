"""Entropy-driven sampling: the way a token is chosen follows from entropy and varentropy, as published and repaired.

Entropy H = mean surprisal, varentropy V = its variance, inside one next-token distribution, in bits. Four corners: both
low (follow the likeliest), H high and V low (pause), H low and V high (branch), both high (redraw), and a middle.

As published: the cut top-p sums from the unlikely end and so drops the likeliest tokens of a flat distribution, min-p
is masked into logits that are not used again, "agreement" is the mean distance of heads from their mean (it measures
disagreement), and masked scores count in the interaction strength while a prompt is read. Repaired: the cuts are those
of `models.rules`, agreement is 1 minus the distance relative to the largest possible, scores of unseen positions are
left out, and the corners are bounded by `low` and `high` alone, so that every place falls into one.

Source: xjdr (2024), github.com/xjdr-alt/entropix, sampler of 7 October 2024; thresholds and coefficients are its own.
There is no published evaluation; see LOG.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak, spread
from kobza.models import rules
from kobza.models.bare import BareStepper
from kobza.models.model import Model
from kobza.models.prompts import Prompt

LN2 = math.log(2)
TEMPERATURE, TOP_P, TOP_K, MIN_P = 0.666, 0.90, 27, 0.03  # of the source
DRAWS = 5  # of the source: candidates of the middle


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    version: Literal["published", "repaired"] = "repaired",
    low: float = 0.1,
    entropy: float = 3.0,
    varentropy: float = 5.0,
    flat: float = 5.0,
    pause: str = "",
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, choosing each token as entropy and varentropy advise.

    Args:
        model: a Llama-type model, whose attention can be read.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        version: as published, or with its defects repaired.
        low: under it, entropy [bits] and varentropy [bits^2] count as low where both must be [number, 0 ..].
        entropy: over it, entropy is high where varentropy is high too [bits, 0 ..].
        varentropy: over it, varentropy is high [bits^2, 0 ..].
        flat: over it, entropy is high where varentropy is low, under it low where varentropy is high [bits, 0 ..].
        pause: text whose first token is said at a pause, unless it was just said; empty draws warmer instead.
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws; equal seeds give equal tokens [number, 0 ..].

    Returns:
        A Generation; a note before every token names its corner: follow, pause, branch, redraw or middle.

    Raises:
        BadValue: the model is no Llama-type model of plain layers.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step per token, and the attention of the last layer once more.
    """
    for name, value in (("low", low), ("entropy", entropy), ("varentropy", varentropy), ("flat", flat)):
        check_ranges((name, value, value >= 0, "0 or more"))
    bounds = Bounds(low, entropy, varentropy, flat)
    said = model.tokenizer.encode(pause)[:1] if pause else []

    def strategy(session: Session) -> Iterator[Event]:
        run = session.run
        if not isinstance(run, BareStepper):
            raise BadValue(f"the attention of '{model.name}' cannot be read: it takes a Llama-type model, by auto.")
        generator = torch.Generator().manual_seed(seed)
        new = session.ids
        while session.left:
            logits, scores = run.feed_scores([list(new)])
            session.passes += 1
            row = session.checked(logits[0])
            seen = measured(row, scores[0], is_published=version == "published")
            corner = bounds.corner(seen, is_published=version == "published")
            if corner == "pause" and said and session.ids[-1] != said[0]:
                token = said[0]
            else:
                token = choose(row, seen, corner, generator, is_published=version == "published")
            event = session.say(token, row)
            yield Note(corner)
            yield event
            if isinstance(event, str):
                return
            new = session.ids[-1:]

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


@dataclass(frozen=True)
class Seen:
    """What is measured at one place: of the logits, and of the last layer's attention.

    Attributes:
        entropy, varentropy: of the next token [bits, bits^2].
        attention_entropy: mean over heads [bits]; attention_varentropy: its variance over heads [bits^2].
        agreement: of heads (published: their mean distance from their mean, which is disagreement).
        strength: mean size of the scores.
    """

    entropy: float
    varentropy: float
    attention_entropy: float
    attention_varentropy: float
    agreement: float
    strength: float


def measured(logits: Tensor, scores: Tensor, *, is_published: bool) -> Seen:
    """Measure logits (V,) and scores before the softmax (H, S) of the positions seen."""
    entropy, varentropy = spread(logits.log_softmax(-1))
    shares = scores.softmax(-1)
    surprisal = -(shares * shares.clamp(min=1e-10).log2()).sum(-1)  # (H,)
    distance = float((shares - shares.mean(0)).abs().mean() if is_published else
                     (shares - shares.mean(0)).abs().sum(-1).mean() / 2)  # fmt: skip
    strength = float(scores.abs().mean())
    return Seen(
        entropy / LN2, varentropy / LN2**2, float(surprisal.mean()), float(surprisal.var(correction=0)),
        distance if is_published else 1 - distance, strength,
    )  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """Where the corners begin; see `generate`."""

    low: float
    entropy: float
    varentropy: float
    flat: float

    def corner(self, seen: Seen, *, is_published: bool) -> str:
        """Return the corner of a place.

        >>> Bounds(0.1, 3.0, 5.0, 5.0).corner(Seen(0.05, 0.01, 0, 0, 0, 0), is_published=True)
        'follow'
        """
        H, V = seen.entropy, seen.varentropy
        if not is_published:
            if self.varentropy < V:
                return "redraw" if self.entropy < H else "branch"
            return "follow" if self.entropy > H else "pause"
        if self.low > H and self.low > V:
            return "follow"
        if self.flat < H and self.low > V:
            return "pause"
        if self.flat > H and self.varentropy < V:
            return "branch"
        if self.entropy < H and self.varentropy < V:
            return "redraw"
        return "middle"


def choose(logits: Tensor, seen: Seen, corner: str, generator: torch.Generator, *, is_published: bool) -> int:
    """Return a token from logits (V,) as the corner asks; coefficients of the source."""
    if corner == "follow":
        return int(logits.argmax())
    H, V, AH, AV = seen.entropy, seen.varentropy, seen.attention_entropy, seen.attention_varentropy
    warm, share, count, least = TEMPERATURE, TOP_P, TOP_K, MIN_P
    if corner == "pause":
        warm = min(1.5, warm * (1.3 + 0.2 * AH))
    elif corner == "branch":
        warm = min(1.5, warm * (1.2 + 0.3 * seen.strength))
        count = max(5, int(count * (1 + 0.5 * (1 - seen.agreement))))
    elif corner == "redraw":
        warm, share = max(2.0, warm * (2.0 + 0.5 * AV)), max(0.5, share - 0.2 * AH)
    else:
        warm *= 1 + 0.3 * (H + V) + 0.2 * (AH + AV) - 0.2 * seen.agreement
        share = min(max(share * (1 + 0.1 * AV), 0.1), 1.0)
        count = int(min(max(round(count * (1 + 0.3 * seen.strength - 0.2 * seen.agreement)), 1), 100))
        least = min(max(least * (1 - 0.5 * (H + V)), 0.01), 0.5)
    shares = cut(logits, warm, count, share, least, is_published=is_published)
    draws = torch.multinomial(shares, DRAWS if corner == "middle" else 1, replacement=True, generator=generator)
    # as published the score of a draw depends on its probability alone: the likeliest of five draws
    return int(draws[shares[draws].argmax()])


def cut(logits: Tensor, warm: float, count: int, share: float, least: float, *, is_published: bool) -> Tensor:
    """Return the probabilities (V,) that are drawn from.

    >>> flat = torch.zeros(20)
    >>> float(cut(flat + torch.arange(20) * 1e-3, 1.0, 20, 0.9, 0.0, is_published=True)[19])
    0.0
    """
    shaped = logits / max(warm, 1e-6)
    if not is_published:
        shaped = rules.min_p(rules.top_p(rules.top_k(shaped, count), min(share, 1.0)), least)
        return shaped.softmax(-1)
    top, ids = shaped.softmax(-1).topk(min(count, len(logits)))
    rising = top.flip(-1)
    kept = torch.where(rising.cumsum(-1) - rising > share * rising.sum(), 0.0, rising)
    return torch.zeros_like(logits).index_copy(0, ids.flip(-1), kept / kept.sum())
