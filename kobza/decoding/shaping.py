"""How a distribution is shaped before a token is drawn: the options that sampling and speculation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.decoding.base import check_ranges
from kobza.models import rules


@dataclass(frozen=True)
class Shape:
    """Rules from `models.rules` in the order of transformers; the neutral value of each changes nothing.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k, top_p, min_p, typical, eta: cuts.
        repetition: factor on tokens of prompt and text; 1 changes nothing.
        frequency, presence: subtracted from the logits of tokens said, per time and once.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    eta: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    def checked(self) -> Shape:
        """Return itself.

        Raises:
            OutOfRange: a rule outside its range; the message names it.
        """
        check_ranges(
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, 1 at most"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("typical", self.typical, 0 < self.typical <= 1, "more than 0, 1 at most"),
            ("eta", self.eta, 0 <= self.eta < 1, "0, and less than 1"),
            ("repetition", self.repetition, self.repetition > 0, "more than 0"),
        )
        return self

    def __call__(self, logits: Tensor, text: Sequence[int] = (), prompt_tokens: int = 0) -> Tensor:
        """Return the logits (V,) that are drawn from, -inf where a token is left out.

        Args:
            logits: the model's own (V,).
            text: prompt and what was said so far.
            prompt_tokens: how many of these are prompt.
        """
        if self.repetition != 1:
            logits = rules.repetition(logits, text, self.repetition)
        if self.frequency or self.presence:
            logits = rules.occurrence(logits, text[prompt_tokens:], self.frequency, self.presence)
        if self.temperature != 0:
            logits = rules.temper(logits, self.temperature)
        if self.top_k:
            logits = rules.top_k(logits, self.top_k)
        for value, neutral, rule in (
            (self.top_p, 1, rules.top_p),
            (self.min_p, 0, rules.min_p),
            (self.typical, 1, rules.typical),
            (self.eta, 0, rules.eta),
        ):
            if value != neutral:
                logits = rule(logits, value)
        return logits

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """Draw one id from shaped logits (V,); at temperature 0 the likeliest."""
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
