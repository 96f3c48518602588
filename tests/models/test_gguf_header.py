"""GGUF headers: equal to the reference reader on sound files, one clear error on all others."""

import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kobza.core.errors import Corrupt, KobzaError, MissingFile, Truncated
from kobza.models.gguf_header import TYPES, parse, read_header

Put = Callable[..., Path]


def test_sound_file_is_read_whole(writer: Any, put: Put) -> None:
    header = read_header(put(writer.small()))
    assert header.architecture == "llama"
    assert header.fields["tokenizer.ggml.tokens"] == ["<s>", "a", "б", " c"]
    assert header.fields["test.nested"] == [[1, -2], ["x"]]
    assert header.fields["test.d"] == 1.0
    assert [(t.shape, t.type_name, t.nbytes) for t in header.tensors.values()] == [
        ((4, 8), "F32", 128),
        ((32,), "Q4_1", 20),
        ((4,), "F16", 8),
    ]


def test_fields_and_tensors_equal_the_reference_reader_s(writer: Any, put: Put) -> None:
    from gguf import GGUFReader

    path = put(writer.small().replace(b"test.nested", b"test.nestex"))
    ours, theirs = read_header(path), GGUFReader(path)
    for key, found in ours.fields.items():
        if key != "test.nestex":  # the reference reader flattens nested arrays
            assert theirs.fields[key].contents() == found
    placed = {t.name: (tuple(map(int, t.shape[::-1])), int(t.tensor_type), int(t.data_offset)) for t in theirs.tensors}
    assert {t.name: (t.shape, t.type, t.offset) for t in ours.tensors.values()} == placed


def test_block_sizes_equal_the_gguf_package_s() -> None:
    from gguf import GGML_QUANT_SIZES

    known = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in TYPES} == TYPES


HUGE = (2**31, 2**32, 2**60, 2**63, 2**64 - 1)


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("which", ["n_tensors", "n_fields"])
def test_huge_counts_are_refused(writer: Any, put: Put, which: str, count: int) -> None:
    with pytest.raises(Corrupt, match=rf"number of (tensors|fields) is {count}.*at byte (8|16)"):
        read_header(put(writer.gguf(**{which: count})))


@pytest.mark.parametrize("count", [5, 100, *HUGE])
@pytest.mark.parametrize("kind", [0, 6, 8, 9, 12])
def test_huge_arrays_are_refused(writer: Any, put: Put, kind: int, count: int) -> None:
    array = writer.field("x", 9, struct.pack("<IQ", kind, count))
    with pytest.raises(Corrupt, match="'x'"):
        read_header(put(writer.gguf((writer.ARCHITECTURE, array))))


@pytest.mark.parametrize("length", [40, *HUGE])
def test_strings_longer_than_the_file_are_refused(writer: Any, put: Put, length: int) -> None:
    bad = writer.string("key") + struct.pack("<I", 8) + writer.string("value", length)
    with pytest.raises(Corrupt, match="the value of 'key'"):
        read_header(put(writer.gguf((writer.ARCHITECTURE, bad))))


def nested(writer: Any, depth: int) -> bytes:
    """A field of arrays inside arrays."""
    return writer.field("x", 9, struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda w: w.gguf(magic=b"GGML"), r"begins with b'GGML'"),
        (lambda w: w.gguf(version=0), "version 0"),
        (lambda w: w.gguf(version=1), "version 1"),
        (lambda w: w.gguf(version=99), "version 99"),
        (lambda w: w.gguf(version=3 << 24), "big-endian"),
        (lambda w: w.gguf(()), "general.architecture"),
        (lambda w: w.gguf((w.field("general.architecture", 4, 1),)), "general.architecture"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.ARCHITECTURE)), "occurs twice"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field(b"\xff\xfe", 0, 1))), "not UTF-8"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("x", 8, b"\1" + b"\0" * 7 + b"\xff"))), "not UTF-8"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("x", 13, b"\0" * 8))), "unknown value type 13"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("x", 9, struct.pack("<IQ", 77, 0)))), "unknown element type 77"),
        (lambda w: w.gguf((w.ARCHITECTURE, nested(w, 1000))), "deeper than 4"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("general.alignment", 4, 0))), "power of two"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("general.alignment", 4, 33))), "power of two"),
        (lambda w: w.gguf((w.ARCHITECTURE, w.field("general.alignment", 8, "32"))), "power of two"),
        (lambda w: w.gguf(tensors=(w.entry("a", (), 0, 0),)), "0 dimensions"),
        (lambda w: w.gguf(tensors=(w.entry("a", (1,) * 5, 0, 0),)), "5 dimensions"),
        (lambda w: w.gguf(tensors=(w.entry("a", (0,), 0, 0),)), "impossible shape"),
        (lambda w: w.gguf(tensors=(w.entry("a", (2**32, 2**32), 0, 0),)), "impossible shape"),
        (lambda w: w.gguf(tensors=(w.entry("a", (2**60,), 0, 0),)), "cut off"),
        (lambda w: w.gguf(tensors=(w.entry("a", (33,), 2, 0),), data=b"\0" * 64), "multiples of 32"),
        (lambda w: w.gguf(tensors=(w.entry("a", (4,), 4, 0),), data=b"\0" * 64), "unknown tensor type 4"),
        (lambda w: w.gguf(tensors=(w.entry("a", (4,), 0, 4),), data=b"\0" * 64), "not a multiple of 32"),
        (lambda w: w.gguf(tensors=(w.entry("a", (4,), 0, 64),), data=b"\0" * 64), "cut off"),
        (lambda w: w.gguf(tensors=(w.entry("a", (4,), 0, 2**63),), data=b"\0" * 64), "cut off"),
        (lambda w: w.gguf(tensors=(w.entry("a", (4,), 0, 0),) * 2, data=b"\0" * 64), "occurs twice"),
        (
            lambda w: w.gguf(tensors=(w.entry("a", (9,), 0, 0), w.entry("b", (4,), 0, 32)), data=b"\0" * 64),
            "'a' and 'b' overlap",
        ),
    ],
)
def test_each_contradiction_has_its_error(writer: Any, put: Put, build: Callable[[Any], bytes], says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        read_header(put(build(writer)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"absent\.gguf"):
        read_header(tmp_path / "absent.gguf")


def test_a_file_cut_anywhere_is_refused(writer: Any, put: Put) -> None:
    whole = writer.small()
    for length in range(24, len(whole)):
        with pytest.raises(Corrupt):
            parse(whole[:length], Path("cut.gguf"))
    for length in range(24):
        with pytest.raises(Truncated):
            read_header(put(whole[:length]))


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """Files with one to four places changed: bits, bytes, whole numbers, cuts, repeats."""
    rng = random.Random(seed)
    numbers = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)]
    changed = []
    for _ in range(count):
        new = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(new))
            kind = rng.randrange(5)
            if kind == 0:
                new[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                new[at] = rng.randrange(256)
            elif kind == 2:
                new[at : at + 8] = rng.choice(numbers)
            elif kind == 3:
                del new[at : at + rng.randint(1, 40)]
            else:
                new[at:at] = new[at : at + rng.randint(1, 40)]
        changed.append(bytes(new))
    return changed


def test_four_thousand_mutations_end_in_a_header_or_one_error(writer: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, refused = 0.0, 0
    for data in mutations(writer.small(), 4000, seed=2):
        began = time.process_time()
        try:
            parse(data, Path("mutated.gguf"))
        except KobzaError:
            refused += 1
        slowest = max(slowest, time.process_time() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert slowest < 2.0, f"{slowest} s for one file: a bound on what a bad file may cost, not a speed"
    assert grown < 50_000, f"{grown} KiB"
    assert refused > 1000
