"""Writing a model as a GGUF file that llama.cpp loads; opened again and compared before it is called done.

A matrix that is stored as codes goes into the block format that holds exactly these values: signed codes of up to 4
bits into q4_0, 5 into q5_0, up to 8 into q8_0, unsigned ones of up to 4 bits into q4_1, 5 into q5_1. Dense matrices
become the type asked for; norms and biases stay float32.

Source: the GGUF specification, docs/gguf.md (github.com/ggml-org/ggml), and ggml-common.h for the blocks.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import BadValue, CheckFailed, Unavailable
from kobza.core.files import atomic_file
from kobza.models import card, gguf_vocabulary, replacing
from kobza.models.model import Model
from kobza.models.quantized import Coded, Quantized

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# our type -> llama.cpp's number for a file that is mostly so (enum llama_ftype)
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
BLOCK = 32  # columns of a block of all these types
_ENDS = {"embed.in": "token_embd", "embed.out": "output", "norm": "output_norm"}
_BLOCK = {
    "norm1": "attn_norm", "norm2": "ffn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
    "attn.o": "attn_output", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        file_bytes: its size, vocabulary and all.
        tensor_bytes: of its tensors.
        types: GGUF type -> number of tensors.
        kept_codes: matrices whose codes were taken over exactly.
        largest_difference: of a logit, between the model and the file opened again (0 where no matrix was rounded).
    """

    path: Path
    file_bytes: int
    tensor_bytes: int
    types: dict[str, int]
    kept_codes: int
    largest_difference: float

    def __str__(self) -> str:
        held = ", ".join(f"{name} ({count})" for name, count in self.types.items())
        return (
            f"{self.path}: {self.file_bytes:,} bytes, {held}; opened again, logits within {self.largest_difference:.3g}"
        )


def export(
    model: Model,
    path: str | Path,
    *,
    type: str = "q8_0",
    table: str = "",
    readings: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> Exported:
    """Write a GGUF file.

    Args:
        model: the model; it is not changed.
        path: the file; it is replaced if it exists.
        type: of dense matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0. Matrices whose columns are no multiple
            of 32 become f16 instead of a block type.
        table: type of the tables of embeddings, if another.
        readings: lines for the model card `<file>.md`: what was measured.
        texts: further texts to put beside it, by what is added to its name (`yaml`: a recipe, `<file>.yaml`).

    Raises:
        BadValue: no such type.
        Unavailable: a family, a part or a vocabulary that this export does not know.
        CheckFailed: the file opened again gives other weights or logits; nothing is left there.
        CannotWrite: the place cannot be written; nothing is left there.

    A model card is written beside the file, `<file>.md`.
    """
    for one in (type, table or type):
        if one[2:4] == "_k":
            narrow = min(W.shape[1] for W in model.matrices.values() if len(W.shape) == 2)
            raise BadValue(
                f"{one!r} packs rows in blocks of 256 columns; the narrowest matrix of {model.name!r} has {narrow}, "
                "and the gguf package writes no such blocks.",
                f"Written are: {', '.join(TYPES)}. llama.cpp's llama-quantize turns an f16 file into k-quants, and "
                "stores rows that are no multiple of 256 in another type.",
            )
        if one not in TYPES:
            raise BadValue(f"no GGUF type {one!r} is written; there are: {', '.join(TYPES)}.")
    if model.family.name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise Unavailable(f"models of the family {model.family.name!r} are not written as GGUF; known: {known}.")
    entries = list(_entries(model, type, table or type))
    types: dict[str, int] = {}
    for entry in entries:
        types[entry.type] = types.get(entry.type, 0) + 1
    held = ", ".join(f"{name} ({count})" for name, count in types.items())
    statement = f"A GGUF file for llama.cpp, with {held}; transformers opens it by `gguf_file=`."
    beside = {"md": card.text(model, statement, readings, "gguf"), **(texts or {})}
    with ExitStack() as whole:  # all are written before one is put in its place
        for suffix, words in beside.items():
            small = whole.enter_context(atomic_file(f"{path}.{suffix}"))
            small.write(words.encode())
            small.flush()
        file = whole.enter_context(atomic_file(path))
        _write(Path(file.name), model, entries, type)
        difference = _check(Path(file.name), model, entries)
        size = Path(file.name).stat().st_size
    kept = sum(entry.is_kept for entry in entries)
    return Exported(Path(path), size, sum(entry.data.nbytes for entry in entries), types, kept, difference)


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its name there, its type, its bytes as rows, and what they read back as."""

    name: str
    ours: str
    type: str
    data: np.ndarray[Any, Any]
    values: Tensor
    is_kept: bool = False


def _entries(model: Model, type: str, table: str) -> Iterator[Entry]:
    for name, matrix in model.matrices.items():
        if matrix.shared == "embed.in":
            continue  # a file without an output table uses the input's; a repeated block is written twice
        theirs = _their_name(model, name)
        value = _coded(model, name)
        wanted = type if len(matrix.shape) == 2 and not name.startswith("embed") else table
        if len(matrix.shape) == 1:
            W = model.matrix(name)
            yield Entry(theirs, name, "f32", W.numpy(), W)
            continue
        raw = blocks(value) if value is not None else None
        kind, data = raw or _converted(model.matrix(name), wanted)
        yield Entry(theirs, name, kind, data, _read_back(data, kind), raw is not None)


def _their_name(model: Model, name: str) -> str:
    stem, suffix = (name.removesuffix(".bias"), "bias") if name.endswith(".bias") else (name, "weight")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{suffix}"
    _, layer, part = (*stem.split(".", 2), "", "")[:3]
    if not stem.startswith("blocks.") or part not in _BLOCK:
        raise Unavailable(f"{name!r} of {model.name!r} has no place in a GGUF file of its family.")
    return f"blk.{layer}.{_BLOCK[part]}.{suffix}"


def _coded(model: Model, name: str) -> Quantized | None:
    part = model.module.get_submodule(model.matrices[name].parameter.rpartition(".")[0])
    return part.quantized if isinstance(part, Coded) else None


def _converted(W: Tensor, kind: str) -> tuple[str, np.ndarray[Any, Any]]:
    """A dense matrix in a type; f16 where blocks do not fit its columns."""
    import gguf

    if kind[0] == "q" and W.shape[1] % BLOCK:
        kind = "f16"
    plain = {"f32": torch.float32, "f16": torch.float16}
    if kind in plain:
        return kind, W.to(plain[kind]).numpy()
    return kind, gguf.quantize(W.numpy(), gguf.GGMLQuantizationType[kind.upper()])


def _read_back(data: np.ndarray[Any, Any], kind: str) -> Tensor:
    import gguf

    if kind in ("f32", "f16"):
        return torch.from_numpy(data.astype(np.float32))
    return torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind.upper()]))


# --- codes as blocks -------------------------------------------------------------------------------------------------


def blocks(value: Quantized) -> tuple[str, np.ndarray[Any, Any]] | None:
    """Return a GGUF type and rows of its blocks with exactly the values of a coded matrix, or None if none has them."""
    M, N = value.shape
    plain = set(value.tensors) <= {"codes", "scales", "offsets"} and value.kind in ("signed", "unsigned")
    if not plain or N % BLOCK or (value.block % BLOCK and value.block != N):
        return None
    d = _per_block(value, value.tensors["scales"])
    codes = value.codes().numpy().reshape(M, N // BLOCK, BLOCK)
    if value.kind == "signed":
        shift = 2 ** (value.bits - 1)
        if value.bits > 5:
            return "q8_0", _rows(d, (codes.astype(np.int16) - shift).astype(np.int8).view(np.uint8))
        if value.bits == 5:
            return "q5_0", _rows(d, *_five(codes))
        return "q4_0", _rows(d, _nibbles(codes - shift + 8))
    m = _per_block(value, value.tensors["offsets"])
    if value.bits > 5:
        return None
    return ("q5_1", _rows(d, m, *_five(codes))) if value.bits == 5 else ("q4_1", _rows(d, m, _nibbles(codes)))


def _per_block(value: Quantized, each: Tensor) -> np.ndarray[Any, Any]:
    """A float16 number per block of 32, as bytes (M, N / 32, 2)."""
    M, N = value.shape
    wide = each.expand(M, 1) if each.numel() == 1 else each
    size = value.block if value.block % BLOCK == 0 else N
    spread = wide.repeat_interleave(math.ceil(size / BLOCK), 1)[:, : N // BLOCK]
    return spread.contiguous().numpy().view(np.uint8).reshape(M, N // BLOCK, 2)


def _nibbles(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Entries 0 .. 15 of a block in the low halves of 16 bytes, 16 .. 31 in the high ones."""
    codes = codes.astype(np.uint8)
    return codes[..., :16] | codes[..., 16:] << 4


def _five(codes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The fifth bits of a block, 4 bytes, and the nibbles of the other four."""
    return np.packbits(codes >> 4, axis=-1, bitorder="little"), _nibbles(codes & 15)


def _rows(*parts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    whole = np.concatenate(parts, axis=-1)
    return whole.reshape(whole.shape[0], -1)


# --- writing and checking --------------------------------------------------------------------------------------------


def _write(path: Path, model: Model, entries: list[Entry], type: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, ARCHITECTURES[model.family.name])
    _write_settings(writer, model, type)
    gguf_vocabulary.write(writer, model.tokenizer, model.vocabulary)
    for entry in entries:
        data = np.ascontiguousarray(_permuted(entry.data, entry.ours, model))
        kind = gguf.GGMLQuantizationType[entry.type.upper()]
        writer.add_tensor(entry.name, data, raw_dtype=None if entry.type in ("f32", "f16") else kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is None:  # numpy says so many bytes were asked for and fewer written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    finally:
        writer.close()


def _write_settings(writer: Any, model: Model, type: str) -> None:
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(model.name)
    if model.origin.licence:
        writer.add_license(model.origin.licence)
    if model.changes:
        writer.add_description("Changed by kobza: " + " | ".join(map(str, model.changes)))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_theta(model))
    writer.add_vocab_size(model.vocabulary)
    writer.add_file_type(TYPES[type])
    writer.add_quantization_version(2)


def _theta(model: Model) -> float:
    """The base of the rotary frequencies.

    Raises:
        Unavailable: they are scaled by a rule that this export does not write.
    """
    rope: dict[str, Any] = getattr(model.config, "rope_parameters", None) or {}
    theta: Any = rope.get("rope_theta") or getattr(model.config, "rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        raise Unavailable(f"rotary positions of the kind {rope['rope_type']!r} are not written as GGUF.")
    return float(theta)


def _permuted(rows: np.ndarray[Any, Any], name: str, model: Model) -> np.ndarray[Any, Any]:
    """llama.cpp's llama keeps the two halves of a head's rotary pairs interleaved; other families do not."""
    part = name.removesuffix(".bias").rpartition(".")[2]
    if ARCHITECTURES[model.family.name] != "llama" or ".attn." not in name or part not in ("q", "k"):
        return rows
    heads = model.config.num_attention_heads
    if part == "k":
        heads = getattr(model.config, "num_key_value_heads", None) or heads
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


@torch.inference_mode()
def _check(path: Path, model: Model, entries: list[Entry]) -> float:
    """Open the file again, compare every weight and the logits; return the largest difference from the model's."""
    from kobza.models import building, gguf_file

    contents = gguf_file.read(path, model.name)
    for entry in entries:
        read = contents.tensors.get(model.matrices[entry.ours].parameter)
        if read is None or not torch.equal(read, entry.values):
            raise _unequal(model, f"{entry.name} differs")
    module = building.build(contents.config, contents.tensors, dtype=torch.float32, where=str(path))
    ids = torch.arange(min(16, model.vocabulary))[None]
    read_logits, expected, ours = (
        m(input_ids=ids, use_cache=False).logits.float() for m in (module, _as_written(model, entries), model.module)
    )
    if not float((read_logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max()):
        raise _unequal(model, f"logits differ by {float((read_logits - expected).abs().max()):.3g}")
    return float((read_logits - ours).abs().max())


def _as_written(model: Model, entries: list[Entry]) -> Any:
    """The model with the values that its types can say."""
    twin = model.fork()
    for entry in entries:
        replacing.put(twin.module, model.matrices[entry.ours], entry.values)
    if model.is_tied:
        replacing.tie_ends(twin.module, model.family.modules["embed.in"], model.family.modules["embed.out"])
    return twin.module


def _unequal(model: Model, what: str) -> CheckFailed:
    hint = "Nothing was written. This is a fault of kobza or of the disk: please report it."
    return CheckFailed(f"the GGUF file of {model.name!r} opened again is not what was written: {what}.", hint)
