"""The .kbz container: its fixed bytes, what it refuses, streams and random access."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.codecs import base, ulz, zlib
from kobza.codecs.container import layout
from kobza.codecs.container.fields import Cursor, read_parameters, varint, write_parameters
from kobza.codecs.native import crc32c
from kobza.core.errors import OutOfRange

GOLDEN = Path(__file__).parent / "golden"  # files of version 1.0, in `whole` of 1.1, written once and for ever
TEXT = b"look inside, change it, measure what changed. " * 90


def header(*codecs: bytes, size: bytes = b"\0", flags: int = 0, log2: int = 10, major: int = 1) -> bytes:
    """Bytes of a header with a right checksum, whatever it says."""
    body = layout.MAGIC + bytes((major, 0, flags, log2)) + size + bytes((len(codecs),)) + b"".join(codecs)
    return body + struct.pack("<I", crc32c(body))


def block(codec: int, raw_size: int, payload: bytes, raw: bytes = b"") -> bytes:
    return layout.write_block(codec, raw_size, crc32c(raw or payload), payload)


def whole(head: bytes, *blocks: bytes, index=(), digest: bytes = bytes(32)) -> bytes:
    end = layout.write_end(index)
    return head + b"".join(blocks) + end + layout.write_footer(end, digest)


def refused(blob: bytes, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        base.unpack(blob)


@given(st.integers(0, 2**64 - 1))
def test_varints_are_leb128(value):
    raw = varint(value)
    assert Cursor(raw).varint() == value
    assert sum((byte & 127) << 7 * i for i, byte in enumerate(raw)) == value
    assert len(raw) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("raw", [b"\x80\0", b"\xff" * 10, b"\x80" * 9 + b"\x02", b"\x80" * 11])
def test_varints_that_are_too_long_or_large_are_corrupt(raw):
    with pytest.raises(base.Corrupt, match=r"shortest form|2\^64"):
        Cursor(raw).varint()


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), st.binary(max_size=20), max_size=5))
def test_parameters_come_back(parameters):
    assert read_parameters(write_parameters(parameters)) == parameters


@pytest.mark.parametrize("raw", [b"\1b\0\1a\0", b"\1a\0\1a\0", b"\1A\0", b"\0\0"])
def test_parameters_out_of_order_or_misnamed_are_corrupt(raw):
    with pytest.raises(base.Corrupt, match=r"ascend|allowed are a-z"):
        read_parameters(raw)


def test_a_file_without_its_magic_says_what_it_is():
    refused(b"PK\3\4 something else", base.BadMagic, "not a .kbz file")
    refused(b"", base.Truncated, "0 bytes")


@pytest.mark.parametrize("change", [(b"\r\n", b"\n"), (b"\n", b"\r\n"), (b"\x89", b"\x09"), (b"\x1a", b"")])
def test_damage_by_text_mode_is_called_so(change):
    refused(zlib.compress(TEXT).replace(*change), base.BadMagic, "text mode")


@pytest.mark.parametrize("packed", sorted([*GOLDEN.glob("*.kbz"), *GOLDEN.glob("whole/*.kbz")]), ids=lambda p: p.stem)
def test_golden_files_are_read_as_ever(packed):
    if packed.stem in ("zstd", "brotli", "lz4"):
        pytest.importorskip({"zstd": "zstandard", "lz4": "lz4.block"}.get(packed.stem, packed.stem), reason="optional")
    assert base.unpack(packed.read_bytes()) == (GOLDEN / "content.bin").read_bytes()


@pytest.mark.parametrize("name", ["store", "ulz", "cm", "image"])
def test_golden_files_are_written_as_ever(name):
    content = (GOLDEN / "content.bin").read_bytes()
    assert base.pack(content, base.load(name).coder(), block_log2=10) == (GOLDEN / f"{name}.kbz").read_bytes()
    assert base.pack(content, base.load(name).coder()) == (GOLDEN / "whole" / f"{name}.kbz").read_bytes()


def test_newer_formats_and_unknown_features_are_refused():
    refused(header(major=2), base.UnknownCodec, "format version 2")
    refused(header(flags=0x40), base.UnknownCodec, "0x40")
    refused(header(b"\1\5nooon\0"), base.Truncated, "ends too early")
    refused(whole(header(b"\1\4zlob\0"), block(1, 9, b"x")), base.UnknownCodec, "'zlob'.*'zlib'")
    refused(whole(header(b"\x09\4zlib\0"), block(1, 9, b"x")), base.UnknownCodec, "version 9")


def test_a_codec_name_that_is_no_codec_cannot_be_imported():
    for name in (b"base", b"lm", b"container", b"range_coder"):
        with pytest.raises((base.UnknownCodec, base.ModelMissing)):
            base.unpack(whole(header(b"\1" + bytes((len(name),)) + name + b"\0"), block(1, 9, b"x")))


def test_a_header_that_declares_the_impossible_is_refused_at_once():
    refused(header(size=varint(2**63)), base.LimitExceeded, "9223372036854775807 bytes; the limit")
    refused(header(log2=40), base.LimitExceeded, r"blocks of 2\^40")
    refused(header(*[b"\1\4zlib\0"] * 9), base.LimitExceeded, "9 codecs")
    refused(header(b"\1\4zlib" + varint(2**40)), base.LimitExceeded, "1099511627776 bytes in one field")


def test_blocks_that_contradict_themselves_are_refused():
    refused(header() + block(0, 5, b"abc"), base.Corrupt, "3 packed bytes for 5")
    refused(header() + block(1, 5, b"abc"), base.Corrupt, "names codec 1; the header lists 0")
    refused(header() + block(0, 0, b""), base.Corrupt, "0 packed bytes for 0")
    refused(header() + b"\0" + varint(1 << 11), base.Truncated, "too early")
    refused(header() + block(0, 2000, b"x" * 2000), base.LimitExceeded, "this file's limit is 1024")
    refused(header() + block(0, 3, b"abc", b"xyz"), base.Corrupt, "CRC-32C")
    refused(header(size=varint(3)) + block(0, 3, b"abc"), base.Corrupt, "more than the 2 bytes")
    refused(whole(header(size=varint(5)), block(0, 3, b"abc"), index=[(3, 3)]), base.Corrupt, "the blocks hold 3")


def test_an_end_that_contradicts_the_blocks_is_refused():
    one = block(0, 3, b"abc")
    refused(whole(header(), one, index=[(3, 3)]), base.Corrupt, "SHA-256")
    refused(whole(header(), one, index=[(3, 2)]), base.Corrupt, "index does not agree|index is damaged")
    refused(header() + one + layout.write_end([(3, 3)]), base.Truncated, "no footer")


def test_what_fits_in_one_block_takes_fewer_bytes():
    one, two = base.pack(TEXT[:1024], block_log2=10), base.pack(TEXT[:1025], block_log2=10)
    assert (len(one) - 1024, len(two) - 1025) == (38, 87)
    assert base.Reader(io.BytesIO(one)).blocks() == [base.Block(0, 1024, 1024, None)]
    assert base.Reader(io.BytesIO(one)).read_at(1000, 100) == TEXT[1000:1024]
    assert base.unpack(base.pack(b"", zlib.coder())) == b""


def test_a_file_of_one_block_that_contradicts_itself_is_refused():
    sha256 = hashlib.sha256(b"abc").digest()
    one = partial(header, flags=layout.WHOLE)
    assert base.unpack(one(size=varint(4)) + layout.write_whole(0, b"abc", sha256)) == b"abc"
    refused(one(size=varint(4)) + layout.write_whole(0, b"abx", sha256), base.Corrupt, "SHA-256")
    refused(one(size=varint(4)) + layout.write_whole(0, b"abc", sha256) + b"x", base.Corrupt, "behind the footer")
    refused(one(size=varint(4)) + layout.write_whole(0, b"abc", sha256)[:-1], base.Truncated, "the digest ends")
    refused(one(size=varint(3)) + layout.write_whole(0, b"abc", sha256), base.Corrupt, "3 packed bytes for 2")
    refused(one(size=varint(4)) + layout.write_whole(1, b"abc", sha256), base.Corrupt, "lists 0")
    refused(one(size=varint(0)), base.Corrupt, "-1 bytes in one block")
    refused(one(size=varint(1026)), base.Corrupt, "1025 bytes in one block")


def test_limits_can_be_raised_and_lowered():
    blob = zlib.compress(bytes(1 << 20))
    assert len(base.unpack(blob)) == 1 << 20
    with pytest.raises(base.LimitExceeded, match="--max-output"):
        base.unpack(blob, limits=base.Limits(output=(1 << 20) - 1))
    with pytest.raises(base.LimitExceeded, match="--max-ratio"):
        base.unpack(blob, limits=base.Limits(free=1000, ratio=100))
    assert base.unpack(blob, limits=base.Limits(free=1000, ratio=0))


@given(st.binary(max_size=4000), st.lists(st.integers(1, 1500), max_size=5))
def test_a_stream_written_in_any_pieces_comes_back(data, cuts):
    file = io.BytesIO()
    writer = base.Writer(file, [ulz.coder()], block_log2=10)
    at = 0
    for cut in cuts:
        writer.write(data[at : at + cut])
        at += cut
    writer.write(data[at:])
    writer.close()
    assert base.unpack(file.getvalue()) == data


class Dribble(io.RawIOBase):
    """A pipe that gives at most 7 bytes at a time and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def read(self, n: int = -1) -> bytes:
        n = min(n, 7)
        piece, self.rest = self.rest[:n], self.rest[n:]
        return piece


def test_a_stream_may_come_in_drops():
    blob = base.pack(TEXT, zlib.coder(), block_log2=10)
    assert b"".join(base.Reader(Dribble(blob))) == TEXT


@given(st.integers(0, 5000), st.integers(0, 3000))
def test_any_part_can_be_read_alone(offset, size):
    blob = base.pack(TEXT, zlib.coder(), block_log2=10)
    assert base.Reader(io.BytesIO(blob)).read_at(offset, size) == TEXT[offset : offset + size]


def test_a_cut_or_damaged_file_is_refused_by_random_access_too():
    blob = base.pack(TEXT, zlib.coder(), block_log2=10)
    rng = random.Random(3)
    for _ in range(300):
        damaged = bytearray(blob[: rng.randint(1, len(blob))])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            assert base.Reader(io.BytesIO(bytes(damaged))).read_at(2000, 100) == TEXT[2000:2100]
        except (base.Corrupt, base.UnknownCodec, base.LimitExceeded):
            continue


def test_heads_of_blocks_are_listed_without_decoding():
    noise = random.Random(1).randbytes(1024)
    blob = base.pack(TEXT[:4096] + noise, zlib.coder(), block_log2=10)
    heads = base.Reader(io.BytesIO(blob)).blocks()
    assert [b.codec for b in heads] == [1, 1, 1, 1, 0]
    assert sum(b.raw_size for b in heads) == 4096 + 1024


def test_each_block_takes_the_codec_that_is_shortest():
    from kobza.codecs import cm

    blob = base.pack(TEXT, zlib.coder(), cm.coder(), block_log2=12, verify=True)
    assert len(blob) <= min(len(base.pack(TEXT, c, block_log2=12)) for c in (zlib.coder(), cm.coder())) + 12
    assert base.unpack(blob) == TEXT


def test_a_codec_that_does_not_give_its_block_back_is_caught_on_writing():
    lying = base.Coder("zlib", lambda raw: zlib.coder().encode(raw[::-1]))
    with pytest.raises(base.NotReproducible, match="'zlib' did not give block 0 back"):
        base.pack(TEXT, lying, verify=True)


def test_block_sizes_out_of_range_are_refused():
    with pytest.raises(OutOfRange, match=r"2\^25.*2\^10 to 2\^24"):
        base.pack(b"", block_log2=25)


def test_announced_and_written_sizes_must_agree():
    writer = base.Writer(io.BytesIO(), [], raw_size=9)
    writer.write(b"12345678")
    with pytest.raises(OutOfRange, match="9 bytes were announced and 8 written"):
        writer.close()
