"""Gaussian noise on the weights, in units of their own spread: how much precision does a matrix need?

Source: An (1996), Neural Computation 8(3), 643-674 (noise on weights). Closed form of the error:
|W' - W| = s std(W) sqrt(M N).
"""

from __future__ import annotations

import torch

from kobza.edits import base
from kobza.models.linear_algebra import deviation
from kobza.models.model import Model


def apply(model: Model, *, where: str = "embed", strength: float = 0.5, seed: int = 0) -> Model:
    """Add independent normal numbers to every entry of the chosen matrices.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix.
        strength: standard deviation of the noise [std of the matrix, 0 ..]; 0 changes nothing.
        seed: of the noise; each matrix draws from a generator of (seed, its name) [integer, 0 ..].

    Returns:
        A fork; equal seeds give equal bits. The expected relative error is strength std(W) sqrt(M N) / |W|.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.

    Cost: O(M N) per matrix.
    """
    tensors = {}
    for name in base.select(model, where):
        W = model.matrix(name)
        draw = torch.randn(W.shape, generator=base.generator(seed, name)).to(W.device)
        tensors[name] = W + strength * deviation(W) * draw
    options = {"where": where, "strength": strength}
    return base.edited(model, "noise", options, tensors, seed=seed)
