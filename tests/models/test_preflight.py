"""Safetensors headers, shard indexes, JSON files and pickles: sound ones pass, all others end in one clear error."""

import io
import json
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kobza.core.errors import Corrupt, InputRefused, KobzaError, MissingFile, Truncated, Unsafe
from kobza.models import preflight
from kobza.models.preflight import json_object, loads, safetensors_header, shards

Put = Callable[..., Path]


def packed(header: dict[str, Any] | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` lies about the header's."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def sound() -> bytes:
    """Three tensors, 48 bytes of data."""
    tensors = {"a": entry(0, 8), "b": entry(8, 32, (2, 3)), "c": entry(32, 48, (8,), "F16")}
    return packed({"__metadata__": {"format": "pt"}} | tensors, bytes(48))


def test_header_equals_the_library_s(tmp_path: Path) -> None:
    from safetensors import safe_open

    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64, torch.uint8)
    save_file({f"t{n}": torch.zeros(n + 1, 3, dtype=kind) for n, kind in enumerate(kinds)}, tmp_path / "x.safetensors")
    ours = safetensors_header(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as theirs:
        assert {name: list(e.shape) for name, e in ours.items()} == {
            name: theirs.get_slice(name).get_shape()
            for name in theirs.keys()  # noqa: SIM118
        }
        assert {name: e.dtype for name, e in ours.items()} == {
            name: theirs.get_slice(name).get_dtype()
            for name in theirs.keys()  # noqa: SIM118
        }


def test_empty_tensors_and_scalars_are_sound(put: Put) -> None:
    header = safetensors_header(put(packed({"a": entry(0, 0, (0, 5)), "b": entry(0, 4, ())}, bytes(4))))
    assert (header["a"].values, header["b"].values) == (0, 1)


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", Truncated, "0 bytes"),
        (b"\0" * 9, Truncated, "9 bytes"),
        (packed("{}", length=2**40), Truncated, "header of 1099511627776 bytes"),
        (packed("{}", length=2**64 - 1), Truncated, "header of 18446744073709551615"),
        (packed("[]"), Corrupt, "at byte 8"),
        (packed("{]"), Corrupt, "not JSON"),
        (packed('{"a": NaN}'), Corrupt, "NaN"),
        (packed('{"a":' * 100_000 + "1" + "}" * 100_000), Corrupt, "too deep"),
        (packed('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8)),) * 2), bytes(8)), Corrupt, "'a' occurs twice"),
        (packed({"a": 5}), Corrupt, "must have dtype"),
        (packed({"a": entry(0, 8) | {"more": 1}}, bytes(8)), Corrupt, "must have dtype"),
        (packed({"a": entry(0, 8, dtype="F99")}, bytes(8)), Corrupt, "'F99'"),
        (packed({"a": entry(0, 8, dtype=["F32"])}, bytes(8)), Corrupt, "unknown type"),  # type: ignore[arg-type]
        (packed({"a": entry(0, 8, (-2,))}, bytes(8)), Corrupt, "impossible shape"),
        (packed({"a": entry(0, 8, (2.0,))}, bytes(8)), Corrupt, "impossible shape"),  # type: ignore[arg-type]
        (packed({"a": entry(0, 8, (True, 2))}, bytes(8)), Corrupt, "impossible shape"),
        (packed({"a": entry(0, 8, (2**60,))}, bytes(8)), Corrupt, "does not take 8 bytes"),
        (packed({"a": entry(8, 0)}, bytes(8)), Corrupt, "impossible offsets"),
        (packed({"a": entry(0, 2**63)}, bytes(8)), Corrupt, "impossible offsets"),
        (packed({"a": entry(0, 16, (4,))}, bytes(8)), Truncated, "ends at byte 16 of the data, which has 8"),
        (packed({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24)), Corrupt, "hole"),
        (packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), Corrupt, "overlap"),
        (packed({"a": entry(0, 8)}, bytes(12)), Corrupt, "4 bytes follow"),
        (packed({"__metadata__": {"a": 1}}), Corrupt, "__metadata__"),
        (packed({"__metadata__": []}), Corrupt, "__metadata__"),
    ],
)
def test_each_contradiction_has_its_error(put: Put, data: bytes, kind: type[KobzaError], says: str) -> None:
    with pytest.raises(kind, match=says):
        safetensors_header(put(data, "bad.safetensors"))


def test_an_oversized_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate(2 << 30)
    with pytest.raises(Corrupt, match="at most 16777216 are read"):
        safetensors_header(path)


def header(data: bytes) -> dict[str, preflight.Entry]:
    """The header of a file that is only in memory."""
    return preflight.read_header(io.BytesIO(data), len(data), Path("mutated.safetensors"))


def test_whatever_passes_the_library_loads() -> None:
    from safetensors.torch import load

    rng = random.Random(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed, slowest = 0, 0.0
    for _ in range(4000):
        data = bytearray(sound())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            if rng.random() < 0.7:
                data[at] ^= 1 << rng.randrange(8)
            else:
                del data[at : at + rng.randint(1, 9)]
        began = time.process_time()
        try:
            header(bytes(data))
        except InputRefused:
            continue
        finally:
            slowest = max(slowest, time.process_time() - began)
        load(bytes(data))  # raises if it does not agree
        passed += 1
    assert passed > 100
    assert slowest < 2.0, f"{slowest} s for one file: a bound on what a bad file may cost, not a speed"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = sound()
    for length in range(len(whole)):
        with pytest.raises(InputRefused):
            header(whole[:length])


# -- folders ------------------------------------------------------------------------------------------------------
def index(folder: Path, weight_map: Any) -> None:
    """Write a shard index."""
    (folder / preflight.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_those_the_index_names(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(packed({"a": entry(0, 8)}, bytes(8)))
    (tmp_path / "two.safetensors").write_bytes(packed({"b": entry(0, 8)}, bytes(8)))
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert [file.name for file in shards(tmp_path)] == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "kind", "says"),
    [
        ({"a": "absent.safetensors"}, MissingFile, "'absent.safetensors', which is not in"),
        ({"a": "../x.safetensors"}, Unsafe, "not a file beside it"),
        ({"a": "/etc/passwd"}, Unsafe, "not a file beside it"),
        ({"a": "sub/x.safetensors"}, Unsafe, "not a file beside it"),
        ({"a": "..\\x.safetensors"}, Unsafe, "not a file beside it"),
        ({"a": ".."}, Unsafe, "not a file beside it"),
        ({"a": "one.bin"}, Unsafe, r"only \*.safetensors"),
        ({"a": 5}, Unsafe, r"only \*.safetensors"),
        ({}, Corrupt, "no 'weight_map'"),
        ([], Corrupt, "no 'weight_map'"),
        ({"a": "one.safetensors", "z": "one.safetensors"}, Corrupt, "disagree about 1 tensors.*'z'"),
    ],
)
def test_an_index_that_misleads_is_refused(tmp_path: Path, weight_map: Any, kind: type[KobzaError], says: str) -> None:
    (tmp_path / "one.safetensors").write_bytes(packed({"a": entry(0, 8)}, bytes(8)))
    index(tmp_path, weight_map)
    with pytest.raises(kind, match=says):
        shards(tmp_path)


def test_a_folder_of_pickles_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Unsafe, match=r"pytorch_model.bin' is a pickle(.|\n)*convert_pickle=True"):
        shards(tmp_path)


def test_an_empty_folder_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="has no weights"):
        shards(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not sound JSON"),
        (b"[]", "one JSON object"),
        (b"\xff{}", "not UTF-8"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a": Infinity}', "Infinity"),
        (b"[" * 200_000, "too deep"),
    ],
)
def test_json_files_are_read_strictly(put: Put, text: bytes, says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        json_object(put(text, "config.json"))


def test_json_files_are_bounded(put: Put) -> None:
    with pytest.raises(Corrupt, match="has 11 bytes; a file of its kind may have 10"):
        json_object(put(b'{"a":12345}', "config.json"), 10)


def test_strict_json_equals_the_standard_library_s_on_sound_text() -> None:
    text = '{"a": [1, 2.5, "б", null, true], "b": {"c": {}}}'
    assert loads(text.encode()) == json.loads(text)
