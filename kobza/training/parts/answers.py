"""Prompts and answers as tokens: rows of files to batches whose loss falls on the answers only.

Rows are padded on the right. A causal model does not look there, so no mask of attention is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, EmptyText
from kobza.tokens.base import Tokenizer
from kobza.training.parts import corpus


@dataclass(frozen=True)
class Example:
    """A prompt and one answer, as ids; the answer ends with the end mark where it is whole."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Rows of ids (B, T): what is read, what is to be predicted, and which of that belongs to an answer."""

    read: Tensor
    targets: Tensor
    mask: Tensor

    def halves(self) -> tuple[slice, slice]:
        """Return where the chosen and the rejected answers stand."""
        half = len(self.read) // 2
        return slice(None, half), slice(half, None)


def examples(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, answer: str, *, chat: bool, most: int
) -> list[Example]:
    """Return the rows' prompts with their answers in one column.

    Args:
        rows: with "prompt" (a string, or messages) and the answer's column.
        tokenizer: of the model.
        answer: name of the column.
        chat: put prompts into the model's chat format, where it has one.
        most: tokens of an example; a longer answer loses its end, and with it the end mark.

    Raises:
        BadValue: a prompt alone is longer than `most`. EmptyText: an answer is empty.
    """
    return [_example(row["prompt"], row[answer], tokenizer, chat, most, n) for n, row in enumerate(rows)]


def _example(prompt: Any, answer: str, tokenizer: Tokenizer, chat: bool, most: int, number: int) -> Example:
    front = prompt_ids(prompt, tokenizer, chat=chat)
    back = tokenizer.encode(answer)
    if not back:
        raise EmptyText(f"the answer of row {number} is empty.", "Remove the row.")
    if tokenizer.end_id is not None:
        back.append(tokenizer.end_id)
    if len(front) >= most:
        raise BadValue(f"the prompt of row {number} has {len(front)} tokens, {most} are allowed with its answer.")
    return Example(front, back[: most - len(front)])


def prompt_ids(prompt: Any, tokenizer: Tokenizer, *, chat: bool) -> list[int]:
    """Return a prompt as the model reads it: in its chat format, or plain behind the start token."""
    if chat and tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tokenizer.chat(messages)
    ids = tokenizer.encode(prompt, start=True)
    return ids or [tokenizer.end_id or 0]


def batch(chosen: Sequence[Example]) -> Batch:
    """Return examples as one batch, padded to the longest."""
    rows = [example.prompt + example.answer for example in chosen]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for n, (row, example) in enumerate(zip(rows, chosen, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        mask[n, len(example.prompt) : len(row)] = True
    return Batch(ids[:, :-1], ids[:, 1:], mask[:, 1:])


def draw(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return `size` different numbers below `count`, or all of them where there are fewer, in random order."""
    return torch.randperm(count, generator=generator)[:size]


def read_rows(source: Any, columns: Sequence[str], held: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to train on and those held out: the last ones, without any whose prompt is trained on.

    Raises:
        BadValue, EmptyText: a column is missing; no row.
    """
    found = corpus.rows(source, columns)
    cut = len(found) - int(held * len(found))
    train = found[:cut] or found
    seen = {str(row.get("prompt")) for row in train}
    return train, [row for row in found[cut:] if str(row.get("prompt")) not in seen]
