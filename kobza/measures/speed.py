"""Speed: tokens per second, reading a prompt and generating apart.

The two are different work: a prompt is read as one matrix product per weight, generating reads every weight for each
token and is bound by memory bandwidth.

Source: the two phases are timed apart as in llama.cpp's llama-bench ("pp" and "tg").
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Literal

import torch

from kobza.core.errors import OutOfRange
from kobza.core.progress import progress
from kobza.core.result import Reading
from kobza.measures.base import Given, record, require_tokens, take
from kobza.models.model import Model
from kobza.models.stepping import plain

BYTES_PER_TOKEN = 16  # enough text for the prompt in most vocabularies and scripts


@dataclass(frozen=True)
class Speeds:
    """Tokens per second of every repeat."""

    prompt: list[float]
    generation: list[float]


def measure(
    model: Model,
    text: Given,
    *,
    of: Literal["generation", "prompt"] = "generation",
    prompt_tokens: int = 128,
    tokens: int = 32,
    repeats: int = 5,
) -> Reading:
    """Time a model on this machine, as it is now.

    Args:
        model: the model.
        text: its beginning is the prompt.
        of: which of the two speeds is the value; the note gives the other.
        prompt_tokens: tokens read at once [tokens, 1 ..]; with those generated no more than the model was trained for.
        tokens: tokens then generated one by one, greedily [tokens, 1 ..]; a quarter of the trained context at most.
        repeats: how often, after one run that does not count [count, 1 ..].

    Returns:
        A Reading in tokens per second: the median of the repeats, with the slowest and the fastest as interval. The
        record names the threads. Compare only figures of one machine in one state: take both in one run.

    Raises:
        OutOfRange: a count below one.
        EmptyText: the text is shorter than the prompt.

    Cost: repeats + 1 times reading and generating.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("tokens", tokens), ("repeats", repeats)):
        if value < 1:
            raise OutOfRange(f"{name} is {value}; allowed is 1 or more.")
    remark = ""
    if model.context and prompt_tokens + tokens >= model.context:
        remark = "; the model was trained for no longer text"
        tokens = max(1, min(tokens, model.context // 4))
        prompt_tokens = max(1, min(prompt_tokens, model.context - 1 - tokens))
    sample = take(model, text, limit=BYTES_PER_TOKEN * prompt_tokens)
    require_tokens(sample, prompt_tokens)
    speeds = run(model, sample.ids[:prompt_tokens], tokens=tokens, repeats=repeats)
    chosen, other = (speeds.generation, speeds.prompt) if of == "generation" else (speeds.prompt, speeds.generation)
    name = "prompt" if of == "generation" else "generation"
    how = record(model, None, of=of, prompt_tokens=prompt_tokens, tokens=tokens, repeats=repeats)
    return Reading(
        "speed",
        statistics.median(chosen),
        "token/s",
        min(chosen),
        max(chosen),
        f"slowest and fastest of {repeats} repeats",
        how,
        f"{of}, {torch.get_num_threads()} threads; {name} {statistics.median(other):.1f} token/s; "
        f"{prompt_tokens} read, {tokens} generated{remark}",
    )


def run(model: Model, ids: list[int], *, tokens: int, repeats: int) -> Speeds:
    """Return the speeds of every repeat; the first run warms up and does not count."""
    runs = [_once(model, ids, tokens) for _ in progress(range(repeats + 1), "timing")][1:]
    return Speeds([len(ids) / prompt for prompt, _ in runs], [tokens / generation for _, generation in runs])


@torch.inference_mode()
def _once(model: Model, ids: list[int], tokens: int) -> tuple[float, float]:
    """Return the seconds of reading `ids` and of generating `tokens` more."""
    stepper = plain(model)
    begin = time.perf_counter()
    logits = stepper.feed(torch.tensor([ids], device=model.device))
    read = time.perf_counter()
    for _ in range(tokens):
        logits = stepper.feed(logits.argmax(-1, keepdim=True))
    return read - begin, time.perf_counter() - read
