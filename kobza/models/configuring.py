"""A model's config.json: read by ourselves, cleaned of what could run code or reach out, and held against the weights.

Keys that make transformers import code or fetch files have been the way in for attackers (CVE-2026-4372,
CVE-2026-5241); they are taken out here, before transformers sees the values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kobza.core.errors import Corrupt, Unavailable, UnknownName, Unsafe
from kobza.models import preflight
from kobza.models.building import FREE

# what names code, kernels or other files; everything that begins with "_" goes as well
_DROPPED = frozenset(
    {
        "auto_map",
        "attn_implementation",
        "experts_implementation",
        "trust_remote_code",
        "custom_pipelines",
        "kernel_config",
        "fusion_config",
        "transformers_weights",
        "distributed_config",
        "device_map",
        "transformers_version",
    }
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers")
_SIZES = (
    "hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "ffn_dim", "n_inner", "d_ff", "head_dim",
    "word_embed_proj_dim",
)  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads", "num_key_value_heads")
_COUNTS = ("experts", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
_MOST = {"layers": 4096, "heads": 65_536, "experts": 65_536}
LONGEST_CONTEXT = 1 << 28  # positions


def read(folder: Path, *, trusted: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read config.json from a folder.

    Args:
        folder: where it lies.
        trusted: the caller trusts code that comes with the model.

    Returns:
        The values, cleaned, and notes on what was left out.

    Raises:
        MissingFile, Corrupt: there is none, or it is not sound.
        Unsafe: the model needs code of its own.
        UnknownName: transformers does not know the family.
        Unavailable: the weights are quantized by a method that needs other software.
    """
    config = preflight.json_object(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise Corrupt(f"'{folder / 'config.json'}' does not say which family of models it is ('model_type').")
    if not trusted:
        _check_family(folder, family, "auto_map" in config)
    method = config.get("quantization_config")
    if method is not None:
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        raise Unavailable(
            f"'{folder}' holds weights quantized by {str(name)[:40]!r}, which kobza does not read.",
            "Take the model's unquantized safetensors files or a GGUF file.",
        )
    notes = ("its own Python code (auto_map) was not run",) if "auto_map" in config and not trusted else ()
    return _cleaned(config), notes


def _check_family(folder: Path, family: str, has_code: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if family in CONFIG_MAPPING_NAMES or family == FREE:
        return
    if has_code:
        raise Unsafe(
            f"'{folder}' is of the family {family!r}, which only Python code that comes with it can run.",
            "If you trust that code like your own: kobza.open(..., trust_remote_code=True)",
        )
    raise UnknownName.of("family of models", family, CONFIG_MAPPING_NAMES)


def _cleaned(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _DROPPED and not key.startswith("_")}
    return {key: _cleaned(value) if isinstance(value, dict) else value for key, value in kept.items()}


def check_sizes(config: dict[str, Any], tensors: int, values: int, where: str) -> None:
    """Refuse sizes that the weights cannot have, before anything of that size is built.

    Args:
        config: values of the configuration.
        tensors: how many tensors the weights have.
        values: how many numbers they hold in all.
        where: the file, for messages.

    Raises:
        Corrupt: names the key, its value and what is allowed.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        most = (
            _MOST["layers"] if part.get("model_type") == FREE else min(tensors, _MOST["layers"])
        )  # layers may be shared
        _bounded(part, _LAYERS, most, f"the weights have {tensors} tensors", where)
        _bounded(part, _SIZES, values, f"the weights hold {values} numbers", where)
        _bounded(part, _HEADS, min(values, _MOST["heads"]), "a head needs weights", where)
        _bounded(part, _COUNTS, min(values, _MOST["experts"]), "an expert needs weights", where)
        _bounded(part, ("max_position_embeddings", "n_positions", "n_ctx"), LONGEST_CONTEXT, "no model has more", where)
    width, heads = (next((config[k] for k in keys if k in config), None) for keys in (_SIZES[:3], _HEADS[:3]))
    if width and heads and "head_dim" not in config and width % heads:
        raise Corrupt(f"'{where}': the width {width} is not a multiple of the {heads} attention heads.")


def _bounded(part: dict[str, Any], keys: tuple[str, ...], most: int, why: str, where: str) -> None:
    for key in keys:
        value = part.get(key)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= most:
            shown = repr(value)[:40]
            raise Corrupt(f"'{where}': {key} is {shown}; it must be a whole number, 1 .. {most} ({why}).")
