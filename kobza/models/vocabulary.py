"""Open a vocabulary from anything that has one: a vocabulary file, a GGUF file, a model's name, folder or object.

Of a GGUF file only the header is read, of a folder only the tokenizer's files: no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kobza.models import sources
from kobza.models.gguf_config import tokenizer
from kobza.models.gguf_header import read_header
from kobza.tokens import opening
from kobza.tokens.base import Tokenizer

_FILES = (".tiktoken", ".model", ".json", ".txt")


def vocabulary(spec: str | Path | Any, *, pattern: str = "", special: Mapping[str, int] | None = None) -> Tokenizer:
    """Open a vocabulary in one call.

    Args:
        spec: whatever `kobza.tokens.opening.open` opens, or whatever `kobza.open` does.
        pattern: split pattern of a `.tiktoken` file that is not a published one.
        special: control tokens of such a file by name.

    Raises:
        MissingFile, UnknownName: there is nothing of that name.
        Corrupt, Truncated: the file contradicts its format, or breaks off.
        Unavailable, Offline: a package is missing, or the model would have to be downloaded.
    """
    is_named = isinstance(spec, str | Path)
    if not is_named or str(spec) == "bytes" or Path(spec).suffix in _FILES:
        return opening.open(spec, pattern=pattern, special=special)
    if re.match(r"tiny(?![^:?])", str(spec)) and not Path(spec).exists():
        from kobza.models.opening import open as open_model

        return open_model(spec).tokenizer
    source = sources.find(spec)
    gguf = _gguf(source.path)
    if gguf is not None:
        return tokenizer(read_header(gguf), source.name)
    return opening.open(source.path, pattern=pattern, special=special)


def _gguf(path: Path) -> Path | None:
    """Return the GGUF file that a path is, or the only one in a folder without a tokenizer."""
    if path.is_file():
        with path.open("rb") as file:
            return path if file.read(4) == b"GGUF" else None
    found = [] if (path / "tokenizer.json").is_file() else sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None
