"""From a configuration and tensors to a transformers module, with nothing missing and nothing altered.

transformers fills what a checkpoint lacks with random numbers and a warning; here that is an error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from kobza.core.errors import Corrupt, KobzaError, NotFinite, WrongTensors

FREE = "kobza"  # the family of `models.free`
_LOSSES = "transformers.loss.loss_utils"


def skeleton(config: dict[str, Any]) -> Any:
    """Build the module on the meta device: names and shapes, no memory."""
    whole = configuration(config)
    with torch.device("meta"), quiet():
        return _instance(whole)


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
    if family == FREE:
        import_module("kobza.models.free")  # kobza's own family: makes itself known to transformers
    try:
        with quiet():
            return AutoConfig.for_model(family, **values)
    except Exception as error:
        if isinstance(error, KobzaError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise Corrupt(f"the configuration of family {family!r} is not usable: {reason}.") from None


def model_class(config: Any) -> Any:
    """Return the class of causal language model for a configuration.

    Raises:
        Corrupt: transformers has none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    _spare_scipy()
    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        family = getattr(config, "model_type", type(config).__name__)
        raise Corrupt(f"transformers has no causal language model of the family {family!r}.") from None
    return found[0] if isinstance(found, tuple) else found


def _spare_scipy() -> None:
    """Import transformers' losses without scipy, 30 MB that those of object detection alone need: it comes when asked.

    Does nothing where either is already imported.
    """
    if {"scipy", _LOSSES} & sys.modules.keys():
        return
    from transformers import utils

    known = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        import_module(_LOSSES)
    finally:
        utils.is_scipy_available = known
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.loss."):
            vars(module).setdefault("linear_sum_assignment", _linear_sum_assignment)


def _linear_sum_assignment(*given: Any, **more: Any) -> Any:
    """Call scipy's function of this name."""
    return import_module("scipy.optimize").linear_sum_assignment(*given, **more)


def build(config: dict[str, Any], tensors: Mapping[str, torch.Tensor], *, dtype: torch.dtype, where: str) -> Any:
    """Build a module around tensors; those already of type `dtype` are used as they are, mapped or not.

    Args:
        config: values of the configuration.
        tensors: the checkpoint, by the names in its file.
        dtype: type of the weights in the module.
        where: the file or folder, for messages.

    Returns:
        The module. If the configuration ties both ends but the checkpoint has two different ones, they stay apart
        and the module's configuration says so.

    Raises:
        WrongTensors: a tensor is missing, surplus or of another shape.
    """
    whole = configuration(config)
    plan = skeleton(config)
    _check_plan(plan, tensors, where)
    with quiet():
        module, info = model_class(whole).from_pretrained(
            None,
            config=whole,
            state_dict=dict(tensors),
            output_loading_info=True,
            dtype=dtype,
            attn_implementation="sdpa" if plan._supports_sdpa else "eager",
        )
    refuse_misfits(info, where)
    _state_ties(module)
    return module.eval().requires_grad_(False)


def refuse_misfits(info: Mapping[str, Any], where: str) -> None:
    """Raise unless transformers' report on a loading is clean.

    Raises:
        WrongTensors: with what is missing, surplus or of another shape.
    """
    missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    wrong = [(name, tuple(seen), tuple(wanted)) for name, seen, wanted in info["mismatched_keys"]]
    _refuse_misfits(missing, surplus, wrong, where)
    if info["error_msgs"]:
        raise WrongTensors(f"the weights in '{where}' cannot be placed: {next(iter(info['error_msgs']))}.", _REBUILD)


def generation(values: dict[str, Any], where: str) -> Any:
    """Build the settings that a model's authors recommend for generation.

    Raises:
        Corrupt: a value is not allowed.
    """
    from transformers import GenerationConfig

    try:
        with quiet():
            return GenerationConfig.from_dict({key: value for key, value in values.items() if key[:1] != "_"})
    except Exception as error:  # noqa: BLE001 (transformers checks values with exceptions of many kinds)
        reason = " ".join(str(error).split())[:200]
        raise Corrupt(f"the generation_config.json of '{where}' is not usable: {reason}.") from None


def _instance(config: Any) -> Any:
    """Make the module of a configuration on the current device."""
    try:
        return model_class(config)(config)
    except KobzaError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a family raises about values that contradict each other)
        reason = " ".join(str(error).split())[:200]
        family = config.model_type
        raise Corrupt(f"no model of the family {family!r} can have this configuration: {reason}.") from None


def _check_plan(plan: Any, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Compare names and shapes on the meta device, before any memory is taken.

    A checkpoint that uses other names than the module (older ones, unmerged experts) is only held to the total:
    transformers renames on loading and reports what is left.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    wanted = dict(plan.state_dict())
    tied = set(plan.all_tied_weights_keys)
    needed = {name for name in wanted if name not in tied}
    total = sum(wanted[name].numel() for name in needed)
    buffers = sum(buffer.nbytes for _, buffer in plan.named_non_persistent_buffers())
    if buffers > max(_MOST_BUFFERS, 8 * held):
        raise Corrupt(f"'{where}': its configuration asks for tables of {buffers >> 20} MiB beside the weights.")
    if tensors.keys() <= wanted.keys():
        shapes = ((name, tuple(tensor.shape), tuple(wanted[name].shape)) for name, tensor in tensors.items())
        wrong = [(name, seen, should) for name, seen, should in shapes if seen != should]
        sources = plan.all_tied_weights_keys
        missing = {name for name in needed - tensors.keys() if not _given_elsewhere(name, sources, tensors)}
        _refuse_misfits(sorted(missing), [], wrong, where)
    elif not held / 2 <= total <= 2 * held:
        raise WrongTensors(
            f"the configuration of '{where}' describes {total:,} numbers, the weights hold {held:,}.", _REBUILD
        )


_MOST_BUFFERS = 256 << 20  # bytes


def _given_elsewhere(name: str, sources: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Say whether a tied weight is stored under its partner's name."""
    return any(source == name and target in tensors for target, source in sources.items())


def _state_ties(module: Any) -> None:
    """Make the configuration say whether both ends are one tensor."""
    ends = [part.weight for part in (module.get_input_embeddings(), module.get_output_embeddings()) if part is not None]
    if len(ends) == 2 and ends[0] is not ends[1]:
        for config in (module.config, module.config.get_text_config()):
            config.tie_word_embeddings = False


def _refuse_misfits(
    missing: list[str], surplus: list[str], wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]], where: str
) -> None:
    found = [
        f"{len(names)} {kind}: {_some(names)}" for kind, names in (("missing", missing), ("surplus", surplus)) if names
    ]
    found += [f"'{name}' has shape {seen}, the configuration says {wanted}" for name, seen, wanted in wrong[:4]]
    if len(wrong) > 4:
        found.append(f"{len(wrong) - 4} more of another shape")
    if found:
        raise WrongTensors(f"the weights in '{where}' do not fit their configuration: {'; '.join(found)}.", _REBUILD)


_REBUILD = "A model with missing or surplus weights computes nonsense; take weights and config.json from one source."


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
