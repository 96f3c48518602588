"""What a run will take, said before it begins: bytes by counting, seconds by timing its matrix products alone.

Beside the products stand passes over the states of a block and over the scores of its attention, counted in softmaxes,
and what a block spends on calls, counted in additions of a few numbers; both are timed on the spot, so that the
constants, which were measured on one processor, hold for others. On ten models from 1 x 32 to 8 x 512 the actual
seconds were 0.46 to 1.9 of the predicted ones, the bytes 0.6 to 1.3, less where all is 10 MB (`bench/training.py`).

Source: 6 multiplications per weight and token, Kaplan et al. (2020), arXiv:2001.08361, section 2.1; for small models
the vocabulary, the updates and the many small calls weigh more than that rule says, so they are counted apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kobza.training.parts.losses import rows_at_once
from kobza.training.parts.optimizers import is_inner
from kobza.training.parts.schedules import Budget

MOMENTS = {"adamw": 2, "muon": 1.2, "adafactor": 0.1, "schedule_free": 2, "galore": 0.7}  # numbers per weight
LONG = 0.5  # seconds from which a look is worth a word
_CALLS = 1000  # additions of a few numbers that take as long as the calls of a block, forward and backward
_PASSES = 36  # softmaxes of one number that take as long as norms, activations and casts for one of the B T D states
_SCORES = 36  # the same for one of the B H T T scores
_UPDATE = 6  # passes over a weight of an update: gradient, two moments and weight read, three written
_ITERATIONS = 5  # of Muon's orthogonalization, torch's default
_PROGRAM = 32_000_000  # bytes that the libraries of products take when first used


@dataclass(frozen=True)
class Sizing:
    """A prediction.

    Attributes:
        parameters: numbers in the model; `trained` of them change.
        trained: see there.
        bytes: weights, gradients, optimizer and activations.
        seconds: of one step.
        look: seconds of one look at the held-out text.
    """

    parameters: int
    trained: int
    bytes: int
    seconds: float
    look: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.trained:,} of {self.parameters:,} parameters are trained; about {self.bytes / 1e6:,.0f} MB beside "
            f"the program, {self.seconds:.3f} s a step"
        )

    def told(self, limit: Budget) -> str:
        """Return the prediction with what it means for a whole run, without looks and checkpoints."""
        most = min(limit.steps or math.inf, (limit.seconds or math.inf) / max(self.seconds, 1e-9))
        whole = f", {_lasting(most * self.seconds)} for {most:,.0f} steps" if most < math.inf else ""
        look = f", {_lasting(self.look)} a look at the held-out part" if self.look > LONG else ""
        return f"{self}{whole}{look}"


def _lasting(seconds: float) -> str:
    """Return a time in words.

    >>> _lasting(40), _lasting(600), _lasting(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def predict(
    module: Any,
    *,
    tokens: int,
    optimizer: str,
    precision: torch.dtype,
    calls: int = 1,
    context: int = 0,
    look: int = 0,
    drawn: tuple[int, int] = (0, 0),
) -> Sizing:
    """Predict memory and time.

    Args:
        module: the model; its parameters say which are trained.
        tokens: of one batch [count, 1 ..].
        optimizer: its name.
        precision: of the products.
        calls: batches of one step, forward passes of a second model counted as a third [count, 1 ..].
        context: tokens of a window [count, 0 ..]; 0: those of the batch, 128 at most.
        look: tokens of a look at the held-out text [count, 0 ..].
        drawn: answers that a step draws side by side, and tokens of each, one after the other [count, 0 ..].

    Cost: about half of one step.
    """
    every = list({id(p): p for p in module.parameters()}.values())
    trained = [p for p in every if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    config = module.config.get_text_config()
    vocabulary, blocks = int(config.vocab_size), int(config.num_hidden_layers)
    states = numbers * (1 + MOMENTS[optimizer]) * 4
    # per token and block about 34 numbers of width D are kept for the way back (Korthikanti et al. 2022, eq. 1)
    kept = 34 * config.hidden_size * blocks * tokens * (precision.itemsize + 4) / 2
    logits = 2 * min(tokens, rows_at_once(vocabulary)) * vocabulary * 4
    scores = config.num_attention_heads * tokens * min(tokens, context or 128)
    kept += 3 * scores * blocks * (precision.itemsize + 4) / 2
    memory = sum(p.nbytes for p in every) + states + kept + logits + _PROGRAM
    around = _PASSES * tokens * config.hidden_size + _SCORES * scores
    a_pass, a_call = _units()
    seconds = calls * (_products(module, tokens, precision) + blocks * around * a_pass + (blocks + 1) * _CALLS * a_call)
    a_token = seconds / calls / tokens
    seconds += _updating(numbers) + (_orthogonalizing(module) if optimizer == "muon" else 0)
    seconds += drawn[1] * _passing(module, drawn[0]) if drawn[0] else 0
    parameters = sum(p.numel() for p in every)
    share = 1 / 3 if 2 * numbers > parameters else 1 / 2  # of the forward pass: frozen weights have no slope
    return Sizing(parameters, numbers, int(memory), seconds, look * a_token * share)


@torch.no_grad()
def _passing(module: Any, rows: int) -> float:
    """Return the seconds of a forward pass of one token in so many rows."""
    fed = torch.zeros(rows, 1, dtype=torch.long)
    return _least(lambda: module(input_ids=fed, use_cache=False), 2)


def _units() -> tuple[float, float]:
    """Return the seconds of a softmax per number, and of one small addition."""
    rows, few = torch.randn(1024, 64), torch.randn(64)
    return _least(lambda: rows.softmax(-1)) / rows.numel(), _least(lambda: few + few)


def _least(work: Callable[[], Any], times: int = 5) -> float:
    """Return the shortest of several timings: the others met what else the machine does."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)


def _products(module: Any, tokens: int, precision: torch.dtype) -> float:
    """Return the seconds that the matrix products of one forward and backward pass take: one of each shape is timed."""
    table = module.get_input_embeddings().weight
    shapes: dict[tuple[tuple[int, ...], bool], int] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        is_looked_up = p is table and "lm_head" not in name and "embed_out" not in name
        if p.ndim == 2 and not is_looked_up and "wpe" not in name and "embed_positions" not in name:
            key = (tuple(p.shape), p.requires_grad)
            shapes[key] = shapes.get(key, 0) + 1
    return sum(_product(shape, tokens, precision) * (3 if own else 2) * n for (shape, own), n in shapes.items())


def _product(shape: tuple[int, ...], tokens: int, precision: torch.dtype) -> float:
    rows = min(tokens, rows_at_once(max(shape)))
    a, b = torch.randn(rows, shape[0]).to(precision), torch.randn(*shape).to(precision)
    return _least(lambda: a @ b, 3) * tokens / rows


def _orthogonalizing(module: Any) -> float:
    """Return the seconds of Muon's products: for each M x N two of M x M x N and one of M x M x M, several times."""
    shapes: dict[tuple[int, int], int] = {}
    for name, p in module.named_parameters():
        if p.requires_grad and is_inner(name, p):
            short, long = sorted(p.shape)
            shapes[short, long] = shapes.get((short, long), 0) + 1
    every = 0.0
    for (short, long), count in shapes.items():
        one = _product((short, long), short, torch.bfloat16)
        every += count * _ITERATIONS * (2 + short / long) * one
    return every


def _updating(numbers: int) -> float:
    sample = torch.empty(min(max(numbers, 1), 1 << 22))
    return _UPDATE / 2 * _least(lambda: sample.add_(1.0), 3) * numbers / len(sample)


def tensor_bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """Return the bytes of tensors, each once."""
    return sum({id(t): t.nbytes for t in tensors}.values())
