"""Sharing: neighboring blocks use one set of weights, stored once; the model is as deep as before.

Every group of neighbors gets the weights of one of them, or their mean. Time per token stays; bytes and memory fall.
Nothing but the numbers is shared: each place keeps its own cache.

Sources: Lan et al. (2019), arXiv:1909.11942 (ALBERT: one block for all places); neighbors of a trained model, given the
weights of the first: Liu et al. (2024), arXiv:2402.14905 (MobileLLM, section 3.3, block-wise sharing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from kobza.core.errors import OutOfRange
from kobza.edits._shapes import with_layers
from kobza.models import replacing
from kobza.models.model import Change, Model


def apply(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    group: int = 2,
    keep: Literal["first", "last", "mean"] = "first",
) -> Model:
    """Let groups of neighboring blocks share one set of weights.

    Args:
        model: the model to start from; it is not changed.
        layers: first blocks of the groups [layer, 0 .. L - group]; none: all blocks, from the bottom.
        group: blocks that share [count, 1 .. L]; 1 changes nothing.
        keep: whose weights they share. first: of the lowest. last: of the highest. mean: their mean, which needs dense
            matrices.

    Returns:
        A fork of the same depth. Its last Change records for each place whose weights stand there, and stored bytes
        before and after. Saved as it is, each block is written once and kobza alone opens it; `dense=True` writes
        every place for other programs.

    Raises:
        OutOfRange: groups that overlap or reach beyond the last block.

    Cost: none, but for the mean a copy of one block per group.
    """
    groups = _groups(model, layers, group)
    owners = list(range(model.layers))
    for members in groups:
        for place in members:
            owners[place] = members[-1] if keep == "last" else members[0]
    source = _averaged(model, groups) if keep == "mean" and group > 1 else model
    options: dict[str, Any] = {"layers": sorted(layers or ()), "group": group, "keep": keep}
    fork = with_layers(source, owners, "sharing", options, {"owners": owners}, [source] * model.layers)
    fork.changes[-1].facts["stored_bytes_before"] = model.stored_bytes
    fork.changes[-1].facts["parameters_before"] = model.parameters
    return fork if source is model else Model(
        model.name, fork.module, model.tokenizer, origin=model.origin, family=model.family,
        changes=(*model.changes, fork.changes[-1]),
    )  # fmt: skip


def _groups(model: Model, layers: Sequence[int] | None, group: int) -> list[list[int]]:
    """Places of every group; a rest shorter than a group stays by itself."""
    L = model.layers
    if not 1 <= group <= L:
        raise OutOfRange(f"group={group}; {model.name!r} has {L} layers: allowed are 1 .. {L}.")
    firsts = sorted(layers) if layers else range(0, L - group + 1, group)
    found = [list(range(first, first + group)) for first in firsts]
    places = [place for members in found for place in members]
    if len(set(places)) < len(places) or any(not 0 <= place < L for place in places):
        raise OutOfRange(
            f"layers={list(firsts)} in groups of {group} overlap or reach beyond the layers 0 .. {L - 1}.",
            f"Give firsts at least {group} apart, at most {L - group}.",
        )
    return found


def _averaged(model: Model, groups: list[list[int]]) -> Model:
    """The model with the mean of every group in its first place."""
    twin = model.fork(change=Change("sharing"))
    for members in groups:
        parts = [name.split(".", 2)[2] for name in model.matrices if name.startswith(f"blocks.{members[0]}.")]
        for part in parts:
            mean = torch.stack([model.matrix(f"blocks.{place}.{part}").double() for place in members]).mean(0)
            replacing.put(twin.module, model.matrices[f"blocks.{members[0]}.{part}"], mean.float())
    return twin
