"""The anatomy of a model: every matrix, what it costs, and exact counts beside the rules of thumb.

Counting: a product of a vector with a matrix of M x N numbers takes 2 M N floating-point operations (a multiplication
and an addition each). Norms, activations and softmax are left out; they are below one percent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kobza.core.errors import OutOfRange
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.models.matrices import Matrix
from kobza.models.model import Model

LARGEST_CONTEXT = 1024  # positions at which attention is counted by default


def anatomy(model: Model, *, context: int | None = None) -> Result:
    """Return tables of every matrix and exact counts.

    Args:
        model: the model.
        context: tokens before the one for which operations are counted [count, 1 ..]; the trained context, at most
            1024, by default.

    Returns:
        A Result with readings (parameters, KV-cache bytes, operations, each beside its rule of thumb), the tables
        `groups` and `matrices`, and a bar picture of where the bytes are.
    """
    length = min(model.context or LARGEST_CONTEXT, LARGEST_CONTEXT) if context is None else context
    if length < 1:
        raise OutOfRange(f"context {length} is not a number of tokens: give 1 or more.")
    about = {"model": {"name": model.name, "changes": [str(change) for change in model.changes]}}
    made = {**about, "origin": model.origin.spec, "fingerprint": model.fingerprint, "context": length}
    tables = [overview(model), groups(model), matrices(model)]
    return Result(title=f"Anatomy of {model.name}", readings=readings(model, length), tables=tables, made_by=made)


def matrices(model: Model) -> Table:
    """Return one row for each weight: name, shape, type, bytes, share of the stored bytes."""
    total = model.stored_bytes
    rows = [
        {
            "matrix": matrix.name,
            "shape": " x ".join(map(str, matrix.shape)),
            "type": matrix.dtype,
            "stored_as": f"factors, rank {matrix.rank}" if matrix.rank else matrix.stored_as,
            "parameters": _numbers(matrix),
            "bytes": matrix.bytes,
            "share": matrix.bytes / total,
            "note": f"the same tensor as {matrix.shared}" if matrix.shared else "",
        }
        for matrix in model.matrices.values()
    ]
    return Table(rows, units={"parameters": "count", "bytes": "B", "share": "fraction"}, title="Every weight")


def groups(model: Model) -> Table:
    """Return one row for each pattern of names (`blocks.*.mlp.up`) and shape, with count and share."""
    found: dict[tuple[str, tuple[int, ...]], list[Matrix]] = {}
    for matrix in model.matrices.values():
        found.setdefault((re.sub(r"\b\d+\b", "*", matrix.name), matrix.shape), []).append(matrix)
    total = model.stored_bytes
    rows = [
        {
            "pattern": pattern,
            "count": len(members),
            "shape": " x ".join(map(str, shape)),
            "type": "/".join(sorted({m.dtype for m in members})),
            "parameters": sum(map(_numbers, members)),
            "bytes": sum(m.bytes for m in members),
            "share": sum(m.bytes for m in members) / total,
            "note": "tied to embed.in" if members[0].shared else "",
        }
        for (pattern, shape), members in found.items()
    ]
    units = {"count": "count", "parameters": "count", "bytes": "B", "share": "fraction"}
    return Table(rows, units=units, title="Weights by pattern")


def overview(model: Model) -> Table:
    """Return what kind of model it is, a property a row."""
    config = model.config
    H, K = _heads(config), _kv_heads(config)
    widths = sorted({_kv_width(model, layer) // K for layer in range(model.layers)})
    kind = "all heads share one" if K == 1 < H else "grouped" if K < H else "one for each head"
    ends = "tied: one tensor" if model.is_tied else "two tensors"
    rows = [
        ("family", model.family.name if model.family.is_known else f"{model.family.name} (parts found by name)"),
        ("blocks", str(model.layers)),
        ("width of the residual stream", str(model.width)),
        ("attention", f"{H} heads, {K} key/value heads ({kind}) of width {'/'.join(map(str, widths))}"),
        ("attention and MLP", "in parallel" if model.family.is_parallel(config) else "one after the other"),
        ("sliding windows", _sliding(config)),
        ("vocabulary", f"{model.vocabulary} rows, {len(model.tokenizer)} tokens in the tokenizer"),
        ("trained context", f"{model.context} positions" if model.context else "not stated"),
        ("embedding ends", ends),
        ("type of the numbers", "/".join(sorted({m.dtype for m in model.matrices.values()}))),
        ("licence", model.origin.licence or "not stated"),
        ("changes", "; ".join(str(change) for change in model.changes) or "none"),
        *(("note", note) for note in model.origin.notes),
    ]
    return Table([{"property": name, "value": value} for name, value in rows], title=f"{model.name}")


def readings(model: Model, length: int) -> list[Reading]:
    """Return the exact counts; each note holds the rule of thumb and by what factor it is off."""
    D, L = model.width, model.layers
    blocks = sum(_numbers(m) for m in model.matrices.values() if m.name.startswith("blocks."))
    cached = kv_numbers(model)
    itemsize = model.dtype.itemsize
    flops = operations(model, length)
    ends = model.matrices["embed.in"].bytes + model.matrices["embed.out"].bytes
    return [
        Reading("parameters", model.parameters, "count"),
        Reading("stored_bytes", model.stored_bytes, "B"),
        Reading("embedding_share", ends / model.stored_bytes, "fraction", note="of the stored bytes, both ends"),
        Reading("block_parameters", blocks, "count", note=_rule("12 d^2 L", 12 * D * D * L, blocks)),
        Reading(
            "kv_numbers_per_token",
            cached,
            "count",
            note=_rule("2 L d (every head its own keys and values)", 2 * L * D, cached),
        ),
        Reading(
            "kv_bytes_per_token",
            cached * itemsize,
            "B",
            note=_rule("4 L d (the same in 16 bits)", 4 * L * D, cached * itemsize) + f"; here {8 * itemsize} bits",
        ),
        Reading("kv_cache_bytes", cached * itemsize * length, "B", note=f"for {length} tokens"),
        Reading(
            "operations_per_token",
            flops,
            "FLOP",
            note=_rule("2 x parameters", 2 * model.parameters, flops) + f"; token {length}, attention included",
        ),
        Reading("attention_operations", attention_operations(model, length), "FLOP", note=f"of these, at {length}"),
    ]


def kv_numbers(model: Model) -> int:
    """Numbers that one token adds to the cache: keys and values of every layer, counted from the weights."""
    return sum(2 * _kv_width(model, layer) for layer in range(model.layers))


def operations(model: Model, length: int) -> int:
    """Floating-point operations to read one token behind length - 1 others and predict the next one.

    Products with every matrix (a lookup is none; a factored matrix is two products) and attention over `length`
    positions.
    """
    products = sum(_operations(m, model.config) for m in model.matrices.values() if not _is_lookup(m))
    return products + attention_operations(model, length)


def attention_operations(model: Model, length: int) -> int:
    """Operations of q k^T and of the weighted sum of values, for one token over the positions each layer sees."""
    H, K = _heads(model.config), _kv_heads(model.config)
    total = 0
    for layer in range(model.layers):
        E = _kv_width(model, layer) // K
        total += 4 * H * E * min(length, _window(model.config, layer) or length)
    return total


def _numbers(matrix: Matrix) -> int:
    """Stored numbers of a weight; none if it is stored under another name."""
    if matrix.shared:
        return 0
    if matrix.rank:
        return matrix.rank * sum(matrix.shape)
    count = 1
    for side in matrix.shape:
        count *= side
    return count


def _operations(matrix: Matrix, config: Any) -> int:
    """Operations of one product with a matrix; of a stack of experts as many as a token is sent to."""
    if len(matrix.shape) < 2:
        return 0
    *stack, M, N = matrix.shape
    used = int(getattr(config, "num_experts_per_tok", None) or 1) if stack else 1
    return 2 * matrix.rank * (M + N) if matrix.rank else 2 * used * M * N


def _is_lookup(matrix: Matrix) -> bool:
    return matrix.name in ("embed.in", "embed.positions")


def _heads(config: Any) -> int:
    return int(config.num_attention_heads)


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or _heads(config))


def _kv_width(model: Model, layer: int) -> int:
    """Width of the keys of one token in a layer, K E, from the weights where they tell."""
    key = model.matrices.get(f"blocks.{layer}.attn.k")
    if key is not None:
        return key.shape[0]
    H, K = _heads(model.config), _kv_heads(model.config)
    fused = model.matrices.get(f"blocks.{layer}.attn.qkv")
    if fused is not None:
        return fused.shape[0] // (H + 2 * K) * K
    return int(getattr(model.config, "head_dim", None) or model.width // H) * K


def _window(config: Any, layer: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    size = getattr(config, "sliding_window", None)
    return int(size) if size and kinds and kinds[layer] == "sliding_attention" else None


def _sliding(config: Any) -> str:
    kinds = list(getattr(config, "layer_types", None) or ())
    count = sum(kind == "sliding_attention" for kind in kinds)
    return f"{count} of {len(kinds)} layers see {config.sliding_window} positions" if count else "none"


def _rule(rule: str, value: int, exact: int) -> str:
    """Say by what factor a rule of thumb is off: `rule 12 d^2 L = 119,439,360, 1.12 times the exact`."""
    return f"rule {rule} = {value:,}, {value / exact:.3g} times the exact"


def listing(model: Model, pattern: str) -> Table:
    """Return the rows of `matrices` that a pattern selects (see `Model.find`)."""
    chosen = set(_both_ends(model.find(pattern)))
    whole = matrices(model)
    return Table((row for row in whole if row["matrix"] in chosen), units=whole.units, title=whole.title)


def _both_ends(names: Iterable[str]) -> list[str]:
    return [one for name in names for one in (("embed.in", "embed.out") if name == "embed" else (name,))]
