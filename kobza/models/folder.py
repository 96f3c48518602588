"""Folders as transformers writes them: config.json, safetensors (one file or shards), tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kobza.core.errors import Corrupt, KobzaError, MissingExtra, MissingFile, Unsafe, WrongTensors
from kobza.models import building, configuring, preflight, record
from kobza.models.contents import Contents
from kobza.tokens.base import Tokenizer

_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_PICKLES = ("pytorch_model.bin", "consolidated.00.pth", "model.bin", "model.pt")


def read(folder: Path, files: Sequence[Path] | None = None, *, name: str = "", pickles: bool = False) -> Contents:
    """Read a folder.

    Args:
        folder: with config.json and a tokenizer.
        files: the weights, if not those that the folder itself names.
        name: what to call the model.
        pickles: a pickle may be read if there are no safetensors.

    Raises:
        MissingFile, Corrupt, Truncated, Unsafe: see `preflight`, `configuring`.
    """
    config, notes = configuring.read(folder)
    about = record.read(folder) if files is None else None
    if about and about.is_own:
        files = preflight.beside(folder, about.weights, str(folder / record.FILE))
    elif files is None:
        files = _weights(folder, pickles)
    if any(file.suffix in preflight.PICKLES for file in files):
        tensors = unpickled(files)
        notes = (*notes, f"weights converted from the pickle {files[0].name}")
    else:
        headers = [preflight.safetensors_header(file) for file in files]
        values = sum(entry.values for header in headers for entry in header.values())
        configuring.check_sizes(config, sum(map(len, headers)), values, str(folder / "config.json"))
        tensors = mapped(files)
    stored: dict[str, torch.Tensor] = {}
    if about and about.is_own:
        _check_factors(about, tensors, config)
        stored, tensors = tensors, about.unfactored(tensors)
    words = vocabulary(folder, name or folder.name)
    generation = folder / "generation_config.json"
    habits = preflight.json_object(generation) if generation.is_file() else {}
    return Contents(config, tensors, words, notes, licence(folder), habits, about, stored)


def _check_factors(about: record.Record, tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Refuse factors and codes that are not of the size their module wants, before they are multiplied."""
    wanted = building.skeleton(config).state_dict()
    for name, at in about.factored.items():
        whole = wanted.get(at["weight"])
        if whole is None or math.prod(about.value(name, tensors).shape) != whole.numel():
            raise WrongTensors(f"the factors or codes of {name!r} do not fit the configuration.")


def _weights(folder: Path, pickles: bool) -> list[Path]:
    if pickles:
        found = [folder / name for name in _PICKLES if (folder / name).is_file()]
        found += sorted(folder.glob("pytorch_model-*-of-*.bin"))
        if found and not list(folder.glob("*.safetensors")):
            return found
    return preflight.shards(folder)


def mapped(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Map the tensors of checked safetensors files into memory.

    Raises:
        Corrupt: a name occurs in two files, or the library refuses a file.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                twice = tensors.keys() & set(names)
                if twice:
                    raise Corrupt(f"the tensor {min(twice)!r} is in '{file}' and in a file before it.")
                tensors |= {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, TypeError) as error:
            raise Corrupt(f"'{file}' cannot be read: {error}.") from None
    return tensors


def unpickled(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Read pickles of tensors with torch's restricted reader, which runs no code of theirs.

    Raises:
        Unsafe: a file holds something other than tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 (the reader raises whatever a damaged file provokes)
            reason = " ".join(str(error).split())[:160]
            raise Unsafe(f"'{file}' is not a pickle of tensors alone: {reason}.", "kobza reads no others.") from None
        found = found.get("state_dict", found) if isinstance(found, Mapping) else found
        if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise Unsafe(f"'{file}' holds other things than named tensors.", "kobza reads no others.")
        tensors |= {str(key): value.detach() for key, value in found.items()}
    return tensors


def vocabulary(folder: Path, name: str) -> Tokenizer:
    """Read the tokenizer of a folder: tokenizer.json, else whatever transformers can convert to one.

    Raises:
        MissingFile: there is none.
        Corrupt, MissingExtra: it is not sound, or converting it needs another package.
    """
    if (folder / "tokenizer.json").is_file():
        found = Tokenizer.from_file(folder)
        found.name = name
        return found
    if any((folder / file).is_file() for file in _TOKENIZERS):
        return _converted(folder, name)
    raise MissingFile(
        f"the folder '{folder}' has no tokenizer (tokenizer.json, {', '.join(_TOKENIZERS[:3])}, ...).",
        "Fetch it from where the weights came from: without it ids mean nothing.",
    )


def _converted(folder: Path, name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    from kobza.models.building import quiet
    from kobza.tokens.reading import read_marks

    try:
        with quiet():
            theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        backend = theirs.backend_tokenizer
    except ImportError as error:
        package = "sentencepiece" if "sentencepiece" in str(error) else "tiktoken"
        raise MissingExtra(
            f"the tokenizer in '{folder}' needs {package!r}: {error}", f"pip install {package}"
        ) from None
    except Exception as error:  # converters raise whatever a damaged file provokes
        if isinstance(error, KobzaError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise Corrupt(f"the tokenizer in '{folder}' cannot be read: {reason}.") from None
    return Tokenizer(backend, read_marks(folder, backend), name=name)


def licence(folder: Path) -> str:
    """Return the licence that a folder's README states in its header, or ""."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    with open(readme, "rb") as file:
        head = file.read(1 << 16).decode("utf-8", errors="replace")
    if not head.startswith("---"):
        return ""
    found = re.search(r"^license:\s*[\"']?([^\s\"']+)", head.split("\n---", 1)[0], re.MULTILINE)
    return found[1] if found else ""
