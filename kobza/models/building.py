"""From a configuration and tensors to a transformers module, with nothing missing and nothing altered.

transformers fills what a checkpoint lacks with random numbers and a warning; here that is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from kobza.core.errors import Corrupt, NotFinite, WrongTensors


def skeleton(config: dict[str, Any]) -> Any:
    """Build the module on the meta device: names and shapes, no memory."""
    whole = configuration(config)
    with torch.device("meta"), quiet():
        return model_class(whole)(whole)


def configuration(config: dict[str, Any]) -> Any:
    """Build the transformers configuration object.

    Raises:
        Corrupt: a value is not what its family allows, or the family is unknown.
    """
    from transformers import AutoConfig

    values = dict(config)
    family = values.pop("model_type", None)
    if not isinstance(family, str):
        raise Corrupt("the configuration does not say which family of models it is ('model_type').")
    try:
        with quiet():
            return AutoConfig.for_model(family, **values)
    except Exception as error:  # transformers checks values with exceptions of many kinds
        reason = " ".join(str(error).split())[:300]
        raise Corrupt(f"the configuration of family {family!r} is not usable: {reason}.") from None


def model_class(config: Any) -> Any:
    """Return the class of causal language model for a configuration.

    Raises:
        Corrupt: transformers has none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        family = getattr(config, "model_type", type(config).__name__)
        raise Corrupt(f"transformers has no causal language model of the family {family!r}.") from None
    return found[0] if isinstance(found, tuple) else found


def build(config: dict[str, Any], tensors: Mapping[str, torch.Tensor], *, dtype: torch.dtype, where: str) -> Any:
    """Build a module around tensors; those already of type `dtype` are used as they are, mapped or not.

    Args:
        config: values of the configuration.
        tensors: the checkpoint, by the names in its file.
        dtype: type of the weights in the module.
        where: the file or folder, for messages.

    Raises:
        WrongTensors: a tensor is missing, surplus or of another shape.
    """
    whole = configuration(config)
    with quiet():
        module, info = model_class(whole).from_pretrained(
            None,
            config=whole,
            state_dict=dict(tensors),
            output_loading_info=True,
            dtype=dtype,
            attn_implementation="sdpa",
        )
    _refuse_misfits(info, tensors, where)
    return module.eval().requires_grad_(False)


def _refuse_misfits(info: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    lines = []
    for kind, found in (("missing", info["missing_keys"]), ("surplus", info["unexpected_keys"])):
        if found:
            lines.append(f"{len(found)} {kind}: {_some(sorted(found))}")
    for name, seen, wanted in sorted(info["mismatched_keys"])[:5]:
        lines.append(f"'{name}' has shape {tuple(seen)}, the configuration says {tuple(wanted)}")
    lines += [str(message) for message in info["error_msgs"]][:3]
    if lines:
        raise WrongTensors(f"the weights in '{where}' do not fit their configuration: {'; '.join(lines)}.", _REBUILD)


_REBUILD = "A model with missing or surplus weights would compute nonsense; take weights and config.json from one source."


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def refuse_nonfinite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        NotFinite: with the names of the tensors and the count of such values.
    """
    bad = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            bad[name] = int((~torch.isfinite(tensor)).sum())
    if bad:
        shown = ", ".join(f"{name} ({count} values)" for name, count in list(bad.items())[:4])
        raise NotFinite(
            f"'{where}' has weights that are NaN or infinite, in {len(bad)} of {len(tensors)} tensors: {shown}.",
            "Every result of such a model is meaningless; open it with allow_nonfinite=True only to look inside.",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Say whether all values are finite; a NaN makes both ends of the range NaN."""
    if tensor.numel() == 0:
        return True
    # the two extremes are one pass over memory without a mask of its size
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and warnings; what matters is raised instead."""
    from transformers.utils import logging as theirs

    logger = logging.getLogger("transformers")
    level, bars = logger.level, theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            theirs.enable_progress_bar()
