"""Layer drop: take whole blocks away - named ones, or those that a text misses least.

influence: 1 - cosine between what enters a block and what leaves it, one pass. loss: the text's loss without the
block, for every block, from remembered inputs: only the blocks behind it are run, half the work of running all.
greedy: the best single drop, `drops` times. entropy: how much the entropy of the stream grows in a block, one pass;
blocks before the entropy is lowest are taken last.

Sources: Men et al. (2024), arXiv:2403.03853 (block influence); Zhong et al. (2024), arXiv:2406.19384 (BlockPruner,
greedy by loss); Yang et al. (2025), arXiv:2504.03794 (EntroDrop; the width of the buckets is kobza's own).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.progress import progress
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits._layers import Walk
from kobza.edits._shapes import with_layers
from kobza.edits.base import CALIBRATION
from kobza.models.model import Model

TOKENS = 1024  # read by default: two windows
BUCKET = 0.1  # of the first stream's root mean square


def apply(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    drops: int = 1,
    by: Literal["influence", "entropy", "loss", "greedy"] = "influence",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Remove blocks; the result is a plain model of the same family with fewer layers.

    Args:
        model: the model to start from; it is not changed.
        layers: blocks to remove [layer, 0 .. L - 1]; none: choose `drops` of them.
        drops: blocks to remove where none are named [count, 0 .. L - 1]; 0 changes nothing.
        by: how they are chosen.
        calibration: texts that choose; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A fork that shares every tensor left. Its last Change names the layers removed, and what the choice rests on.

    Raises:
        OutOfRange: a layer that is not there, or all of them.

    Cost: none for named layers; one pass for influence and entropy; half a pass per layer for loss, `drops`
        times that for greedy.
    """
    named = sorted(set(layers or ()))
    if any(not 0 <= layer < model.layers for layer in named):
        raise OutOfRange(f"layers={named}; {model.name!r} has the layers 0 .. {model.layers - 1}.")
    if not 0 <= (len(named) or drops) < model.layers:
        raise OutOfRange(f"{len(named) or drops} of {model.layers} layers cannot be removed; at least one must stay.")
    facts: dict[str, Any] = {}
    options: dict[str, Any] = {"layers": named}
    if not named and drops:
        texts = base.calibration_texts(calibration)
        options |= {"drops": drops, "by": by, "calibration": list(calibration)}
        options |= {"calibration_tokens": calibration_tokens}
        facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
        named, facts["worth"] = chosen(model, texts, drops, by, calibration_tokens)
    facts["removed"] = named
    kept = [layer for layer in range(model.layers) if layer not in named]
    return with_layers(model, kept, "layer_drop", options, facts)


def chosen(model: Model, texts: Sequence[Text], count: int, by: str, tokens: int) -> tuple[list[int], list[float]]:
    """Return the layers to remove, ascending, and the worth of every layer of the model as it is."""
    walk = Walk(model, texts, tokens)
    if by == "entropy":
        found = entropies(model, walk)
        gains = [after - before for before, after in pairwise(found)]
        lowest = min(range(model.layers), key=found.__getitem__)
        order = sorted(range(model.layers), key=lambda layer: (layer < lowest, gains[layer]))
        return sorted(order[:count]), gains
    worth = influences(model, walk) if by == "influence" else losses(model, walk, list(range(model.layers)))
    if by != "greedy":
        order = sorted(range(model.layers), key=worth.__getitem__)
        return sorted(order[:count]), worth
    left = list(range(model.layers))
    now = worth
    for step in range(count):
        if step:
            now = losses(model, walk, left)
        left.pop(min(range(len(left)), key=now.__getitem__))
    return [layer for layer in range(model.layers) if layer not in left], worth


def influences(model: Model, walk: Walk) -> list[float]:
    """1 - mean cosine between what enters and what leaves each block."""
    hidden, found = walk.hidden, []
    for layer in range(model.layers):
        after = [walk.out(model, layer, h) for h in hidden]
        cosines = [torch.cosine_similarity(a[0], b[0], dim=-1).double() for a, b in zip(hidden, after, strict=True)]
        found.append(1 - float(torch.cat(cosines).mean()))
        hidden = after
    return found


def entropies(model: Model, walk: Walk) -> list[float]:
    """Entropy of the entries of the stream before each block and behind the last, L + 1 numbers in bits.

    Entries are counted in buckets as wide as a tenth of the root mean square of what enters the first block.
    """
    hidden = walk.hidden
    width = BUCKET * float(torch.cat([h.double().square().mean()[None] for h in hidden]).mean().sqrt())
    found = [_entropy(hidden, width)]
    for layer in range(model.layers):
        hidden = [walk.out(model, layer, h) for h in hidden]
        found.append(_entropy(hidden, width))
    return found


def _entropy(states: Sequence[Tensor], width: float) -> float:
    """Entropy in bits of entries rounded to multiples of `width`."""
    counts = torch.cat([(h / width).round().long().flatten() for h in states]).unique(return_counts=True)[1]
    shares = counts.double() / counts.sum()
    return float(-(shares * shares.log2()).sum())


def losses(model: Model, walk: Walk, kept: Sequence[int]) -> list[float]:
    """Bits per token of a model of the blocks `kept` when each of them in turn is left out.

    The input of every block is made once; leaving block i out runs only the blocks behind it.
    """
    entering, found = walk.hidden, []
    for place in progress(range(len(kept)), "drop each layer"):
        hidden = entering
        for layer in kept[place + 1 :]:
            hidden = [walk.out(model, layer, h) for h in hidden]
        found.append(walk.bits(model, hidden))
        entering = [walk.out(model, kept[place], h) for h in entering]
    return found


def table(model: Model, texts: Sequence[Text], *, tokens: int = TOKENS) -> Table:
    """Return a row per layer: bits per token without it, the loss, its influence and its gain in entropy.

    The note says how many blocks were run for the losses, beside what one run per model without a layer would take.

    Args:
        model: the model.
        texts: read in whole windows, each alike.
        tokens: read in all [count, 2 ..].
    """
    walk = Walk(model, texts, tokens)
    hidden = walk.hidden
    for layer in range(model.layers):
        hidden = [walk.out(model, layer, h) for h in hidden]
    whole, begin = walk.bits(model, hidden), walk.runs
    without = losses(model, walk, range(model.layers))
    runs, naive = walk.runs - begin, model.layers * (model.layers - 1) * len(walk.fed)
    gains = [after - before for before, after in pairwise(entropies(model, walk))]
    rows = [
        {"layer": layer, "bits_per_token": bits, "loss": bits - whole, "influence": influence, "entropy": gain}
        for layer, (bits, influence, gain) in enumerate(zip(without, influences(model, walk), gains, strict=True))
    ]
    note = f"{whole:.4f} bits per token with all {model.layers} layers; "
    note += f"{runs} blocks run for the losses, {naive} otherwise"
    return Table(rows, title="Each layer dropped", note=note)
