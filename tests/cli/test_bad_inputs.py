"""Bad input of every kind ends in one clear error and the exit code of its kind; nothing is left half-written."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EDIT = ("edit", "tiny", "scaling:factor=2", "-t", "topics[:200]", "-m", "stored_bytes")


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    """The tiny model as a folder."""
    tiny.save(tmp_path / "model")
    return tmp_path / "model"


def weights(folder: Path) -> Path:
    """Return the file of weights of a saved model."""
    return next(folder.glob("*.safetensors"))


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put(path: Path, head: dict[str, Any], data: bytes) -> None:
    """Write a safetensors file with any header."""
    raw = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def assert_refused(said: Any, code: int, *words: str) -> None:
    """One error of at most four lines, on standard error, with the exit code of its kind."""
    assert said.code == code, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert 1 <= len(said.err.strip().splitlines()) <= 4
    for word in words:
        assert word in said.err


def test_1_a_pickle_is_refused_with_the_way_to_convert_it(kobza: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    assert_refused(kobza("open", str(tmp_path / "pytorch_model.bin")), 3, "pickle", "convert")
    assert not (tmp_path / "ran").exists()


def test_2_a_truncated_gguf_is_refused(kobza: Callable[..., Any], tmp_path: Path) -> None:
    whole = b"GGUF" + struct.pack("<IQQ", 3, 5, 2) + struct.pack("<Q", 20) + b"general.architecture"
    (tmp_path / "cut.gguf").write_bytes(whole)
    assert_refused(kobza("open", str(tmp_path / "cut.gguf")), 3, "cut.gguf")


def test_3_a_flipped_byte_of_the_header_is_refused(kobza: Callable[..., Any], saved: Path) -> None:
    raw = bytearray(weights(saved).read_bytes())
    at = raw.index(b'"shape"')
    raw[at] ^= 0x20
    weights(saved).write_bytes(raw)
    assert_refused(kobza("open", str(saved)), 3, weights(saved).name)


def test_4_a_tensor_of_2_to_the_60_bytes_is_refused(kobza: Callable[..., Any], saved: Path) -> None:
    head, data = header(weights(saved))
    name = next(key for key in head if key != "__metadata__")
    head[name] |= {"shape": [1 << 30, 1 << 28], "data_offsets": [0, 1 << 60]}
    put(weights(saved), head, data)
    assert_refused(kobza("open", str(saved)), 3, weights(saved).name)


def test_5_weights_that_are_not_numbers_are_refused(kobza: Callable[..., Any], saved: Path) -> None:
    head, data = header(weights(saved))
    put(weights(saved), head, struct.pack("<f", float("nan")) + data[4:])
    assert_refused(kobza("open", str(saved)), 3, "NotFinite")


def test_6_a_vocabulary_that_does_not_fit_is_refused(kobza: Callable[..., Any], saved: Path, tmp_path: Path) -> None:
    import kobza as package

    package.open("tiny:llama?vocabulary=340").tokenizer.save(tmp_path)
    (saved / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert_refused(kobza("open", str(saved)), 3, "WrongVocabulary", "339", "300")


@pytest.mark.parametrize("path", ["none.gguf", "none.safetensors", "./none", "none/deep/none.gguf"])
def test_7_a_missing_file_is_named(kobza: Callable[..., Any], path: str) -> None:
    assert_refused(kobza("open", path), 2, "none")
    assert_refused(kobza("measure", "tiny", "--text", path), 2, f"'{path.removeprefix('./')}'")


def test_8_an_unknown_edit_is_answered_with_the_nearest(kobza: Callable[..., Any]) -> None:
    assert_refused(kobza("edit tiny lowrnk:rank=4"), 2, "UnknownName", "'lowrnk'", "Nearest: 'lowrank'", "kobza list")


def test_9_an_unknown_option_is_answered_with_the_nearest(kobza: Callable[..., Any]) -> None:
    said = kobza("edit tiny lowrank:rnk=4")
    assert_refused(said, 2, "UnknownOption", "'rnk'", "Nearest: 'rank'", "kobza help lowrank")
    assert_refused(kobza("edit tiny noise --tekst topics"), 2, "--tekst", "--text", "kobza edit --help")


def test_10_a_value_out_of_range_is_answered_with_the_range(kobza: Callable[..., Any]) -> None:
    assert_refused(kobza("edit tiny lowrank:rank=0"), 2, "OutOfRange", "rank=0", "1 .. min(rows, columns)")
    assert_refused(kobza("edit tiny lowrank:rank=4000"), 2, "OutOfRange", "4000", "300", "32")


@pytest.mark.parametrize("command", ["measure tiny", "edit tiny noise", "sweep tiny noise:strength=1|2", "tokens tiny"])
def test_11_an_empty_text_is_refused(kobza: Callable[..., Any], tmp_path: Path, command: str) -> None:
    (tmp_path / "empty.txt").touch()
    assert_refused(kobza(f"{command} --text {tmp_path}/empty.txt"), 2, "EmptyText", "empty.txt")


@pytest.mark.parametrize("place", ["file", "file/under", "missing/model", "filled"])
def test_12_a_folder_that_cannot_be_written_is_refused_before_the_work(
    kobza: Callable[..., Any], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    assert_refused(kobza(*EDIT, "--save", str(tmp_path / place)), 4, "CannotWrite", place.split("/")[0])
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "missing/x.json", "/dev/null/x.json"])
def test_12_a_file_that_cannot_be_written_is_refused_before_the_work(
    kobza: Callable[..., Any], tmp_path: Path, place: str
) -> None:
    assert_refused(kobza(*EDIT, "-o", place), 4, "CannotWrite")
    assert_refused(kobza(*EDIT, "-o", "x.docx"), 2, "BadValue", ".json", ".html")


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_13_a_full_disk_leaves_nothing_behind(kobza: Callable[..., Any], full: Path) -> None:
    (full / "filler").write_bytes(bytes(60 * 1024))
    assert_refused(kobza(*EDIT, "--save", str(full / "model")), 4, "CannotWrite", "no space")
    assert_refused(kobza(*EDIT, "-o", str(full / "x.html")), 4, "CannotWrite", "no space")
    sweep = ("sweep", "tiny", "scaling:factor=1|2", "-t", "topics[:200]", "--workers", "1")
    assert_refused(kobza(*sweep, "--folder", str(full / "run")), 4, "CannotWrite")
    assert [path.name for path in full.iterdir() if path.name != "run"] == ["filler"]
    assert not list(full.rglob("*.part"))


def test_13_a_limit_on_file_size_leaves_nothing_behind(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    call = [sys.executable, "-m", "kobza", *EDIT, "-q", "--save", str(tmp_path / "model")]
    said = subprocess.run(call, capture_output=True, text=True, preexec_fn=limit)
    assert (said.returncode, said.stdout) == (4, ""), said.stderr
    assert "CannotWrite" in said.stderr
    assert not list(tmp_path.iterdir())
