"""What objectives on pairs of answers share: batches of chosen and rejected ones, and how often the right one wins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kobza.training.base import Given, Job
from kobza.training.parts import answers
from kobza.training.parts.answers import Batch, Example
from kobza.training.parts.losses import token_logps
from kobza.training.parts.tuning import Policy

COLUMNS = ("prompt", "chosen", "rejected")
# from log p (2 B, T) of chosen and rejected answers, the rows of the batch and their numbers to (loss, further figures)
Loss = Callable[[Tensor, Batch, list[int]], tuple[Tensor, dict[str, float]]]


class Pairs:
    """Rows of prompt, chosen and rejected as examples.

    Args:
        policy: whose tokenizer.
        source: rows, or a file of them.
        length: tokens of an example.
        chat: put prompts into the chat format.
        held: share that is held out.
    """

    def __init__(self, policy: Policy, source: Given, *, length: int, chat: bool, held: float) -> None:
        train, kept = answers.read_rows(source, COLUMNS, held)
        tokenizer = policy.original.tokenizer
        self.policy, self.tokenizer = policy, tokenizer
        self.chosen, self.rejected = (
            answers.examples(train, tokenizer, column, chat=chat, most=length) for column in COLUMNS[1:]
        )
        self.held = [answers.examples(kept, tokenizer, column, chat=chat, most=length) for column in COLUMNS[1:]]
        self._reference: dict[int, Tensor] = {}

    @property
    def longest(self) -> int:
        """Tokens of the longest example to train on."""
        return max(map(len, (*self.chosen, *self.rejected)))

    @property
    def held_tokens(self) -> int:
        """Tokens of the held-out examples."""
        return sum(map(len, (*self.held[0], *self.held[1])))

    def job(self, loss: Loss, *, size: int, label: str) -> Job:
        """Return the job of an objective on these pairs."""
        module = self.policy.module

        def draw(generator: torch.Generator) -> dict[str, Tensor]:
            numbers = answers.draw(len(self.chosen), size, generator)
            # chosen and rejected side by side, so that every rank gets whole pairs
            return {"numbers": numbers}

        def of_batch(rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
            numbers = rows["numbers"].tolist()
            batch = self.batch(numbers)
            return loss(token_logps(module, batch.read, batch.targets, batch.mask), batch, numbers)

        def count(rows: dict[str, Tensor]) -> int:
            return int(self.batch(rows["numbers"].tolist()).read.numel())

        measure = self._measure if self.held[0] else None
        return self.policy.job(draw=draw, loss=of_batch, measure=measure, batch_tokens=count, label=label)

    def batch(self, numbers: list[int]) -> Batch:
        """Return the chosen answers of some rows, then the rejected ones."""
        return answers.batch([self.chosen[i] for i in numbers] + [self.rejected[i] for i in numbers])

    def reference(self, batch: Batch, numbers: list[int]) -> Tensor:
        """Return sums of log p (2, B) of the answers under the model as it was; each row is computed once."""
        if any(number not in self._reference for number in numbers):
            logps = self.policy.reference_logps(batch.read, batch.targets, batch.mask).sum(-1)
            for n, pair in zip(numbers, logps.reshape(2, -1).T, strict=True):
                self._reference[n] = pair.clone()
            if len(self._reference) == len(self.chosen):
                self.policy.rest()  # the model as it was has said all it will be asked
        return torch.stack([self._reference[n] for n in numbers], 1)

    def _measure(self) -> dict[str, float]:
        """Return bits per byte of held-out chosen answers, and the share of pairs in which the chosen is likelier."""
        bits, size, wins = 0.0, 0, 0
        for chosen, rejected in zip(*self.held, strict=True):
            good, bad = (summed(self.policy.module, [example])[0] for example in (chosen, rejected))
            bits -= float(good) / math.log(2)
            size += len(self.tokenizer.decode(chosen.answer))
            wins += float(good) / len(chosen.answer) > float(bad) / len(rejected.answer)
        return {"held": bits / max(1, size), "wins": wins / len(self.held[0])}


def summed(module: Any, examples: list[Example]) -> Tensor:
    """Return log p of whole answers (B,), in nats."""
    batch = answers.batch(examples)
    return token_logps(module, batch.read, batch.targets, batch.mask).sum(-1)
