"""Opening a model: a name, a hub id, a folder or a file becomes a Model, checked before anything is built of it.

Opening never alters weights: logits equal those of the transformers model bit for bit (opened with the same
`dtype`). The weights are float32 unless asked otherwise, whatever the file stores: every later measurement would
suffer from the rounding of half precision on a CPU.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kobza.core.errors import BadValue, Corrupt, MissingFile, WrongVocabulary
from kobza.models import building, cache, folder, gguf_file, hub, preflight
from kobza.models.contents import Contents
from kobza.models.model import Model, Origin
from kobza.models.replacing import cast
from kobza.models.sources import Source, find


def open(  # the verb of the room
    spec: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    convert_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> Model:
    """Open a model.

    Args:
        spec: "smollm2", "kobzar", a hub id "org/name[@revision]", a folder, a file *.safetensors or *.gguf,
            "folder:file.gguf", or "tiny[:family?layers=2&seed=0]", a small random model.
        dtype: type of the weights in memory: "float32" (also for None), "float16", "bfloat16".
        device: where to put them; None is the CPU.
        trust_remote_code: run Python code that comes with the model. Only for sources you trust like your own code.
        convert_pickle: read a pickle checkpoint (*.bin, *.pt), weights only.
        allow_nonfinite: open a model whose weights contain NaN or infinity.

    Returns:
        The model, in evaluation mode, without gradients.

    Raises:
        MissingFile, UnknownName: nothing is there under that name.
        Unsafe: it could run code: a pickle, remote code, a path that leaves its folder.
        Corrupt, Truncated: a header or configuration contradicts itself, its format or the file's length.
        WrongTensors, WrongVocabulary, NotFinite: the parts do not fit each other, or weights are not numbers.
        Unavailable, Offline: what would have to be installed or downloaded.
    """
    wanted = _dtype(dtype)
    if re.match(r"tiny(?![^:?])", str(spec)) and not Path(spec).exists():
        model = _tiny(str(spec))
        cast(model.module, wanted)
    else:
        more = (*(hub.CODE if trust_remote_code else ()), *(hub.PICKLES if convert_pickle else ()))
        source = find(spec, more=more)
        if trust_remote_code and source.path.is_dir():
            model = _trusted(source, wanted)
        else:
            contents, kind, digest = _read(source, pickles=convert_pickle, any_values=allow_nonfinite)
            model = _assembled(source, contents, kind, digest, wanted)
    if device is not None:
        model.module.to(device)
    return model


def _dtype(name: Any) -> torch.dtype:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None:
        return torch.float32
    if name in known.values():
        return name
    if str(name) not in known:
        raise BadValue(f"dtype must be one of {', '.join(known)}, not {name!r}.")
    return known[str(name)]


def _tiny(spec: str) -> Model:
    """Make a random model of a spec such as `tiny:gpt2?layers=3&seed=1`."""
    from urllib.parse import parse_qsl

    from kobza.core import options
    from kobza.models.tiny import tiny

    family, _, query = spec.partition(":")[2].partition("?")
    words = dict(parse_qsl(query, keep_blank_values=True))
    values = options.check(tiny, words, what=f"model '{spec}'")
    return tiny(family or "llama", **values)


def _read(source: Source, *, pickles: bool, any_values: bool) -> tuple[Contents, str, str]:
    """Read what lies at a path: contents, kind of source, SHA-256 of its one file of weights or ""."""
    path = _only_gguf(source.path)
    if path.is_file() and (path.suffix == ".gguf" or _begins_with(path, b"GGUF")):
        return _read_gguf(replace(source, path=path), any_values)
    contents, kind, digest = _read_transformers(source, pickles)
    if not any_values:
        building.refuse_nonfinite(contents.tensors, str(path))
    return contents, kind, digest


def _read_transformers(source: Source, pickles: bool) -> tuple[Contents, str, str]:
    """Read a folder, or a file of weights in one."""
    path = source.path
    if path.is_dir():
        return folder.read(path, name=source.name, pickles=pickles), "folder", ""
    if path.suffix == ".safetensors":
        return folder.read(path.parent, [path], name=source.name), "safetensors", _digest(path)
    if path.suffix in preflight.PICKLES or _begins_with(path, b"PK", b"\x80"):
        if not pickles:
            preflight.refuse_pickles([path])
        return folder.read(path.parent, [path], name=source.name), "pickle", _digest(path)
    raise BadValue(f"'{path}' is not a model: neither a folder nor a *.safetensors or *.gguf file.")


def _digest(path: Path) -> str:
    """Return a file's SHA-256, or "" where taking it would take longer than opening the model."""
    return cache.digest_of(path) if path.stat().st_size <= 1 << 30 else ""


def _only_gguf(path: Path) -> Path:
    """Return the GGUF file of a folder that has nothing else; any other path as it is."""
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise BadValue(f"'{path}' has {len(ggufs)} GGUF files.", f"Name one: kobza open '{path}:{ggufs[0].name}'")
    preflight.refuse_pickles(sorted(file for file in path.iterdir() if file.suffix in preflight.PICKLES))
    inside = path / "model"  # of a training run that was kept
    hint = f"Open '{inside}', the model in it." if (inside / "config.json").is_file() else ""
    raise MissingFile(f"the folder '{path}' has no config.json and no GGUF file, so it is not a model.", hint)


def _begins_with(path: Path, *magics: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(magics)


def _read_gguf(source: Source, any_values: bool) -> tuple[Contents, str, str]:
    digest = cache.digest_of(source.path)
    contents = cache.load(digest) or _converted(source, digest, any_values)
    contents.tokenizer.name = source.name
    return contents, "gguf", digest


def _converted(source: Source, digest: str, any_values: bool) -> Contents:
    """Dequantize a GGUF file and keep the result; what comes back is mapped from the copy where there is one."""
    contents = gguf_file.read(source.path, source.name)
    if any_values:
        return contents  # not kept: an entry of the cache is known to be finite
    building.refuse_nonfinite(contents.tensors, str(source.path))
    reason = cache.store(digest, contents)
    if reason:
        return replace(contents, notes=(*contents.notes, f"not kept in the cache: {reason}"))
    return cache.load(digest) or contents


def _assembled(source: Source, contents: Contents, kind: str, digest: str, dtype: torch.dtype) -> Model:
    where = str(source.path)
    notes = [*contents.notes, *_vocabulary_notes(contents, where)]
    module = building.build(contents.config, contents.tensors, dtype=dtype, where=where)
    if contents.config.get("tie_word_embeddings") and not module.config.get_text_config().tie_word_embeddings:
        notes.append("its configuration ties both ends, its weights hold two different ones: opened untied")
    if contents.generation:
        module.generation_config = building.generation(contents.generation, where)
    licence = contents.licence or source.licence
    origin = Origin(source.spec, where, licence, digest, kind, tuple(notes))
    model = Model(source.name, module, contents.tokenizer, origin=origin)
    return _restored(model, contents) if contents.record else model


def _restored(model: Model, contents: Contents) -> Model:
    """Put back factors, history and origin of a model that kobza saved, and compare its weights with the record.

    Raises:
        Corrupt: the weights are not those that were saved.
    """
    record = contents.record
    assert record is not None
    stored = contents.stored or contents.tensors
    restored = record.restored(model, stored)
    coded = {tensor for at in record.factored.values() if "layout" in at for tensor in at.values()}
    as_saved = all(tensor.dtype == model.dtype for name, tensor in stored.items() if name not in coded)
    if as_saved and restored.fingerprint != record.fingerprint:
        raise Corrupt(
            f"the weights in '{model.origin.path}' are not those that kobza.json records: their SHA-256 differs.",
            "The file was damaged, or changed by another program; in that case delete kobza.json.",
        )
    return restored


def _vocabulary_notes(contents: Contents, where: str) -> list[str]:
    """Refuse a tokenizer with more ids than the model has rows; say so where it has fewer."""
    text = contents.config.get("text_config")
    rows = contents.config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    ids = len(contents.tokenizer)
    if not isinstance(rows, int) or ids == rows:
        return []
    if ids > rows:
        raise WrongVocabulary(
            f"the tokenizer of '{where}' has ids up to {ids - 1}, the model has {rows} rows.",
            "They belong to different models, or tokens were added without resizing the model.",
        )
    return [f"rows {ids} .. {rows - 1} of its tables belong to no token"]


def _trusted(source: Source, dtype: torch.dtype) -> Model:
    """Open a folder by transformers, running the code that comes with it."""
    from transformers import AutoModelForCausalLM

    with building.quiet():
        module, info = AutoModelForCausalLM.from_pretrained(
            str(source.path), trust_remote_code=True, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    building.refuse_misfits(info, str(source.path))
    building.refuse_nonfinite(dict(module.named_parameters()), str(source.path))
    notes = ("opened with Python code that came with it",)
    vocabulary = folder.vocabulary(source.path, source.name)
    origin = Origin(source.spec, str(source.path), folder.licence(source.path), "", "folder", notes)
    return Model(source.name, module, vocabulary, origin=origin)
