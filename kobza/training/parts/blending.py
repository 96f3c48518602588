"""Several adapters on one base: their weights found without gradients, or chosen token by token by a gate.

Sources: weights from a few examples by a gradient-free search, LoraHub, Huang et al. (2023), arXiv:2307.13269 (here an
evolution strategy of one parent with Rechenberg's rule of a fifth); a gate per layer over LoRA experts, Wu et al.
(2024), arXiv:2404.13628 (MoLE), equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.progress import task
from kobza.models.fitting import fit
from kobza.models.model import Model
from kobza.models.replacing import set_module
from kobza.training.parts import adapters, answers
from kobza.training.parts.adapters import Adapter
from kobza.training.parts.losses import token_logps

Rows = Sequence[dict[str, Any]]
MOST = 1.5  # a weight lies between -MOST and MOST, as in LoraHub
LENGTH = 512  # tokens of an example


def answer_loss(model: Model, batch: answers.Batch) -> Tensor:
    """Return the mean loss of answers per token [nats]; differentiable."""
    logps = token_logps(model.module, batch.read, batch.targets, batch.mask)
    return -logps.sum() / batch.mask.sum()


def searched(
    model: Model, given: Sequence[Adapter], rows: Rows, *, steps: int = 60, price: float = 0.05, seed: int = 0
) -> tuple[list[float], Adapter]:
    """Find weights of several LoRAs from a few examples, without gradients.

    Args:
        model: the base.
        given: LoRAs on the same matrices.
        rows: with "prompt" and "answer".
        steps: forward passes over the examples [count, 1 ..].
        price: of the mean size of a weight, added to the loss [nats, 0 ..].
        seed: of the search.

    Returns:
        The weights, and the one LoRA that is their weighted sum.

    Raises:
        BadValue: adapters that do not go together. OutOfRange: no step.
    """
    if steps < 1:
        raise OutOfRange(f"steps={steps}: 1 or more.")
    ones = adapters.combined(given, [1.0] * len(given))
    twin = adapters.attach(model, ones)
    parts = adapters.parts(twin.module)
    widths = torch.tensor([a.spec.rank for a in given])
    whole = {path: part.lora_B.detach().clone() for path, part in parts.items()}
    batch = _batch(model, rows)

    @torch.no_grad()
    def cost(weights: Tensor) -> float:
        columns = weights.repeat_interleave(widths)
        for path, part in parts.items():
            part.lora_B.copy_(whole[path] * columns)
        return float(answer_loss(twin, batch)) + price * float(weights.abs().mean())

    generator = torch.Generator().manual_seed(seed)
    best, reach = torch.zeros(len(given)), 0.5
    least = cost(best)
    with task("weights of adapters", steps) as shown:
        for _ in range(steps):
            tried = (best + reach * torch.randn(len(given), generator=generator)).clamp(-MOST, MOST)
            found = cost(tried)
            # the step grows after a success and shrinks after a failure so that one in five succeeds
            reach *= 1.5 if found < least else 1.5**-0.25
            if found < least:
                best, least = tried, found
            shown.step(note=f"loss {least:.4f}")
    weights = best.tolist()
    return weights, adapters.combined(given, weights)


class Gated(nn.Module):
    """A linear part with K LoRAs beside it, whose shares are a softmax of what comes in.

    Args:
        base: the part.
        given: for each adapter, (its factor, lora_A (R, N), lora_B (M, R)).
    """

    def __init__(self, base: Any, given: Sequence[tuple[float, Tensor, Tensor]]) -> None:
        super().__init__()
        self.base = base
        self.given = given
        self.gate = nn.Parameter(torch.zeros(len(given), given[0][1].shape[1]))  # (K, N): equal shares at first

    def forward(self, x: Tensor) -> Tensor:
        shares = nn.functional.linear(x, self.gate).softmax(-1)  # (B, T, K)
        out: Tensor = self.base(x)
        for k, (factor, A, B) in enumerate(self.given):
            out = out + factor * shares[..., k, None] * nn.functional.linear(nn.functional.linear(x, A), B)
        return out


def gated(model: Model, given: Sequence[Adapter]) -> Model:
    """Return a fork in which gates with equal shares mix the adapters; an experiment, which no other tool opens.

    Raises:
        BadValue: adapters that do not go together.
    """
    adapters.combined(given, [1.0] * len(given))  # says what does not go together
    twin = model.fork()
    for path in given[0].numbers:
        own = [(a.spec.scale, a.numbers[path]["lora_A"], a.numbers[path]["lora_B"]) for a in given]
        base = twin.module.get_submodule(path)
        if isinstance(base, adapters.Adapted | Gated):
            raise BadValue(f"{model.name!r} already has an adapter at {path!r}.", "Take it off first (detach).")
        set_module(twin.module, path, Gated(base, own))
    return twin


def tuned_gates(
    model: Model,
    given: Sequence[Adapter],
    rows: Rows,
    *,
    steps: int = 40,
    rate: float = 1e-2,
    size: int = 8,
    seed: int = 0,
) -> Model:
    """Return `gated(model, given)` with gates trained on examples; base and adapters stay as they are.

    Args:
        model: the base.
        given: LoRAs on the same matrices.
        rows: with "prompt" and "answer".
        steps: updates [count, 1 ..].
        rate: learning rate [per step, 0 < ..].
        size: examples of one batch [count, 1 ..].
        seed: of the batches.

    Raises:
        BadValue, OutOfRange, NotFinite: see `gated` and `fit`.
    """
    twin = gated(model, given)
    twin.module.requires_grad_(False)
    gates = [part.gate.requires_grad_(True) for part in twin.module.modules() if isinstance(part, Gated)]
    coded = answers.examples(rows, model.tokenizer, "answer", chat=True, most=LENGTH)
    generator = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        chosen = answers.draw(len(coded), size, generator)
        return answer_loss(twin, answers.batch([coded[i] for i in chosen.tolist()]))

    fit(gates, loss, steps=steps, rate=rate, label="gates")
    twin.module.requires_grad_(False)
    return twin


def _batch(model: Model, rows: Rows) -> answers.Batch:
    return answers.batch(answers.examples(rows, model.tokenizer, "answer", chat=True, most=LENGTH))
