"""GGUF files: tensors mapped, dequantized and named as transformers names them, bit for bit.

Values come from `gguf.quants`, the reference implementation in numpy. Names and layouts (llama.cpp permutes the rows
of q and k, transposes GPT-2, adds one to Gemma's norms ...) are undone by transformers' own tensor processors.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kobza.core.errors import Corrupt, MissingExtra, Unavailable, WrongTensors
from kobza.core.progress import task
from kobza.models import building, configuring
from kobza.models.contents import Contents
from kobza.models.gguf_config import PLAIN, config_dict, tokenizer
from kobza.models.gguf_header import TYPES, Header, TensorInfo, read_header


def read(path: Path, name: str) -> Contents:
    """Read a GGUF file whole.

    Raises:
        Corrupt, Truncated: the file is not sound.
        WrongTensors: it has tensors that its architecture does not know, or of a type that cannot be read.
    """
    header = read_header(path)
    vocabulary = tokenizer(header, name)
    if header.architecture in PLAIN:
        config = config_dict(header)
        values = sum(math.prod(info.shape) for info in header.tensors.values())
        configuring.check_sizes(config, len(header.tensors), values, str(path))
        tensors = _tensors(header, config)
    else:
        config, tensors = _by_transformers(header)
    notes = (f"weights dequantized from {_types(header)}",)
    licence = header.fields.get("general.license", "")
    return Contents(config, tensors, vocabulary, notes, licence if isinstance(licence, str) else "")


def _by_transformers(header: Header) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Let transformers read a file whose architecture has rules of its own; slower, but right.

    Raises:
        MissingExtra: that needs the package accelerate.
        Unavailable: transformers does not know the architecture either.
        WrongTensors: tensors are missing, surplus or of another shape.
    """
    from transformers import AutoModelForCausalLM

    path = header.path
    try:
        with building.quiet():
            module, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, ImportError, KeyError, NotImplementedError) as error:
        if "accelerate" in str(error):
            what = f"reading a GGUF file of the architecture {header.architecture!r}"
            raise MissingExtra(f"{what} needs the package 'accelerate'.", "pip install accelerate") from None
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(
            f"'{path}' is of the architecture {header.architecture!r}, which transformers cannot read: {reason}.",
            f"Take a safetensors version of the model. Read here: {', '.join(sorted(PLAIN))}.",
        ) from None
    building.refuse_misfits(info, str(path))
    config = module.config.to_dict()
    config.pop("quantization_config", None)
    tied = set(module.all_tied_weights_keys)
    return config, {name: tensor for name, tensor in module.state_dict().items() if name not in tied}


def _types(header: Header) -> str:
    counts: dict[str, int] = {}
    for info in header.tensors.values():
        counts[info.type_name] = counts.get(info.type_name, 0) + 1
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _tensors(header: Header, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config)
    names = _names(header, config)
    placed: dict[str, torch.Tensor] = {}
    collected: dict[str, Any] = {"tensors": placed}  # some processors put their result here themselves
    surplus = []
    for info, values in _dequantized(header):
        result = processor.process(
            weights=values, name=info.name, tensor_key_mapping=names, parsed_parameters=collected
        )
        if result.name in names:
            placed[names[result.name]] = torch.from_numpy(np.ascontiguousarray(result.weights))
        elif result.name is not None:
            surplus.append(info.name)
    _refuse_surplus(header, surplus)
    return placed


def _refuse_surplus(header: Header, surplus: list[str]) -> None:
    # rope_freqs only repeats what the configuration says
    surplus = [name for name in surplus if not name.startswith("rope_freqs")]
    if surplus:
        shown = ", ".join(surplus[:5]) + (", ..." if len(surplus) > 5 else "")
        raise WrongTensors(
            f"'{header.path}' has {len(surplus)} tensors that a model of its architecture "
            f"({header.architecture}) has no place for: {shown}.",
            "The file was made by a newer or altered converter.",
        )


def _names(header: Header, config: dict[str, Any]) -> dict[str, str]:
    """Return ggml's tensor names -> transformers' for this configuration.

    Source: transformers `get_gguf_hf_weights_map`, whose result this equals; it builds ggml's table of names anew
    for each of the model's modules (7 s for 30 blocks), here it is built once.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    module = building.skeleton(config)
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    table = get_tensor_name_map(kind, module.config.num_hidden_layers)
    return _named(module, list(module.state_dict()), table, "")


def _named(module: Any, keys: list[str], table: Any, prefix: str) -> dict[str, str]:
    """Look up a module's keys, then those of its children under their shorter names; the outermost name counts."""
    found = {}
    for key in keys:
        stem, dot, suffix = key.rpartition(".")
        name, end = (stem, dot + suffix) if suffix in ("weight", "bias") else (key, "")
        ggml = table.get_name(name)
        if ggml is not None:
            found[ggml + end] = prefix + key
    for name, child in module.named_children():
        inner = [key.removeprefix(name + ".") for key in keys if key.startswith(name + ".")]
        for ggml, key in _named(child, inner, table, f"{prefix}{name}.").items():
            found.setdefault(ggml, key)
    return found


def _dequantized(header: Header) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    with open(header.path, "rb") as file:
        # the map goes with the last array that looks at it: closing it by force hides what interrupted the reading
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    with task("dequantizing", total=len(header.tensors)) as progress:
        for info in header.tensors.values():
            yield info, _values(whole, info)
            progress.step(note=info.name)


def _values(whole: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return a tensor's values as float32 in its own memory."""
    # a damaged scale may be NaN or huge: the check of all weights says so, not a warning of numpy
    with np.errstate(all="ignore"):
        return _unpacked(whole[info.offset : info.offset + info.nbytes], info)


def _unpacked(raw: np.ndarray, info: TensorInfo) -> np.ndarray:
    import gguf

    _, block, block_bytes = TYPES[info.type]
    kind = gguf.GGMLQuantizationType(info.type)
    if block == 1:
        return _plain_values(raw, info).reshape(info.shape)
    rows = raw.reshape(*info.shape[:-1], info.shape[-1] // block * block_bytes)
    try:
        return np.asarray(gguf.dequantize(rows, kind))
    except NotImplementedError:
        raise Corrupt(
            f"'{info.name}' is stored as {info.type_name}, which cannot be dequantized.",
            "Convert the file to another type, e.g. Q8_0.",
        ) from None


def _plain_values(raw: np.ndarray, info: TensorInfo) -> np.ndarray:
    if info.type_name == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    types = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
    return raw.view(types[info.type_name]).astype(np.float32)
