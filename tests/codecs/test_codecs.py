"""What every codec must do: give any bytes back, refuse what is damaged, and stay within its limits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import base
from kobza.codecs.container import layout
from kobza.codecs.container.layout import Header, Listed
from kobza.codecs.native import crc32c
from kobza.core import techniques
from kobza.core.errors import KobzaError, OutOfRange

PLAIN = ["store", "zlib", "bz2", "lzma", "ulz", "bpez", "cm", "image", "font"]
EXTRA = {"zstd": "zstandard", "brotli": "brotli", "lz4": "lz4.block"}
RNG = random.Random(5)
POEM = "Реве та стогне Дніпр широкий, сердитий вітер завива. ".encode() * 9
SAMPLES = {
    "nothing": b"",
    "one byte": b"\0",
    "all bytes": bytes(range(256)) * 5,
    "noise": RNG.randbytes(3000),
    "zeros": bytes(5000),
    "poem": POEM,
    "invalid UTF-8, CRLF, control tokens": b"\xff\xfe\r\n<|endoftext|><s>\0\x1b[31m" * 40,
}

repeats = st.lists(st.sampled_from([b"ab", b"the ", b"\0" * 17, b"\xff", b"\r\n"]), max_size=60).map(b"".join)
anything = st.one_of(st.binary(max_size=600), repeats)


@pytest.fixture(params=[*PLAIN, *EXTRA])
def codec(request):
    if request.param in EXTRA:
        pytest.importorskip(EXTRA[request.param], reason="optional package: pip install 'kobza[codecs]'")
    return techniques.load("codecs", request.param)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_comes_back(codec, name):
    assert codec.decompress(codec.compress(SAMPLES[name])) == SAMPLES[name]


@settings(max_examples=25)
@given(data=anything)
@pytest.mark.parametrize("name", PLAIN)
def test_any_bytes_come_back(name, data):
    codec = techniques.load("codecs", name)
    assert codec.decompress(codec.compress(data)) == data


def test_equal_inputs_give_equal_files(codec):
    assert codec.compress(POEM) == codec.compress(POEM)


def test_no_file_is_much_longer_than_its_content(codec):
    noise = SAMPLES["noise"]
    assert len(codec.compress(noise)) <= len(noise) + 60


def test_a_file_cut_anywhere_is_refused(codec):
    blob = codec.compress(POEM)
    for end in range(len(blob)):
        with pytest.raises(base.Corrupt):
            codec.decompress(blob[:end])


def test_a_file_with_something_behind_it_is_refused(codec):
    with pytest.raises(base.Corrupt, match="behind the footer"):
        codec.decompress(codec.compress(POEM) + b"\0")


def test_a_damaged_file_never_gives_wrong_bytes(codec):
    blob = codec.compress(POEM)
    rng = random.Random(11)
    for _ in range(400):
        damaged = bytearray(blob)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(blob))] = rng.randrange(256)
        try:
            assert codec.decompress(bytes(damaged)) == POEM
        except KobzaError:
            continue


def test_a_changed_digest_in_the_footer_is_refused(codec):
    blob = bytearray(codec.compress(POEM))
    blob[-10] ^= 1
    with pytest.raises(base.Corrupt, match="the content is damaged: SHA-256"):
        codec.decompress(bytes(blob))
    blob = bytearray(base.pack(POEM * 3, codec.coder(), block_log2=10))
    blob[-20] ^= 1
    with pytest.raises(base.Corrupt, match="the index is damaged"):
        codec.decompress(bytes(blob))


def test_a_block_decoder_never_gives_more_than_it_is_asked_for(codec):
    made = codec.coder()
    payload = made.encode(bytes(4000))
    decode = base.decoder(made.name, 1, made.parameters, {})
    for size in (0, 1, 3999):
        try:
            assert len(decode(payload, size)) <= size + 1
        except (ValueError, KobzaError, EOFError):
            continue


def test_the_memory_needed_is_told_before_it_is_taken(codec):
    made = codec.coder()
    needed = base.memory(made.name, 1 << 20, made.parameters)
    assert 1 << 20 <= needed <= 200 << 20
    if made.name != "store":
        with pytest.raises(base.LimitExceeded, match=f"{made.name}.*memory"):
            base.unpack(codec.compress(POEM), limits=base.Limits(memory=10))


@pytest.mark.parametrize("name", ["zlib", "bz2", "lzma"])
def test_300_megabytes_of_zeros_are_refused_at_the_default_limits(name):
    """The block is packed once and written 18 times; reading ends where a thousandth of the bytes no longer pays."""
    codec, raw = techniques.load("codecs", name), bytes(1 << 24)
    made = codec.coder()
    payload = made.encode(raw)
    assert len(payload) * 1000 < len(raw)
    head = Header(24, (Listed(made.name, made.version, dict(made.parameters)),), 18 << 24).write()
    blocks = layout.write_block(1, len(raw), crc32c(raw), payload) * 18
    with pytest.raises(base.LimitExceeded, match="1000 to 1"):
        codec.decompress(head + blocks)


def test_a_header_that_claims_two_to_the_63_is_refused_at_once(codec):
    made = codec.coder()
    head = Header(20, (Listed(made.name, made.version, dict(made.parameters)),), 1 << 63).write()
    with pytest.raises(base.LimitExceeded, match="9223372036854775808 bytes; the limit"):
        codec.decompress(head + b"\x01\xff\xff\xff")


@pytest.mark.parametrize("name", ["zlib", "bz2", "lzma", "bpez", "ulz"])
def test_levels_out_of_range_are_refused_with_both_ends(name):
    option = {"merges": 256} if name == "bpez" else {"level": 10}
    with pytest.raises(OutOfRange, match=r"(256|10).*0|1"):
        techniques.load("codecs", name).compress(b"", **option)
