"""Sites inside attention: rotated queries and keys, scores, pattern.

transformers gives queries, keys and values to a function that the config names. While hooks sit at one of these sites,
the config names one of ours: it shows the hooks what passes and hands it on to the model's own function. Scores and
pattern exist only in the plain formula; it is compared with the model's own result at every call, and a family that
attends by another formula is refused. What no hook changes stays the model's own, bit for bit.

Source: the formula, Vaswani et al. (2017), arXiv:1706.03762, section 3.2.1; with a soft cap, arXiv:2408.00118.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kobza.core.errors import BadValue

SIDES = ("query", "key", "scores", "pattern")
PREFIX = "kobza_"  # of our function's name, in front of the name of the model's own
TOLERANCE = 1e-3  # of the plain formula against the model's own result, relative to its largest value

Change = Callable[[Tensor], Tensor | None]
_changes: WeakKeyDictionary[Any, list[tuple[str, Change]]] = WeakKeyDictionary()


@contextmanager
def intercepted(config: Any, changes: Mapping[Any, Sequence[tuple[str, Change]]]) -> Iterator[None]:
    """Let functions see and change what passes inside attention modules.

    Args:
        config: the model's; while inside, its attention function is ours.
        changes: for each attention module, (side, function) in the order they act. The function gets (B, T, heads, E)
            of `query` and `key` (of the newly fed tokens), (B, T, H, S) of `scores` and `pattern`, S keys, and returns
            a new one or None.
    """
    if not changes:
        yield
        return
    before = config._attn_implementation
    outer = {module: _changes.get(module, []) for module in changes}
    try:
        for module, own in changes.items():
            _changes[module] = [*outer[module], *own]
        config._attn_implementation = _registered(before.removeprefix(PREFIX))
        yield
    finally:
        config._attn_implementation = before
        _changes.update(outer)


@cache
def _registered(base: str) -> str:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(PREFIX + base, partial(_attend, base))
    AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return PREFIX + base


def _attend(
    base: str, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: query (B, H, T, E), key and value (B, K, S, E); returns z (B, T, H, E) and weights."""
    changes = _changes.get(module, [])
    query = _changed(changes, "query", query)
    fresh = query.shape[2]
    new = _changed(changes, "key", key[:, :, -fresh:])
    key = new if fresh == key.shape[2] else torch.cat([key[:, :, :-fresh], new], 2)
    own: tuple[Tensor, Tensor | None] = _own(base, module)(module, query, key, value, attention_mask, **rest)
    if not any(side in ("scores", "pattern") for side, _ in changes):
        return own
    scores, allowed = _scores(base, module, query, key, attention_mask, rest)
    _require_equal(_mixed(scores.softmax(-1, dtype=torch.float32).to(query.dtype), value), own[0], module)
    seen = _changed(changes, "scores", scores)
    changed = seen if seen is scores else seen.masked_fill(~allowed, -torch.inf)
    plain = changed.softmax(-1, dtype=torch.float32).to(query.dtype)
    pattern = _changed(changes, "pattern", plain)
    if pattern is plain and seen is scores:
        return own
    pattern = pattern.masked_fill(~allowed, 0)
    return _mixed(pattern, value), pattern


def _changed(changes: Sequence[tuple[str, Change]], side: str, value: Tensor) -> Tensor:
    """Pass a value (B, heads, T, X) through the functions of one side, which see (B, T, heads, X)."""
    for at, change in changes:
        new = change(value.transpose(1, 2)) if at == side else None
        value = value if new is None else new.transpose(1, 2)
    return value


def _own(base: str, module: Any) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base == "eager":  # each file of transformers has its own
        found: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return found
    return ALL_ATTENTION_FUNCTIONS[base]


def _scores(
    base: str, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, rest: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return scores (B, H, T, S), -inf where a query may not look, and where it may (broadcasts to them)."""
    T, S = query.shape[2], key.shape[2]
    scaling = rest.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * scaling
    if rest.get("softcap"):
        scores = (scores / rest["softcap"]).tanh() * rest["softcap"]
    allowed = torch.ones(T, S, dtype=torch.bool, device=query.device)
    if mask is None:
        # subtle: without a mask torch's attention is causal, and counts queries and keys from the same beginning
        allowed = allowed.tril() if base != "eager" and T > 1 else allowed
    elif mask.dtype == torch.bool:
        allowed = mask
    else:
        allowed = mask > torch.finfo(mask.dtype).min / 2
        scores = scores + mask.masked_fill(~allowed, 0)
    return scores.masked_fill(~allowed, -torch.inf), allowed


def _mixed(pattern: Tensor, value: Tensor) -> Tensor:
    """Return z (B, T, H, E): values (B, K, S, E) mixed by a pattern (B, H, T, S)."""
    return (pattern @ value.repeat_interleave(pattern.shape[1] // value.shape[1], 1)).transpose(1, 2).contiguous()


def _require_equal(plain: Tensor, own: Tensor, module: Any) -> None:
    plain, own = plain.detach().float(), own.detach().float()
    if float((plain - own).abs().max()) > TOLERANCE * max(float(own.abs().max()), 1e-6):
        name = type(module).__name__
        raise BadValue(f"{name} attends by another formula than softmax(q k): it has no scores and no pattern here.")
