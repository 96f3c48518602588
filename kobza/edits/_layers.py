"""Blocks run one at a time: the text as it enters each block, what its layers read, and what leaves it.

For edits that go through a model from below, each block seeing what the edited ones before it give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, EmptyText
from kobza.core.progress import progress
from kobza.core.texts import Text
from kobza.edits.base import WINDOW, hearing, token_ids
from kobza.models import forward, replacing
from kobza.models.model import Model


class _Enough(Exception):
    """Raised inside a run once everything that was asked for has been heard."""


class Walk:
    """Windows of calibration text on their way through the blocks of a model.

    Attributes:
        hidden: what enters the next block, one (1, T, D) per window.
        runs: blocks run so far, each on one window.

    Args:
        model: the model; any fork of it has the same calls.
        texts: calibration texts; each gives windows alike.
        tokens: fed in all [count, 2 ..]; whole windows only, at least one per text.
        window: tokens of a window.
    """

    def __init__(self, model: Model, texts: Sequence[Text], tokens: int, window: int = WINDOW) -> None:
        if not model.family.blocks:
            raise BadValue(f"{model.name!r} has no list of blocks that could be run one at a time.")
        self.model = model
        fed = _windows(model, texts, tokens, min(window, model.context or window))
        self.fed, self.runs = fed, 0
        blocks = self._blocks(model)
        self._calls = _calls(model, fed[0], blocks)
        self.hidden = [_entering(model, ids, blocks[0]) for ids in fed]

    @staticmethod
    def _blocks(model: Model) -> Any:
        return model.module.get_submodule(model.family.blocks)

    @torch.no_grad()
    def out(self, model: Model, layer: int, hidden: Tensor) -> Tensor:
        """What leaves block `layer` of a model for what enters it, both (1, T, D)."""
        args, kwargs = self._calls[layer]
        self.runs += 1
        given = self._blocks(model)[layer](hidden, *args, **kwargs)
        found: Tensor = given[0] if isinstance(given, tuple) else given
        return found

    def step(self, model: Model, layer: int) -> None:
        """Let every window pass block `layer` of a model."""
        self.hidden = [self.out(model, layer, hidden) for hidden in self.hidden]

    @torch.no_grad()
    def bits(self, model: Model, hidden: Sequence[Tensor]) -> float:
        """Bits per token of the windows but their first, from what leaves the last block of a model."""
        norm = model.module.get_submodule(model.family.modules["norm"])
        total, count = 0.0, 0
        for ids, states in zip(self.fed, hidden, strict=True):
            rows = forward.head(model, norm(states[0, :-1])).float()
            total += float(nn.functional.cross_entropy(rows.double(), ids[0, 1:].to(rows.device), reduction="sum"))
            count += len(rows)
        return total / count / math.log(2)

    def read(self, model: Model, layer: int, hidden: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What the named linear layers of a block read, (T, N) each; the run ends when all were heard."""
        with heard(model, names) as found, suppress(_Enough):
            self.out(model, layer, hidden)
        return found


def require_linear(model: Model, names: Sequence[str]) -> None:
    """Refuse matrices that are no whole linear layers of blocks.

    Raises:
        BadValue: names the first.
    """
    for name in names:
        if not name.startswith("blocks.") or name in model.parts:
            raise BadValue(f"{name!r} is not a whole linear layer of a block.", "Name others with where=.")


def through(
    model: Model,
    names: Sequence[str],
    texts: Sequence[Text],
    tokens: int,
    change: Callable[[str, Tensor, Tensor, Tensor], Any],
    label: str,
) -> dict[str, Any]:
    """Change linear layers from below; each sees the text as the changed blocks before it give it.

    Args:
        model: the model; it is not changed.
        names: of linear layers of blocks.
        texts, tokens: see `Walk`.
        change: from name, W (M, N), and two (N, N) of float64: mean x x^T over what the layer now reads, and mean
            x0 x^T with x0 what it read in the original model; to the new value.
        label: what the progress bar says.
    """
    first, last = min(map(layer_of, names)), max(map(layer_of, names))
    work, walk = model.fork(), Walk(model, texts, tokens)
    for layer in range(first):
        walk.step(model, layer)
    changed, found = walk.hidden, {}
    for layer in progress(range(first, last + 1), label):
        chosen = [name for name in names if layer_of(name) == layer]
        for group in _groups(walk, model, layer, chosen) if chosen else ():
            H, C = _moments(walk, model, work, layer, group[0], changed)
            for name in group:
                value = found[name] = change(name, model.matrix(name), H, C)
                dense = value if isinstance(value, Tensor) else value.dense()
                replacing.put(work.module, model.matrices[name], dense)
        if layer < last:
            changed = [walk.out(work, layer, hidden) for hidden in changed]
            walk.step(model, layer)
    return {name: found[name] for name in names}


def _groups(walk: Walk, model: Model, layer: int, names: Sequence[str]) -> list[list[str]]:
    """Matrices that read the same vectors, in the order in which the block runs."""
    read = walk.read(model, layer, walk.hidden[0], names)
    groups: dict[int, list[str]] = {}
    for name, X in read.items():
        groups.setdefault(X.data_ptr(), []).append(name)
    return list(groups.values())


def _moments(
    walk: Walk, model: Model, work: Model, layer: int, name: str, changed: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean x x^T and x0 x^T (N, N) over what a layer reads behind changed blocks, x, and behind original ones, x0."""
    H = C = torch.zeros(())
    count = 0
    for before, after in zip(walk.hidden, changed, strict=True):
        X0 = walk.read(model, layer, before, [name])[name]
        X = walk.read(work, layer, after, [name])[name]
        H, C, count = H + (X.T @ X).double(), C + (X0.T @ X).double(), count + len(X)
    return H / count, C / count


@contextmanager
def heard(model: Model, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of named linear layers while the block runs; leave the run when all were heard."""
    found: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        found[name] = x
        if len(found) == len(names):
            raise _Enough

    with hearing(model, names, keep):
        yield found


def layer_of(name: str) -> int:
    """The block of a matrix: 3 for `blocks.3.mlp.up`."""
    return int(name.split(".")[1])


def _windows(model: Model, texts: Sequence[Text], tokens: int, window: int) -> list[Tensor]:
    """Windows (1, window) of ids, each begun by the start token; from every text alike."""
    each = max(1, tokens // (window * len(texts)))
    found = []
    for text in texts:
        ids = token_ids(model, text)
        size = min(window, len(ids))
        for begin in range(0, min(each * size, len(ids) // max(1, size) * size), max(1, size)):
            found.append(forward.fed_ids(ids[begin : begin + size], model.tokenizer.start_id)[None])
    lengths = {ids.shape[1] for ids in found}
    if not lengths or 0 in lengths:
        raise EmptyText("the calibration texts give no window to read.", "Name longer ones: calibration=FILE")
    longest = max(lengths)
    return [ids for ids in found if ids.shape[1] == longest]


@torch.no_grad()
def _calls(model: Model, ids: Tensor, blocks: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the model passes to each block beside the hidden states, for a window of this length."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        model.module(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@torch.no_grad()
def _entering(model: Model, ids: Tensor, first: nn.Module) -> Tensor:
    """What enters the first block, (1, T, D)."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    handle = first.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model.module(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]
