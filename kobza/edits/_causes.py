"""Where the bits of a transplant go: the change of bits per byte, split by cause, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kobza.core.table import Table
from kobza.measures.base import LITERAL_BITS, Sample, take
from kobza.models.forward import logit_chunks, token_bits, without_context
from kobza.models.model import Model
from kobza.models.passes import checked

NAMES = ("leak onto new rows", "copied tokens in unfamiliar splits", "spans with new tokens", "spoiled context")


def causes(
    before: Model,
    after: Model,
    text: Any,
    *,
    window: int = 512,
    overlap: int = 0,
    limit: int = 0,
    bits: torch.Tensor | None = None,
) -> Table:
    """Split the change in bits per byte between a model and its transplant.

    The text is cut into the shortest spans that both vocabularies end together. Leak is what probability on new rows
    costs where a copied token was right. The rest of a span's change belongs to new tokens if it holds one, to
    unfamiliar splits if both cut it differently, and to the context before it if both have the same token there.

    Args:
        before, after: the model and the transplant.
        text: what to measure on.
        window, overlap, limit: as `bits_per_byte`.
        bits: of the original's tokens, where `token_bits` has been asked before (T,).

    Returns:
        A row per cause and one for the total: spans, bytes, change [bit/B]. The causes sum to the total.
    """
    old, new = take(before, text, limit=limit), take(after, text, limit=limit)
    if bits is None:
        bits = token_bits(before, old.ids, window=window, overlap=overlap)
    bits_before = _items(old, bits)
    fresh_ids = [id for id in range(after.vocabulary) if _is_new(before, after, id)]
    is_new = np.isin(np.array(new.ids), fresh_ids)
    surprise, leaks = _leaking(after, new.ids, fresh_ids, window, overlap)
    bits_after = _items(new, surprise)
    leaked, fresh = _spread(new, np.where(is_new, 0.0, leaks)), _spread(new, is_new.astype(float))
    found: dict[str, list[float]] = {name: [0, 0, 0.0] for name in NAMES}
    for begin, end in _spans(old, new):
        ours, theirs = (slice(*np.searchsorted(sample.ends, [begin, end], "right")) for sample in (new, old))
        leak = float(leaked[ours].sum())
        change = float(bits_after[ours].sum() - bits_before[theirs].sum()) - leak
        is_same = np.array_equal(new.ends[ours], old.ends[theirs])
        name = NAMES[2] if fresh[ours].any() else NAMES[3] if is_same else NAMES[1]
        found[NAMES[0]][2] += leak
        found[name] = [found[name][0] + 1, found[name][1] + int(end - begin), found[name][2] + change]
    size = len(old.text)
    table: list[dict[str, Any]] = [
        {"cause": name, "spans": n, "bytes": b, "change": x / size} for name, (n, b, x) in found.items()
    ]
    total = float(bits_after.sum() - bits_before.sum()) / size
    table.append({"cause": "total", "spans": sum(r["spans"] for r in table), "bytes": size, "change": total})
    title = f"Change of bits per byte on {old.text.name}, by cause"
    return Table(table, units={"bytes": "B", "change": "bit/B"}, title=title)


def _is_new(before: Model, after: Model, id: int) -> bool:
    data = after.tokenizer.bytes_of(id)
    return id not in after.tokenizer.special.values() and before.tokenizer.id_of(data) is None


def _items(sample: Sample, bits: torch.Tensor) -> NDArray[np.float64]:
    """Bits of every item, literals at 8 bits a byte."""
    items: NDArray[np.float64] = sample.sizes.astype(np.float64) * LITERAL_BITS
    items[sample.is_token] = bits.double().numpy()
    return items


def _spread(sample: Sample, values: NDArray[np.float64]) -> NDArray[np.float64]:
    items = np.zeros(len(sample.sizes))
    items[sample.is_token] = values
    return items


def _spans(old: Sample, new: Sample) -> list[tuple[int, int]]:
    ends = np.intersect1d(old.ends, new.ends).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@torch.inference_mode()
def _leaking(
    model: Model, ids: Sequence[int], rows: Sequence[int], window: int, overlap: int
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Bits of every token, and bits lost to the probability of new rows, (T,) each."""
    tokens = checked(model, ids, window, overlap)
    bits, leaks = torch.zeros(len(tokens)), torch.zeros(len(tokens))
    mask = torch.zeros(model.vocabulary, dtype=torch.bool)
    mask[list(rows)] = True
    for at, logits in logit_chunks(model, tokens, window, overlap, 128):
        whole = logits.logsumexp(-1)
        bits[at] = (whole - logits.gather(-1, tokens[at, None])[:, 0]) / math.log(2)
        leaks[at] = (whole - logits.masked_fill(mask, -torch.inf).logsumexp(-1)) / math.log(2)
    bits[without_context(model, len(tokens), window, overlap)] = math.log2(model.vocabulary)
    return bits, leaks.double().numpy()
