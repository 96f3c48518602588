"""Rules that say which tokens of a text something is about. Shared ground of the room, not a technique.

tokens: am| pm       these tokens, blanks included
regex:\\d+           tokens that overlap a match
"""

from __future__ import annotations

import re
from itertools import accumulate

import torch
from torch import Tensor

from kobza.core.errors import BadValue, NothingMatched
from kobza.models.model import Model

HINT = "Write tokens: am| pm or regex:[0-9]+."


def indicator(model: Model, ids: Tensor, rule: str) -> Tensor:
    """Return for each token (N,) whether the rule holds.

    Raises:
        BadValue: no rule, a text that is no token, or no regular expression.
        NothingMatched: it holds for no token, or for all.
    """
    kind, colon, about = rule.partition(":")
    if not colon or kind.strip() not in ("tokens", "regex") or not about:
        raise BadValue(f"{rule!r} is no rule.", HINT)
    found = _among(model, ids, about) if kind.strip() == "tokens" else _matched(model, ids, about)
    if not found.any() or found.all():
        which = "all" if found.all() else "none"
        raise NothingMatched(f"rule {rule!r} holds for {which} of {len(ids)} tokens.", "Take another rule or text.")
    return found


def _among(model: Model, ids: Tensor, about: str) -> Tensor:
    wanted = [model.tokenizer.id_of(piece.encode()) for piece in about.split("|")]
    for piece, one in zip(about.split("|"), wanted, strict=True):
        if one is None:
            raise BadValue(f"{piece!r} is no single token of {model.name!r}.", HINT)
    return torch.isin(ids, torch.tensor(wanted))


def _matched(model: Model, ids: Tensor, about: str) -> Tensor:
    try:
        pattern = re.compile(about)
    except re.error as error:
        raise BadValue(f"{about!r} is no regular expression: {error}.", HINT) from None
    pieces = [model.tokenizer.bytes_of(int(i)) for i in ids]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")  # every byte survives, so that offsets hold
    byte = [0, *accumulate(len(c.encode("utf-8", "surrogateescape")) for c in text)]
    is_hit = torch.zeros(byte[-1] + 1)
    for match in pattern.finditer(text):
        is_hit[byte[match.start()] : byte[match.end()]] = 1
    ends = torch.tensor([0, *accumulate(map(len, pieces))])
    hits = torch.cat([torch.zeros(1), is_hit.cumsum(0)])[ends]
    return hits[1:] > hits[:-1]


def correlations(values: Tensor, holds: Tensor) -> Tensor:
    """Return Pearson's correlation (X,) of each column of values (N, X) with a rule (N,); 0 for a constant one."""
    x = values.double() - values.double().mean(0)
    y = holds.double() - holds.double().mean()
    return (y @ x) / (x.norm(dim=0) * y.norm()).clamp_min(1e-30)
