"""Tokenizer files: `tokenizer.json` with `tokenizer_config.json` beside it, read within limits and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from kobza.core.errors import Corrupt, MissingFile
from kobza.core.files import write_atomic

if TYPE_CHECKING:
    from kobza.tokens.base import Marks, Tokenizer

LARGEST = 128 << 20  # bytes; the largest vocabulary in wide use (Gemma 3, 262,144 tokens) takes 33 MB
_TEXT = 4 << 20  # bytes of the small files


def read(path: Path, marks: Marks | None) -> Tokenizer:
    """Read `tokenizer.json`, or a folder that has one.

    Raises:
        MissingFile: there is none.
        Corrupt: it is too large or not a tokenizer.
    """
    from kobza.tokens.base import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise MissingFile(f"there is no tokenizer file '{file}'.")
    backend = backend_from(_limited(file, LARGEST).decode("utf-8", errors="replace"), str(file))
    return Tokenizer(backend, marks or read_marks(file.parent, backend), name=file.parent.name or file.name)


def backend_from(source: str, where: str) -> tokenizers.Tokenizer:
    """Build the library's object from JSON text, turning its failures into one clear error."""
    try:
        return tokenizers.Tokenizer.from_str(source)
    except BaseException as error:  # the library panics on some inputs, which is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Corrupt(f"'{where}' is not a tokenizer: {reason}.") from None


def read_marks(folder: Path, backend: tokenizers.Tokenizer) -> Marks:
    """Read which tokens start, end and pad a text, and the chat template, from the files beside a tokenizer."""
    from kobza.tokens.base import Marks

    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    ids = {name: _id(config.get(name), backend) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    adds = config.get("add_bos_token")
    if adds is None:
        adds = ids["bos_token"] is not None and _begins_with(backend, ids["bos_token"])
    return Marks(
        start_id=ids["bos_token"],
        end_id=ids["eos_token"],
        padding_id=ids["pad_token"],
        unknown_id=ids["unk_token"],
        adds_start=bool(adds),
        chat_template=_template(folder, config),
    )


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the files that transformers opens with equal ids."""
    marks = tokenizer.marks
    names = {
        "bos_token": marks.start_id,
        "eos_token": marks.end_id,
        "pad_token": marks.padding_id,
        "unk_token": marks.unknown_id,
    }
    config: dict[str, Any] = {name: tokenizer._backend.id_to_token(id) for name, id in names.items() if id is not None}
    # subtle: a class name such as LlamaTokenizer would make transformers rebuild the splitting rules from scratch
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config["add_bos_token"] = marks.adds_start
    if marks.chat_template is not None:
        config["chat_template"] = marks.chat_template
    tokenizer._backend.encode_special_tokens = False
    write_atomic(folder / "tokenizer.json", tokenizer._backend.to_str(pretty=False))
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    return folder


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _limited(file, _TEXT).decode("utf-8", errors="replace")
    found = config.get("chat_template")
    if isinstance(found, list):  # several named ones
        named = {str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None


def _id(token: Any, backend: tokenizers.Tokenizer) -> int | None:
    name = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(name) if isinstance(name, str) else None


def _begins_with(backend: tokenizers.Tokenizer, id: int | None) -> bool:
    ids = backend.encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == id


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_limited(file, _TEXT))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Corrupt):
            raise
        raise Corrupt(f"'{file}' is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise Corrupt(f"'{file}' must hold one JSON object, not {type(value).__name__}.")
    return value


def _limited(file: Path, limit: int) -> bytes:
    size = file.stat().st_size
    if size > limit:
        raise Corrupt(f"'{file}' has {size} bytes; a file of its kind may have {limit}.")
    return file.read_bytes()
