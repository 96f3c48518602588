"""Latent: keys and values of a block read through one narrow vector, which is all that a cache would have to hold.

The stacked projections [W_k; W_v] (2 K E, D) become A B of rank r, the best one for the vectors that the layer reads on
a text (Eckart-Young in their metric): c = B x is the latent, keys and values are A_k c and A_v c, rotated by position
afterwards. B is one tensor for both. Keys and values count alike, each in units of its own mean square.

This is the low-rank part of multi-head latent attention after the fact; its decoupled rotary keys need training and are
not made. transformers caches keys and values as before: the smaller cache is what the factors allow, and the figure
says so; what the file saves is saved.

Sources: DeepSeek-AI (2024), arXiv:2405.04434, section 2.1; after training, by singular values: Ji et al. (2025),
arXiv:2502.14837 (there the joint decomposition of keys and values loses less than two); the metric: Wang et al. (2024),
arXiv:2403.07378.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import base
from kobza.edits.base import CALIBRATION, TOKENS
from kobza.models.linear_algebra import eigen
from kobza.models.model import Factors, Model, Value

PARTS = ("attn.k", "attn.v")


def apply(
    model: Model,
    *,
    rank: int = 256,
    metric: Literal["inputs", "none"] = "inputs",
    joint: bool = True,
    store: Literal["factors", "dense"] = "factors",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Compress the projections to keys and values of every block to one low rank.

    Args:
        model: the model to start from; it is not changed. Keys and values must be matrices of their own.
        rank: numbers of the latent [count, 1 .. min(2 K E, D)]; 2 K E, keys and values of all key/value heads, loses
            nothing where it is not above D. Multiples of 64 run fastest.
        metric: which directions count. inputs: second moments of what the layer reads. none: all alike.
        joint: one latent for both; otherwise one of half the rank for each.
        store: factors: stored and used so. dense: the products, of the old size.
        calibration: texts that the metric is taken from; not the text to be measured.
        calibration_tokens: tokens read, shared over the texts [count, 2 ..].

    Returns:
        A fork. Its last Change records numbers and bytes that a cache holds per token before (`cache_bytes`) and as
        latents (`latent_bytes`), and stored bytes.

    Raises:
        BadValue: keys and values are parts of a fused matrix.
        OutOfRange: a rank that the projections cannot have; the message names one and its shape.

    Cost: a pass over the calibration tokens, and an eigenvalue problem of size 2 K E per block.
    """
    pairs = [[f"blocks.{layer}.{part}" for part in PARTS] for layer in range(model.layers)]
    _check(model, pairs, rank, joint)
    texts = base.calibration_texts(calibration) if metric == "inputs" else []
    names = [name for pair in pairs for name in pair]
    moments = base.input_moments(model, [pair[0] for pair in pairs], texts, calibration_tokens) if texts else {}
    tensors: dict[str, Value] = {}
    for pair in pairs:
        W, H = [model.matrix(name) for name in pair], moments.get(pair[0])
        for name, factors in zip(pair, latent(W, H, rank) if joint else apart(W, H, rank), strict=True):
            tensors[name] = factors if store == "factors" else factors.dense()
    numbers = sum(len(model.matrix(name)) for name in names)
    options: dict[str, Any] = {"rank": rank, "metric": metric, "joint": joint, "store": store}
    facts: dict[str, Any] = {
        "cache_bytes": numbers * model.dtype.itemsize,
        "latent_bytes": rank * model.layers * model.dtype.itemsize,
    }
    if texts:
        options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
        facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    fork = base.edited(model, "latent", options, tensors, facts=facts)
    if store == "factors" and joint:
        _share(fork, pairs)
    return fork


def _check(model: Model, pairs: list[list[str]], rank: int, joint: bool) -> None:
    for pair in pairs:
        for name in pair:
            if name not in model.matrices:
                raise BadValue(
                    f"{model.name!r} ({model.family.name}) has no matrix {name!r} of its own: keys and values are "
                    "parts of one with the queries."
                )
        rows = sum(len(model.matrix(name)) for name in pair)
        width = model.matrix(pair[0]).shape[1]
        if joint:
            base.require_rank(" + ".join(pair), (rows, width), rank, min(rows, width))
        elif rank % 2 or rank < 2:
            raise OutOfRange(f"rank={rank} cannot be halved for two latents; allowed: even, from 2.")
        else:
            base.require_rank(pair[0], model.matrix(pair[0]).shape, rank // 2, min(model.matrix(pair[0]).shape))


def latent(W: list[Tensor], H: Tensor | None, rank: int) -> list[Factors]:
    """Factors of keys and values (K E, D) with one B (rank, D), the best under second moments H (D, D) of the inputs.

    Rows are weighed so that keys and values have the same energy; W' = S U U^T S^-1 W with U the strongest left
    directions of S^-1 W H^1/2.
    """
    weighed = [_energy(M, H).rsqrt() * M.double() for M in W]
    stacked = torch.cat(weighed)
    square = stacked @ stacked.T if H is None else stacked @ H.double() @ stacked.T
    U = eigen(square)[1][:, :rank]
    B = (U.T @ stacked).float()
    heights = [len(M) for M in W]
    return [Factors((_energy(M, H).sqrt() * part).float(), B) for M, part in zip(W, U.split(heights), strict=True)]


def apart(W: list[Tensor], H: Tensor | None, rank: int) -> list[Factors]:
    """The same with a B of half the rank for each."""
    return [latent([M], H, rank // 2)[0] for M in W]


def _energy(M: Tensor, H: Tensor | None) -> Tensor:
    """Sum of mean squares of the outputs, a scalar."""
    M = M.double()
    energy = M.square().sum() if H is None else ((M @ H.double()) * M).sum()
    return energy.clamp_min(1e-30)


def _share(fork: Model, pairs: list[list[str]]) -> None:
    """Let keys and values of a fork, which is ours to change, use one tensor B."""
    for pair in pairs:
        k, v = (fork.module.get_submodule(fork.matrices[name].parameter.rpartition(".")[0]) for name in pair)
        v.B = k.B
    del fork.matrices  # made anew with the shared tensors
    fork.changes[-1].facts["stored_bytes"] = fork.stored_bytes
