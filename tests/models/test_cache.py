"""The cache of converted models: mapped, checked, made again when damaged, and never in the way."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.files import cache_dir
from kobza.models import cache
from kobza.models.contents import Contents
from kobza.models.tiny import tiny

DIGEST = "d" * 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache for each test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents() -> Contents:
    """A converted model of two tensors, one of an odd size."""
    tensors = {"odd": torch.arange(3.0), "even": torch.arange(32.0).reshape(4, 8)}
    return Contents({"model_type": "llama", "rms_norm_eps": 1e-05}, tensors, tiny().tokenizer, ("a note",), "mit")


def folder() -> Path:
    """Where the entry lies."""
    return cache_dir() / "models" / DIGEST / cache.VERSION


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    kept = contents()
    assert cache.load(DIGEST) is None
    assert cache.store(DIGEST, kept) == ""
    found = cache.load(DIGEST)
    assert found is not None
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in kept.tensors.items())
    assert (found.config, found.notes, found.licence) == (kept.config, kept.notes, kept.licence)
    assert found.tokenizer.fingerprint == kept.tokenizer.fingerprint


def test_weights_lie_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    cache.store(DIGEST, contents())
    found = cache.load(DIGEST)
    assert found is not None
    assert found.tensors["even"].data_ptr() % 64 == 0


def test_the_library_reads_the_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cache.store(DIGEST, contents())
    assert torch.equal(load_file(folder() / cache.WEIGHTS)["odd"], torch.arange(3.0))


def overwrite(name: str, change: Any) -> None:
    """Change the bytes of a file of the entry."""
    path = folder() / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", [cache.WEIGHTS, cache.CONFIG, "tokenizer.json", cache.NOTE])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_damaged_entry_is_not_used(name: str, change: Any) -> None:
    cache.store(DIGEST, contents())
    overwrite(name, change)
    assert cache.load(DIGEST) is None
    assert cache.store(DIGEST, contents()) == ""
    assert cache.load(DIGEST) is not None


def test_a_flipped_bit_of_the_weights_is_found_when_the_time_stamp_tells() -> None:
    cache.store(DIGEST, contents())
    overwrite(cache.WEIGHTS, lambda b: b[:-5] + bytes([b[-5] ^ 4]) + b[-4:])
    assert cache.load(DIGEST) is None


def test_an_entry_with_new_time_stamps_but_the_same_bytes_is_used() -> None:
    cache.store(DIGEST, contents())
    for file in folder().iterdir():
        os.utime(file, ns=(1, 1))
    assert cache.load(DIGEST) is not None


@pytest.mark.parametrize("note", ["{}", "[]", "5", json.dumps({"files": {"../x": {}}}), json.dumps({"files": []})])
def test_a_note_of_another_form_is_not_used(note: str) -> None:
    cache.store(DIGEST, contents())
    (folder() / cache.NOTE).write_text(note)
    assert cache.load(DIGEST) is None


def test_without_room_on_the_disk_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert "1 MiB are free" in cache.store(DIGEST, contents())
    assert not folder().exists()


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal() -> None:
    cache_dir().parent.mkdir(parents=True)
    cache_dir().write_text("a file in the folder's place")
    assert cache.store(DIGEST, contents()) != ""
    assert cache.load(DIGEST) is None


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"a")
    first = cache.digest_of(file)
    assert cache.digest_of(file) == first
    file.write_bytes(b"b")
    assert cache.digest_of(file) != first
