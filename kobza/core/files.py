"""Files written whole or not at all, and where kobza keeps its own.

A write goes to a temporary name beside the target, is flushed, synced and renamed: a kill at any moment
leaves the old file or the new one. Folders follow the XDG base directory specification.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kobza.core.errors import CannotWrite


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write `data` (str as UTF-8) to `path`, whole or not at all.

    Raises:
        CannotWrite: the folder is missing or read-only, the disk is full, or the target is not a regular file.
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return Path(path)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that appears under `path` only if the block ends without an error."""
    target = Path(path)
    _refuse_special(target)
    temporary = _beside(target)
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _cannot(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that appears under `path` only if the block ends without an error.

    Args:
        path: the folder to make; its parent must exist.
        replace: put it in the place of an existing folder; otherwise an existing one is refused unless empty.
    """
    target = Path(path)
    _refuse_occupied(target, replace)
    temporary = _beside(target)
    try:
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            old = None
            if target.exists():
                old = _beside(target)
                os.replace(target, old)
            os.replace(temporary, target)
            _sync_folder(target.parent)
            if old:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise _cannot(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_dir() -> Path:
    """Return the folder for what can be made again: `$XDG_CACHE_HOME/kobza`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """Return the folder for runs and journals: `$XDG_STATE_HOME/kobza`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def data_dir() -> Path:
    """Return the folder for what the user wants to keep: `$XDG_DATA_HOME/kobza`."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits; memory stays bounded."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable, "")
    # the specification: a relative path there is to be ignored
    root = Path(base) if base and os.path.isabs(base) else Path.home() / default
    return root / "kobza"


def _beside(target: Path) -> Path:
    # the name stays short so that a long target name does not overflow the limit of 255 bytes
    return target.parent / f".{target.name[:40]}.{uuid.uuid4().hex[:12]}.part"


def _refuse_special(target: Path) -> None:
    try:
        mode = os.lstat(target).st_mode
    except OSError:
        if not target.parent.is_dir():
            hint = f"Make it first: mkdir -p '{target.parent}'"
            raise CannotWrite(f"cannot write '{target}': there is no folder '{target.parent}'.", hint) from None
        return
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "device or pipe"
        hint = "Name a file." if kind == "folder" else "Name another file: kobza replaces only regular files."
        raise CannotWrite(f"cannot write '{target}': a {kind} is in its place.", hint)


def _refuse_occupied(target: Path, replace: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CannotWrite(f"cannot write the folder '{target}': a file is in its place.", "Name another folder.")
    if target.is_dir() and any(target.iterdir()) and not replace:
        raise CannotWrite(f"cannot write the folder '{target}': it exists and is not empty.", "Name a new folder.")
    if not target.parent.is_dir():
        hint = f"Make it first: mkdir -p '{target.parent}'"
        raise CannotWrite(f"cannot write '{target}': there is no folder '{target.parent}'.", hint)


def _cannot(target: Path, error: OSError) -> CannotWrite:
    if isinstance(error, CannotWrite):
        return error
    reason = (error.strerror or str(error)).lower()
    return CannotWrite(f"cannot write '{target}': {reason}.", "Nothing was left behind under that name.")


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle: Any = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
