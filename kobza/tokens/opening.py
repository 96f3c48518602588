"""Open any vocabulary in one call, offline: the file says what it is.

    open("o200k_base.tiktoken")   open("tokenizer.json")   open("tokenizer.model")   open("vocab.json")   open("bytes")

Models and GGUF files are opened one floor above: `kobza.vocabulary` takes everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from kobza.core.errors import BadValue, Corrupt, MissingFile, Truncated, guess
from kobza.core.files import sha256
from kobza.tokens import patterns
from kobza.tokens.base import Marks, Tokenizer
from kobza.tokens.ranks import Ranked, bytes_vocabulary, read_ranks, refuse_lacking
from kobza.tokens.reading import LARGEST
from kobza.tokens.sentencepieces import SentencePieces

KINDS = ".tiktoken, tokenizer.json, a SentencePiece .model, vocab.json with merges.txt, a folder with one, or 'bytes'"


def open(  # the verb of the room
    spec: str | Path | Tokenizer | Any, *, pattern: str = "", special: Mapping[str, int] | None = None
) -> Tokenizer:
    """Open a vocabulary; nothing is fetched.

    Args:
        spec: a `.tiktoken` file, a `tokenizer.json`, a SentencePiece `.model`, `vocab.json` or `merges.txt` with the
            other beside it, a folder with one of these, "bytes", a Tokenizer, or an object with one (a Model).
        pattern: split pattern of a `.tiktoken` file that is not a published one: "gpt2", "cl100k", "o200k", "none" or
            a regular expression.
        special: control tokens of a `.tiktoken` file by name.

    Raises:
        MissingFile: there is nothing of that name.
        Corrupt, Truncated: the file contradicts its format, or breaks off.
        MissingExtra: a SentencePiece model without the package `sentencepiece`.
        BadValue: it is no vocabulary, or its split pattern must be given.
    """
    if isinstance(spec, Tokenizer):
        return spec
    if isinstance(getattr(spec, "tokenizer", None), Tokenizer):
        return spec.tokenizer  # type: ignore[union-attr]
    if str(spec) == "bytes" and not Path(spec).exists():
        return bytes_vocabulary()
    return _file(_found(Path(spec)), pattern, special)


def _found(path: Path) -> Path:
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        inside = [*(path / name for name in names), *sorted(path.glob("*.tiktoken"))]
        file = next((one for one in inside if one.is_file()), None)
        if file is None:
            raise MissingFile(f"the folder '{path}' has no vocabulary.", f"A vocabulary is {KINDS}.")
        return file
    if not path.is_file():
        near = guess(path.name, (f.name for f in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise MissingFile(f"there is no vocabulary '{path}'.{near}", f"A vocabulary is {KINDS}.")
    return path


def _file(path: Path, pattern: str, special: Mapping[str, int] | None) -> Tokenizer:
    if path.stat().st_size > LARGEST:
        raise Corrupt(f"'{path}' has {path.stat().st_size} bytes; a vocabulary may have {LARGEST}.")
    if path.name in ("vocab.json", "merges.txt"):
        return _pairs(path.parent)
    if path.suffix == ".json":
        return _named(Tokenizer.from_file(path), path)
    data = path.read_bytes()
    if path.suffix == ".tiktoken" or _looks_ranked(data):
        return _ranked(path, data, pattern, special)
    if path.suffix == ".model":
        return SentencePieces(data, name=_name(path))
    raise BadValue(f"'{path}' is not a vocabulary.", f"A vocabulary is {KINDS}.")


def _name(path: Path) -> str:
    """Return what to call a vocabulary: its file, or its folder where every such file has the same name."""
    is_common = path.name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
    return path.resolve().parent.name if is_common else path.stem


def _named(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    tokenizer.name = _name(path)
    return tokenizer


def _looks_ranked(data: bytes) -> bool:
    """Say whether a file is one of ranks whatever its name is, as Llama 3's `tokenizer.model`."""
    first = data[:200].split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit()


def _ranked(path: Path, data: bytes, pattern: str, special: Mapping[str, int] | None) -> Ranked:
    ranks = read_ranks(data, str(path))
    known = patterns.known().get(sha256(data))
    claimed = patterns.named(path.name)
    if known is None and claimed is not None and len(ranks) < claimed.count:
        raise Truncated(f"'{path}' has {len(ranks)} tokens; {claimed.name} has {claimed.count}.", "Fetch it again.")
    refuse_lacking(ranks, str(path))  # before a pattern is asked for, which would not help
    if known is None and not pattern:
        kinds = ", ".join(map(repr, patterns.PATTERNS))
        hint = f"Give pattern=: {kinds} or a regular expression; a tokenizer.json has it."
        raise BadValue(f"'{path}' does not say how to cut a text, and is none of the published files.", hint)
    if known is None:
        return Ranked(ranks, pattern, special, _ends(special or {}), name=_name(path))
    names = dict(special) if special is not None else known.special
    marks = Marks(names.get(known.start), names.get(known.end), adds_start=known.adds_start)
    return Ranked(ranks, pattern or known.pattern, names, marks, name=known.name)


def _ends(special: Mapping[str, int]) -> Marks:
    return Marks(end_id=special.get("<|endoftext|>"))


def _pairs(folder: Path) -> Tokenizer:
    """Read GPT-2's two files, `vocab.json` and `merges.txt`."""
    files = [folder / "vocab.json", folder / "merges.txt"]
    for file in files:
        if not file.is_file():
            raise MissingFile(f"there is no '{file}'.", "vocab.json and merges.txt belong together.")
    try:
        model = tokenizers.models.BPE.from_file(*map(str, files))
        vocab = json.loads(files[0].read_bytes())
    except Exception as error:  # noqa: BLE001  # the library raises bare Exceptions
        raise Corrupt(f"'{files[0]}' and '{files[1]}' are no vocabulary: {error}.") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    end = vocab.get("<|endoftext|>")
    if end is not None:
        backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True)])
    from kobza.tokens.reading import read_marks

    marks = read_marks(folder, backend)
    return Tokenizer(backend, marks if marks.end_id is not None else replace(marks, end_id=end), name=_name(files[0]))
