"""ULZ: the format against streams written by hand, and its levels."""

from __future__ import annotations

import pytest

from kobza.codecs import base, ulz

POEM = "Реве та стогне Дніпр широкий, сердитий вітер завива. ".encode() * 27


@pytest.mark.parametrize(
    ("stream", "raw"),
    [
        (b"", b""),
        (b"\x60abc", b"abc"),  # three literals and the end
        (b"\x21a\x01\x00", b"a" * 6),  # one literal, then 1 + 4 bytes from 1 byte back
        (b"\x40ab\x02\x00", b"ababab"),  # two literals are in the token's top bits, then 4 bytes from 2 back
        (b"\x2fa\x05\x01\x00", b"a" * (1 + 19 + 5)),  # the length continues as a sum
        (b"\xe0\x02" + b"q" * 9, b"q" * 9),  # nine literals: 7 and 2 more
    ],
)
def test_streams_written_by_hand_are_read_as_the_format_says(stream, raw):
    assert ulz.decode(stream, len(raw)) == raw


@pytest.mark.parametrize("stream", [b"\x20", b"\x20a\x00", b"\x20a", b"\x20a\x00\x00", b"\x20a\x02\x00", b"\xe0\xff"])
def test_streams_cut_or_reaching_back_too_far_are_refused(stream):
    with pytest.raises(ValueError, match=r"bytes|ends"):
        ulz.decode(stream, 5)


def test_a_distance_of_the_whole_window_is_found_and_one_beyond_is_not():
    head = bytes(range(256)) * 2
    noise = bytes((i * i * 7 + (i >> 8) * 13) & 255 for i in range((1 << 17) - 1 - len(head)))
    near, far = head + noise + head[:64], head + noise + b"??" + head[:64]
    for data in (near, far):
        assert ulz.decode(ulz.encode(data, 9), len(data)) == data


def test_every_level_gives_the_bytes_back_and_the_highest_is_not_larger():
    sizes = []
    for level in range(1, 10):
        blob = ulz.compress(POEM, level=level)
        assert ulz.decompress(blob) == POEM
        sizes.append(len(blob))
    assert sizes[8] <= min(sizes[:7])


def test_only_the_container_finds_damage_that_the_format_cannot():
    stream = bytearray(ulz.encode(POEM, 6))
    stream[3] ^= 1  # a literal
    assert ulz.decode(bytes(stream), len(POEM)) != POEM
    blob = bytearray(ulz.compress(POEM))
    at = bytes(blob).index(ulz.encode(POEM, 6))
    blob[at + 3] ^= 1
    with pytest.raises(base.Corrupt, match="SHA-256"):
        ulz.decompress(bytes(blob))
