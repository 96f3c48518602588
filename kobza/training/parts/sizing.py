"""What a run will take, said before it begins: bytes by counting, seconds by timing its matrix products alone.

Source: 6 multiplications per weight and token, Kaplan et al. (2020), arXiv:2001.08361, section 2.1; for small models
the vocabulary, the updates and the many small calls weigh more than that rule says, so they are counted apart.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kobza.training.parts.losses import rows_at_once

MOMENTS = {"adamw": 2, "muon": 1.2, "adafactor": 0.1, "schedule_free": 2, "galore": 0.7}  # numbers per weight
_PER_BLOCK = 0.0016  # seconds of a step that one block spends on calls, norms and softmax, whatever its size
_UPDATE = 6  # passes over a weight of an update: gradient, two moments and weight read, three written


@dataclass(frozen=True)
class Sizing:
    """A prediction.

    Attributes:
        parameters: numbers in the model; `trained` of them change.
        trained: see there.
        bytes: weights, gradients, optimizer and activations.
        seconds: of one step.
    """

    parameters: int
    trained: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.trained:,} of {self.parameters:,} parameters are trained; about {self.bytes / 1e6:,.0f} MB beside "
            f"the program, {self.seconds:.3f} s a step"
        )


def predict(module: Any, *, tokens: int, optimizer: str, precision: torch.dtype, calls: int = 1) -> Sizing:
    """Predict memory and time.

    Args:
        module: the model; its parameters say which are trained.
        tokens: of one batch [count, 1 ..].
        optimizer: its name.
        precision: of the products.
        calls: batches of one step, forward passes of a second model counted as a third [count, 1 ..].

    Cost: about a quarter of one step.
    """
    every = list({id(p): p for p in module.parameters()}.values())
    trained = [p for p in every if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    config = module.config.get_text_config()
    vocabulary = int(config.vocab_size)
    states = numbers * (1 + MOMENTS[optimizer]) * 4
    # per token and block about 34 numbers of width D are kept for the way back (Korthikanti et al. 2022, eq. 1)
    kept = 34 * config.hidden_size * config.num_hidden_layers * tokens * (precision.itemsize + 4) / 2
    logits = 2 * min(tokens, rows_at_once(vocabulary)) * vocabulary * 4
    memory = sum(p.nbytes for p in every) + states + kept + logits
    seconds = calls * (_products(module, tokens, precision) + _PER_BLOCK * config.num_hidden_layers)
    return Sizing(sum(p.numel() for p in every), numbers, int(memory), seconds + _updating(numbers))


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
    a, b = torch.randn(rows, shape[0], dtype=precision), torch.randn(*shape, dtype=precision)
    a @ b
    begin = time.perf_counter()
    a @ b
    return (time.perf_counter() - begin) * tokens / rows


def _updating(numbers: int) -> float:
    sample = torch.empty(min(max(numbers, 1), 1 << 22))
    sample.add_(1.0)
    begin = time.perf_counter()
    sample.add_(1.0)
    return _UPDATE / 2 * (time.perf_counter() - begin) * numbers / len(sample)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tensor_bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """Return the bytes of tensors, each once."""
    return sum({id(t): t.nbytes for t in tensors}.values())
