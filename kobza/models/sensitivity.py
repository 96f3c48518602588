"""What a change of one matrix would cost, from one forward and one backward pass over a text.

To second order the divergence of a changed model from the original is half the square of the change of the loss when
the next tokens are drawn from the original itself (the Fisher information). For a linear layer y = W x that reads x_t
and feels the gradient d_t, a change D of its weight costs about 1/2 sum_t (d_t . D x_t)^2 nats: exact in W, with
positions and matrices taken as independent of each other.

Source: Martens (2020), arXiv:1412.1193 (Fisher information as the second order of the divergence); sums over
positions as in the Kronecker approximation of Martens & Grosse (2015), arXiv:1503.05671.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kobza.models import passes
from kobza.models.model import Model

WINDOW = 256  # tokens read at once: logits and their gradient are held for all of them


@dataclass
class Sensitivity:
    """What every linear layer read and felt over a text.

    Attributes:
        inputs: by name of the matrix, (T, N) bfloat16.
        gradients: by name, (T, M) bfloat16, nats per unit of the output.
        size: bytes of the text.
    """

    size: int
    inputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    looked_up: tuple[Tensor, Tensor] | None = None

    def bits(self, name: str, change: Tensor) -> float:
        """Bits per byte that a change (M, N) of a matrix would cost; `embed` is both ends of a tied model."""
        total = torch.zeros((), dtype=torch.float64)
        if name in ("embed", "embed.in") and self.looked_up is not None:
            ids, felt = self.looked_up
            total += _squares(change[ids], felt)
        for key in {"embed": ["embed.out"]}.get(name, [name]):
            if key in self.inputs:
                total += _squares(self.inputs[key].float() @ change.float().T, self.gradients[key])
        return float(total) / 2 / math.log(2) / self.size


def _squares(change: Tensor, felt: Tensor) -> Tensor:
    return (change.float() * felt.float()).sum(1).double().square().sum()


def listen(model: Model, data: bytes, *, seed: int = 0, window: int = WINDOW) -> Sensitivity:
    """Run a text and remember what every linear layer read and felt.

    Args:
        model: the model; its weights are those that changes are counted from.
        data: the text.
        seed: of the tokens drawn from the model's own predictions [seed, 0 ..].
        window: tokens read at once [count, 2 ..].

    Cost: about three forward passes; T (M + N) numbers of 16 bits per matrix are kept.
    """
    tokens = torch.as_tensor(model.tokenizer.encode(data), dtype=torch.long)
    found = Sensitivity(len(data))
    draw = torch.Generator().manual_seed(seed)
    names = _layers(model)
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    ends: list[tuple[Tensor, Tensor]] = []
    for begin, _, end in passes.windows(len(tokens), min(window, model.context or window), 0):
        fed = passes.fed_ids(tokens[begin:end], model.tokenizer.start_id)
        if len(fed):
            ends.append(_window(model, fed, names, kept, draw))
    found.looked_up = (torch.cat([ids for ids, _ in ends]), torch.cat([felt for _, felt in ends]))
    for name, pairs in kept.items():
        if pairs:
            found.inputs[name] = torch.cat([x for x, _ in pairs])
            found.gradients[name] = torch.cat([d for _, d in pairs])
    return found


def _layers(model: Model) -> dict[str, Any]:
    """Modules of linear layers by the name of their matrix; the head among them."""
    found = {}
    for name, matrix in model.matrices.items():
        owner = model.module.get_submodule(matrix.parameter.rpartition(".")[0])
        if len(matrix.shape) == 2 and (name.startswith("blocks.") or name == "embed.out"):
            found[name] = owner
    return found


@torch.inference_mode(False)
def _window(
    model: Model,
    fed: Tensor,
    names: dict[str, Any],
    kept: dict[str, list[tuple[Tensor, Tensor]]],
    draw: torch.Generator,
) -> tuple[Tensor, Tensor]:
    table = model.module.get_input_embeddings()
    with torch.enable_grad(), _heard(names) as heard:
        vectors = table(fed[None].to(model.device)).detach().clone().requires_grad_()
        logits = model.module(inputs_embeds=vectors, use_cache=False).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        given = [heard[name][1] for name in heard]
        felt = torch.autograd.grad(loss, [vectors, *given], allow_unused=True)
    for name, gradient in zip(heard, felt[1:], strict=True):
        if gradient is not None:
            x = heard[name][0]
            kept[name].append((x.reshape(-1, x.shape[-1]), gradient.detach().reshape(len(fed), -1).bfloat16()))
    scale = torch.as_tensor(getattr(table, "embed_scale", 1.0)).float()
    return fed, (felt[0][0] * scale).bfloat16()


@contextmanager
def _heard(names: dict[str, Any]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record what each layer reads, and its output as a node of the graph, while the block runs."""
    heard: dict[str, tuple[Tensor, Tensor]] = {}
    read: dict[int, tuple[Tensor, Tensor]] = {}  # q, k and v read one tensor: it is kept once

    def listener(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            if id(x) not in read:
                read[id(x)] = (x, x.detach().bfloat16())  # x as well, so that no other tensor gets its id
            heard[name] = (read[id(x)][1], output)

        return hook

    handles = [part.register_forward_hook(listener(name)) for name, part in names.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def changes(before: Model, after: Model, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, W' - W) for matrices of equal shape in both."""
    for name in names:
        yield name, after.matrix(name) - before.matrix(name)
