"""Converted models kept on disk, so that a GGUF file is dequantized once and mapped into memory ever after.

An entry lies in `<cache>/models/<SHA-256 of the source>/<version>/`: weights as safetensors, configuration,
tokenizer, and `entry.json` with the size and time stamps of each file. An entry whose files are not as noted is
checked by SHA-256 and, if damaged, made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kobza.core.errors import CannotWrite, KobzaError
from kobza.core.files import atomic_directory, cache_dir, sha256, sha256_file, write_atomic
from kobza.models.contents import Contents
from kobza.tokens.base import Tokenizer

VERSION = "1"  # raise it whenever what is stored, or how it is derived, changes
WEIGHTS, CONFIG, NOTE = "model.safetensors", "config.json", "entry.json"
_ALIGNMENT = 64  # bytes; what vector instructions like best


def digest_of(path: Path) -> str:
    """Return a file's SHA-256, remembered as long as its size, times and place on disk stay the same."""
    seen = path.stat()
    stamp = [str(path.resolve()), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]
    memo = cache_dir() / "digests" / sha256(json.dumps(stamp).encode())
    with contextlib.suppress(OSError):
        digest = memo.read_text()
        if len(digest) == 64:
            return digest
    digest = sha256_file(path)
    with contextlib.suppress(CannotWrite, OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memo, digest)
    return digest


def load(digest: str) -> Contents | None:
    """Return the entry of a source, its weights mapped from disk; None if there is no sound one."""
    folder = _folder(digest)
    try:
        note = json.loads((folder / NOTE).read_text())
        if not _is_sound(folder, note["files"]):
            return None
        config = json.loads((folder / CONFIG).read_text())
        vocabulary = Tokenizer.from_file(folder)
        vocabulary.name = note["name"]
        tensors = _mapped(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, KobzaError):
        return None
    return Contents(config, tensors, vocabulary, tuple(note["notes"]), note["licence"])


def store(digest: str, contents: Contents) -> str:
    """Keep a converted model.

    Returns:
        "" or, where the cache cannot be written, the reason.
    """
    folder = _folder(digest)
    needed = sum(tensor.nbytes for tensor in contents.tensors.values())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed + (64 << 20):
            return f"it needs {needed >> 20} MiB, {free >> 20} MiB are free"
        with atomic_directory(folder, replace=True) as temporary:
            _fill(temporary, contents)
    except OSError as error:  # CannotWrite is one too
        return error.message if isinstance(error, KobzaError) else str(error)
    return ""


def _fill(folder: Path, contents: Contents) -> None:
    write_tensors(folder / WEIGHTS, contents.tensors)
    (folder / CONFIG).write_text(json.dumps(contents.config))
    contents.tokenizer.save(folder)
    files = {file.name: _stamp(file) | {"sha256": sha256_file(file)} for file in sorted(folder.iterdir())}
    note = {"name": contents.tokenizer.name, "notes": contents.notes, "licence": contents.licence, "files": files}
    (folder / NOTE).write_text(json.dumps(note))


def _is_sound(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether all files are as they were written; contents are read only where a stamp differs."""
    if WEIGHTS not in files or CONFIG not in files:
        return False
    for name, noted in files.items():
        stamp = _stamp(folder / name)
        if stamp["bytes"] != noted["bytes"]:
            return False
        if stamp != {key: noted[key] for key in stamp} and sha256_file(folder / name) != noted["sha256"]:
            return False
    return True


def _stamp(file: Path) -> dict[str, int]:
    seen = file.stat()
    return {"bytes": seen.st_size, "mtime_ns": seen.st_mtime_ns}


def _folder(digest: str) -> Path:
    return cache_dir() / "models" / digest / VERSION


def _mapped(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", backend="mmap") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, each beginning at a multiple of 64 bytes where sizes allow it.

    Tensors that share memory are written once, under the first of their names.
    """
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    # the odd sizes go last, so that they disturb nobody's alignment
    ordered = sorted(tensors.items(), key=lambda item: item[1].nbytes % _ALIGNMENT != 0)
    for name, tensor in ordered:
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            file.write(tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())
