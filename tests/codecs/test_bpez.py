"""bpez: merges before deflate, and the published prototype's files."""

from __future__ import annotations

import struct
import zlib

import pytest

from kobza.codecs import base, bpez
from kobza.core.errors import BadValue

POEM = "Реве та стогне Дніпр широкий, сердитий вітер завива. ".encode() * 9


def test_merges_make_deflate_smaller_where_letters_take_two_bytes(data):
    poems = (data / "text" / "kobzar.txt").read_bytes()[: 1 << 17]
    assert len(bpez.compress(poems)) < 0.88 * len(zlib.compress(poems, 9))


def test_without_merges_it_is_deflate_and_a_byte(data):
    blob = bpez.compress(POEM, merges=0)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    assert deflate.compress(b"\0" + POEM) + deflate.flush() in blob


@pytest.mark.parametrize("second", ["store", "bz2", "lzma", "ulz", "cm"])
@pytest.mark.parametrize("is_global", [False, True])
def test_merges_may_stand_before_any_codec(second, is_global):
    data = POEM + bytes(range(256)) * 3 + POEM
    blob = bpez.compress(data, second=second, is_global=is_global, block_log2=10)
    assert bpez.decompress(blob) == data


def test_an_unknown_second_stage_names_the_nearest():
    with pytest.raises(BadValue, match=r"'zlob'.*'zlib'"):
        bpez.compress(b"", second="zlob")


def _prototype(text: bytes, pairs: list[bytes]) -> bytes:
    """Write as the prototype does: each merge first, then its three bytes in front."""
    size = len(text)
    for pair in pairs:
        text = pair + text.replace(pair[:2], pair[2:])
    packed = zlib.compress(struct.pack(">IB", size, len(pairs)) + text, 9)
    return struct.pack(">I", len(packed)) + packed


def test_a_file_of_the_prototype_is_read():
    text = b"the cat and the other cat, and the hat"
    blob = _prototype(text, [b"th\0", b"\0e\1", b"at\2"]) + _prototype(b"again", [])
    assert bpez.read_prototype(blob) == text + b"again"


def test_a_damaged_file_of_the_prototype_is_refused():
    blob = _prototype(POEM, [b"\xd0\xb0\1", b"\xd1\x80\2"])
    for end in range(1, len(blob)):
        with pytest.raises(base.Corrupt):
            bpez.read_prototype(blob[:end])
    for at in range(4, len(blob)):
        with pytest.raises(base.Corrupt):
            bpez.read_prototype(blob[:at] + bytes((blob[at] ^ 4,)) + blob[at + 1 :])
