"""Positions: turn a model's rotations slower, so that it reads texts longer than it was trained for.

linear divides every angle by the factor. ntk raises the base so that the slowest rotation is divided by it and the
fastest stays. yarn divides the slow ones, leaves the fast ones, goes over between them, and sharpens attention by
0.1 ln(factor) + 1 on both queries and keys.

Source: Chen et al. (2023), arXiv:2306.15595 (linear); Peng et al. (2023), arXiv:2309.00071, definition 1 (NTK-aware),
section 3.4 (YaRN).
"""

from __future__ import annotations

from typing import Any, Literal

from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import base
from kobza.models.model import Model
from kobza.models.replacing import shared_copy


def apply(model: Model, *, method: Literal["linear", "ntk", "yarn"] = "yarn", stretch: float = 2.0) -> Model:
    """Scale the rotations; no weight changes, and the configuration carries the scaling.

    Args:
        model: the model to start from, of plain rotary positions; it is not changed.
        method: how the angles are scaled.
        stretch: the new context over the old one [ratio, 1 .. 64]; 1 changes nothing.

    Returns:
        A fork whose context is `stretch` times as long, sharing every weight.

    Raises:
        BadValue: a model without rotary positions, or whose rotations are scaled or differ between layers.
        OutOfRange: a stretch outside its range.

    Cost: none.
    """
    if not 1 <= stretch <= 64:
        raise OutOfRange(f"stretch={stretch}; allowed is 1 .. 64.")
    rope = getattr(model.config, "rope_parameters", None) or {}
    rotary = getattr(model.module.base_model, "rotary_emb", None)
    if rotary is None or rope.get("rope_type") != "default" or not model.context:
        kind = rope.get("rope_type", "none of one kind")
        raise BadValue(f"the rotation of '{model.name}' ({kind}) is no plain one that could be scaled.")
    module = shared_copy(model.module)
    config = module.config
    before = model.context
    config.rope_parameters = scaled(rope, method, stretch, before, 2 * len(rotary.inv_freq))
    config.max_position_embeddings = round(before * stretch)
    module.base_model.rotary_emb = type(rotary)(config).to(model.device)
    facts = {"context_before": before, "context": config.max_position_embeddings}
    return base.edited_shape(model, module, "positions", {"method": method, "stretch": stretch}, facts)


def scaled(rope: dict[str, Any], method: str, factor: float, context: int, width: int) -> dict[str, Any]:
    """Return the parameters of the scaled rotation.

    Args:
        rope: those of the plain one.
        method: linear, ntk or yarn.
        factor: the new context over the old one.
        context: positions trained.
        width: numbers of a head that are rotated.

    >>> scaled({"rope_type": "default", "rope_theta": 100.0}, "ntk", 2.0, 64, 4)["rope_theta"]
    400.0
    """
    if factor == 1:
        return dict(rope)
    if method == "ntk":
        return rope | {"rope_theta": rope["rope_theta"] * factor ** (width / (width - 2))}
    found = rope | {"rope_type": method, "factor": float(factor)}
    return found | {"original_max_position_embeddings": context} if method == "yarn" else found
