"""Saving a model as a folder that plain transformers opens with equal logits.

The folder: weights (safetensors, each shared tensor once), config.json, generation_config.json, the tokenizer,
README.md (a model card with origin, licence and every change), the original's licence files, and kobza.json. It is
written beside its place, opened again, compared, and only then put there.

A model with factored or quantized matrices, or with blocks that stand twice, is written as it is stored, in
`factored.safetensors`: transformers finds no weights in that folder and says so, instead of filling the gaps with
random numbers. `kobza.open` reads it; `dense=True` makes them dense for everybody else.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import CheckFailed, Unsafe
from kobza.core.files import atomic_directory
from kobza.models import card, digests, record, replacing
from kobza.models.factored import Compact, dense_like
from kobza.models.model import Model
from kobza.models.quantized import Coded

SHARD = 5_000_000_000  # bytes of one file of weights, as transformers cuts them
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
LARGEST_LICENCE = 1 << 20


@dataclass(frozen=True)
class Saved:
    """What `save` wrote.

    Attributes:
        path: the folder.
        stored_bytes: tensor bytes in it.
        file_bytes: bytes of all its files.
        opens_in_transformers: whether plain transformers opens it.
        largest_difference: of a logit, between the model and the folder opened again.
        statement: both in one sentence.
    """

    path: Path
    stored_bytes: int
    file_bytes: int
    opens_in_transformers: bool
    largest_difference: float
    statement: str

    def __str__(self) -> str:
        return f"{self.path}: {self.stored_bytes:,} bytes of weights. {self.statement}"


def save(
    model: Model,
    path: str | Path,
    *,
    dense: bool = False,
    readings: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> Saved:
    """Write a model to a new folder.

    Args:
        model: the model; it is not changed.
        path: the folder, new or empty; its parent must exist.
        dense: multiply factored matrices back, so that plain transformers opens the folder.
        readings: lines for the model card: what was measured.
        texts: further texts to put there, by file name (a recipe).

    Raises:
        CannotWrite: the place cannot be written; nothing is left there.
        Unsafe: the model runs code that came with it, and would do so wherever the folder is opened.
        CheckFailed: opened again the folder gives other weights or logits; nothing is left there.
    """
    _refuse_foreign_code(model)
    written = densified(model) if dense else model
    tensors, factored = _tensors(written)
    target = Path(path)
    with atomic_directory(target) as folder:
        repeated = replacing.repeated_blocks(written.module, written.family.blocks)
        is_own = bool(factored or repeated)
        files = _write_weights(folder, tensors, "factored" if is_own else "model")
        _write_configuration(folder, written)
        written.tokenizer.save(folder)
        _copy_licences(model, folder)
        about = record.Record(
            model.name,
            model.origin,
            model.changes,
            written.fingerprint,
            written.stored_bytes,
            written.is_tied,
            tuple(files),
            factored,
            repeated,
        )
        (folder / record.FILE).write_text(about.to_json(), encoding="utf-8")
        statement = _statement(written, is_own, dense and written is not model)
        (folder / "README.md").write_text(card.text(written, statement, readings), encoding="utf-8")
        for name, words in (texts or {}).items():
            (folder / name).write_text(words, encoding="utf-8")
        difference = check(written, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
    is_plain = not is_own and not card.is_free(written)
    return Saved(target, written.stored_bytes, size, is_plain, difference, statement)


def _refuse_foreign_code(model: Model) -> None:
    home = type(model.module).__module__.split(".")[0]
    if home == "transformers_modules":
        raise Unsafe(
            f"{model.name!r} runs Python code that came with it; kobza does not pass such code on.",
            "Save its matrices alone: kobza look MODEL extract.",
        )


def _statement(model: Model, is_factored: bool, is_multiplied: bool) -> str:
    if card.is_free(model):
        return (
            "Its form is none of transformers', which cannot open it and says so: kobza.open reads the folder, or any "
            "program that imports kobza.models.free first."
        )
    if is_factored:
        return (
            "Some matrices are stored as factors or codes, or blocks stand twice and are stored once: kobza.open reads "
            "the folder; plain transformers finds no weights in it and refuses it. Save with dense=True for plain "
            "transformers."
        )
    if is_multiplied:
        return "Plain transformers opens it; all was made dense, so it is as big as the dense model."
    return "Plain transformers opens it and gives the same logits."


def densified(model: Model) -> Model:
    """Return the model with factors multiplied back, codes decoded, repeated blocks copied; itself if it has none."""
    repeated = replacing.repeated_blocks(model.module, model.family.blocks)
    if not repeated and not any(matrix.stored_as != "dense" for matrix in model.matrices.values()):
        return model
    twin = model.fork()
    for path, part in list(twin.module.named_modules()):
        if isinstance(part, Compact):
            replacing.set_module(twin.module, path, dense_like(part))
    for path in repeated:
        for part in twin.module.get_submodule(path).modules():
            for leaf, old in part._parameters.items():
                if old is not None:
                    part._parameters[leaf] = replacing.frozen(old.clone(), old.dtype, old.device)
    if model.is_tied:
        ends = model.family.modules
        replacing.tie_ends(twin.module, ends["embed.in"], ends["embed.out"])
    return twin


def _tensors(model: Model) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return every tensor to write, each once, and where factors and codes are (see `record.Record.factored`)."""
    seen: dict[int, str] = {}
    tensors = {}
    skipped = set(getattr(model.module, "_keys_to_ignore_on_save", None) or ())
    for name, tensor in model.module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in skipped:
            seen[id(tensor)] = name
            tensors[name] = tensor.detach()
    factored: dict[str, dict[str, Any]] = {}
    for name, matrix in model.matrices.items():
        if matrix.stored_as != "dense" and not matrix.shared:
            owner = matrix.parameter.removesuffix(".weight")
            key = "embed" if name == "embed.in" and model.is_tied else name
            part = model.module.get_submodule(owner)
            factored[key] = {role: seen[id(value)] for role, value in part.named_parameters() if role != "bias"}
            factored[key]["weight"] = matrix.parameter
            if isinstance(part, Coded):
                factored[key]["layout"] = part.quantized.layout()
            if matrix.is_transposed:
                factored[key]["is_transposed"] = True
    return tensors, factored


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], stem: str) -> list[str]:
    """Write one file, or several of at most `SHARD` bytes and their index; return the file names."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", shards[0])
        return [f"{stem}.safetensors"]
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return names


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the safetensors format, one after the other: memory stays at one tensor.

    The format: 8 bytes length of the header (little endian), the header (JSON: type, shape, byte range of each
    tensor), the bytes. Permissions follow the umask, which the library's own writer does not.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in a mapped file
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(digests.raw_bytes(tensor))


def _write_configuration(folder: Path, model: Model) -> None:
    config = copy.deepcopy(model.module.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):  # a GGUF leaves it; the weights are plain now
        if hasattr(config, name):
            delattr(config, name)
    config.architectures = [type(model.module).__name__]
    config.dtype = model.dtype
    values = json.loads(config.to_json_string(use_diff=True))
    # always in words: versions of transformers differ in what they assume
    values["tie_word_embeddings"] = model.is_tied
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    generation = getattr(model.module, "generation_config", None)
    if generation is not None:
        text = generation.to_json_string()
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


def _copy_licences(model: Model, folder: Path) -> None:
    source = Path(model.origin.path) if model.origin.path else None
    source = source if source is None or source.is_dir() else source.parent
    for pattern in LICENCES if source is not None and source.is_dir() else ():
        for file in sorted(source.glob(pattern)) if source is not None else ():
            if file.is_file() and file.stat().st_size <= LARGEST_LICENCE:
                shutil.copyfile(file, folder / file.name)


@torch.inference_mode()
def check(model: Model, folder: Path) -> float:
    """Open a saved folder again and return the largest difference of a logit from the model's.

    Raises:
        CheckFailed: the weights differ in a bit, or a logit by more than 1e-5 of the largest.
    """
    again = _reopened(model, folder)
    ids = torch.arange(min(16, model.vocabulary), device=model.device)[None]
    ours, theirs = (m(input_ids=ids, use_cache=False).logits.float() for m in (model.module, again))
    difference = float((ours - theirs.to(ours.device)).abs().max())
    same_weights = digests.fingerprint(again) == model.fingerprint
    if not same_weights or not difference <= 1e-5 * float(ours.abs().max()):
        weights = "equal" if same_weights else "different"
        raise CheckFailed(
            f"the saved model does not equal {model.name!r}: {weights} weights, logits differ by {difference:.3g}.",
            "Nothing was written. This is a fault of kobza or of the disk: please report it.",
        )
    return difference


def _reopened(model: Model, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from kobza.models.building import quiet

    about = record.read(folder)
    assert about is not None, "the record was written a moment ago"
    implementation = model.module.config._attn_implementation
    if not about.is_own:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=model.dtype, attn_implementation=implementation
            ).eval()
    from kobza.models.folder import mapped

    tensors = mapped([folder / name for name in about.weights])
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    from kobza.models.building import build

    built = build(values, about.unfactored(tensors), dtype=model.dtype, where=str(folder))
    built.set_attn_implementation(implementation)
    plain = Model(model.name, built, model.tokenizer, family=model.family)
    return about.restored(plain, tensors).module
