"""Models of another shape: fewer layers in the same module, or another configuration with tensors that fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kobza.core.errors import BadValue
from kobza.edits.base import edited_shape
from kobza.models import building, replacing
from kobza.models.model import Model

LISTS = ("layer_types", "no_rope_layers", "attention_layers")  # entries of a configuration with one value per layer


def with_layers(
    model: Model,
    kept: Sequence[int],
    technique: str,
    options: dict[str, Any],
    facts: Any,
    owners: Sequence[Model] | None = None,
) -> Model:
    """Return a fork with some of its blocks, in the order given, or with those of `owners`, one for each place.

    Every tensor is shared, coded and factored ones too, with the models that the blocks come from.
    """
    module = replacing.shared_copy(model.module)
    # a copy for each place: a block knows its number, and one may stand twice
    sources = [replacing.shared_copy(one.module) for one in owners] if owners else [module] * len(kept)
    blocks = [
        source.get_submodule(f"{model.family.blocks}.{layer}") for source, layer in zip(sources, kept, strict=True)
    ]
    for place, block in enumerate(blocks):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    replacing.set_module(module, model.family.blocks, nn.ModuleList(blocks))
    config = module.config.get_text_config()
    for name in LISTS:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) == model.layers:
            setattr(config, name, [values[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    return edited_shape(model, module, technique, options, facts)


def rebuilt(
    model: Model,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    technique: str,
    options: dict[str, Any],
    facts: dict[str, Any],
) -> Model:
    """Return a model of the same family with other sizes.

    Args:
        model: the model; it is not changed.
        settings: entries of the configuration that change.
        tensors: every weight that changes, by our name, in the orientation of `Model.matrix`.
        technique, options, facts: for the Change.

    Raises:
        WrongTensors: the tensors do not fit the settings.
    """
    config = dict(model.module.config.to_dict()) | dict(settings)
    given = {}
    for name, matrix in model.matrices.items():
        if matrix.shared and name not in tensors:
            continue
        value = tensors[name] if name in tensors else model.matrix(name)
        given[matrix.parameter] = (value.T if matrix.is_transposed else value).contiguous().to(model.dtype)
    module = building.build(config, given, dtype=model.dtype, where=model.name)
    module.set_attn_implementation(model.module.config._attn_implementation)
    return edited_shape(model, module, technique, options, facts)


def require_family(model: Model, known: Sequence[str], what: str) -> None:
    """Refuse a family whose parts an edit does not know.

    Raises:
        BadValue: names the family and those known.
    """
    if model.family.name not in known:
        raise BadValue(
            f"{what} knows the families {', '.join(known)}; {model.name!r} is of the family {model.family.name!r}."
        )
