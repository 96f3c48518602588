"""Scaling: multiply matrices by a number. RMSNorm hides much of it at the input end; at the output it is a temperature.

Source: Zhang & Sennrich (2019), arXiv:1910.07467 (RMSNorm is invariant to the scale of its input); the closed form of
the error is |W' - W| = |s - 1| |W|.
"""

from __future__ import annotations

from kobza.edits import base
from kobza.models.model import Model


def apply(model: Model, *, where: str = "embed", factor: float = 0.5) -> Model:
    """Multiply every chosen matrix by one factor.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix.
        factor: what every entry is multiplied by [factor, -1000 .. 1000]; 1 changes nothing.

    Returns:
        A fork whose chosen matrices are `factor` W; the relative error is |factor - 1|.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.

    Cost: O(M N) per matrix.
    """
    tensors = {name: model.matrix(name) * factor for name in base.select(model, where)}
    return base.edited(model, "scaling", {"where": where, "factor": factor}, tensors)
