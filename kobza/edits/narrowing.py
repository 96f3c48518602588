"""Narrowing: take whole neurons of the MLP, or whole attention heads, away; every matrix of a block shrinks.

What a neuron or head adds to the output is its column in the matrix behind it times what it sends; those with the
least root mean square go. With `refit` the columns that stay take over, by least squares on the text, what the others
can be told from them. All blocks keep equally many, so the result is a plain model of the same family.

Sources: Molchanov et al. (2017), arXiv:1611.06440 (structured pruning by effect); the least-squares takeover: He et
al. (2017), arXiv:1707.06168.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.edits import base
from kobza.edits._layers import through
from kobza.edits._shapes import rebuilt, require_family
from kobza.edits.base import CALIBRATION
from kobza.models.model import Model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # gate, up and down apart; q, k and v apart
TOKENS = 8192  # read by default


def apply(
    model: Model,
    *,
    what: Literal["neurons", "heads", "groups"] = "neurons",
    share: float = 0.75,
    multiple: int = 32,
    by: Literal["effect", "weights", "random"] = "effect",
    refit: bool = True,
    damping: float = 0.01,
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Keep a share of the neurons or heads of every block.

    Args:
        model: the model to start from; it is not changed. Families: llama, mistral, qwen2, qwen3.
        what: neurons of the MLP; heads: query heads, equally many of each group that shares keys and values; groups:
            key/value heads with all their query heads.
        share: that stays in every block [fraction, >0 .. 1]; 1 changes nothing.
        multiple: neurons are rounded to a multiple of this [count, 1 ..]; 32 fits the blocks of GGUF.
        by: effect on the text, the size of the weights alone, or, as a control, at random (seed 0).
        refit: let those that stay take over by least squares.
        damping: how much the refit holds to the old columns, in units of the mean second moment [fraction, >0 ..].
        calibration: texts that choose and refit; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A plain model of the same family. Its last Change records parameters and stored bytes before and after.

    Raises:
        BadValue: a family that it does not know.
        OutOfRange: a share that leaves nothing, or heads that do not come out even.

    Cost: about four passes over the calibration tokens, and a least squares problem per block.
    """
    require_family(model, FAMILIES, "narrowing")
    count = _kept(model, what, share, multiple)
    texts = base.calibration_texts(calibration)
    part = "mlp.down" if what == "neurons" else "attn.o"
    names = [f"blocks.{layer}.{part}" for layer in range(model.layers)]
    chosen: dict[str, Tensor] = {}

    def change(name: str, W: Tensor, H: Tensor, C: Tensor) -> Tensor:
        chosen[name] = _choose(model, name, W, H, what, count, by)
        return taken_over(W, H, chosen[name], damping if refit else 0.0)

    wide = through(model, names, texts, calibration_tokens, change, "narrow")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors[name] = wide[name][:, chosen[name]]
        tensors |= _readers(model, name.removesuffix(f".{part}"), what, chosen[name])
    options = base.options_of(
        what=what, share=share, multiple=multiple, by=by, refit=refit, damping=damping, calibration=list(calibration),
        calibration_tokens=calibration_tokens,
    )  # fmt: skip
    facts = {"kept": count, "calibration": base.calibration_facts(texts, calibration_tokens)}
    return rebuilt(model, _settings(model, what, count), tensors, "narrowing", options, facts)


def _sizes(model: Model) -> tuple[int, int, int]:
    """Heads H, key/value heads K, width of a head E."""
    H = model.config.num_attention_heads
    K = getattr(model.config, "num_key_value_heads", None) or H
    return H, K, getattr(model.config, "head_dim", None) or model.width // H


def _kept(model: Model, what: str, share: float, multiple: int) -> int:
    """How many neurons, query heads of a group, or groups stay."""
    H, K, _ = _sizes(model)
    total, step = {"neurons": (model.config.intermediate_size, multiple), "heads": (H // K, 1), "groups": (K, 1)}[what]
    count = total if share == 1 else round(share * total / max(1, step)) * step
    if multiple < 1 or not 0 < share <= 1 or not 0 < count <= total:
        raise OutOfRange(f"share={share} of {total} {what} in steps of {step} leaves {count}; allowed: 1 .. {total}.")
    heads = {"neurons": H, "heads": count * K, "groups": count * H // K}[what]
    if model.width % heads:
        raise OutOfRange(
            f"{heads} heads do not divide the width {model.width}, which transformers demands.",
            f"Keep another share; there are {H} heads in {K} groups.",
        )
    return int(count)


def _choose(model: Model, name: str, W: Tensor, H: Tensor, what: str, count: int, by: str) -> Tensor:
    """The columns that stay, ascending."""
    worth = W.double().square().sum(0)
    if by == "effect":
        worth = worth * H.diagonal()
    elif by == "random":
        worth = torch.rand(len(worth), generator=base.generator(0, name), dtype=torch.float64)
    if what == "neurons":
        return worth.topk(count).indices.sort().values
    heads, K, E = _sizes(model)
    each = worth.view(K, heads // K, E).sum(-1)  # (K, heads of a group)
    columns = torch.arange(heads * E).view(K, heads // K, E)
    if what == "groups":
        return columns[each.sum(-1).topk(count).indices.sort().values].reshape(-1)
    at = each.topk(count, dim=1).indices.sort(dim=1).values
    return torch.cat([columns[group, at[group]].reshape(-1) for group in range(K)])


def taken_over(W: Tensor, H: Tensor, kept: Tensor, damping: float) -> Tensor:
    """W (M, N) with the other columns at 0; with damping > 0 those kept give what they can of the whole output.

    W' = W + the least squares answer of the lost part on the kept inputs, from second moments H (N, N).
    """
    full = torch.zeros_like(W)
    full[:, kept] = W[:, kept]
    if not damping:
        return full
    own = H[kept][:, kept].clone()
    own.diagonal().add_(damping * own.diagonal().mean().clamp_min(1e-12))
    lost = torch.ones(W.shape[1], dtype=torch.bool)
    lost[kept] = False
    gap = W[:, lost].double() @ H[lost][:, kept]
    full[:, kept] += torch.cholesky_solve(gap.T, torch.linalg.cholesky(own)).T.float()
    return full


def _readers(model: Model, block: str, what: str, columns: Tensor) -> dict[str, Tensor]:
    """Rows that stay of the matrices, and biases, that feed the columns kept."""
    if what == "neurons":
        rows = {"mlp.gate": columns, "mlp.up": columns}
    else:
        H, K, E = _sizes(model)
        rows = {"attn.q": columns}
        if what == "groups":
            groups = (columns // (E * H // K)).unique()
            rows |= dict.fromkeys(("attn.k", "attn.v"), torch.arange(K * E).view(K, E)[groups].reshape(-1))
    found = {}
    for part, at in rows.items():
        for name in (f"{block}.{part}", f"{block}.{part}.bias"):
            if name in model.matrices:
                found[name] = model.matrix(name)[at]
    return found


def _settings(model: Model, what: str, count: int) -> dict[str, Any]:
    H, K, E = _sizes(model)
    if what == "neurons":
        return {"intermediate_size": count}
    heads = {"num_attention_heads": count * K} if what == "heads" else {"num_attention_heads": count * H // K}
    return heads | {"num_key_value_heads": K if what == "heads" else count, "head_dim": E}
