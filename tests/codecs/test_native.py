"""Every compiled loop gives what its plain Python twin gives, bit for bit."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import native
from kobza.codecs.native import plain_bpe, plain_checksum, plain_mixing, plain_ulz

needs_compiled = pytest.mark.skipif(not native.compiled, reason="the C extension is not built; see kobza doctor")
C = native.kernels

# bytes as codecs meet them: any, few symbols, and repeats
few = st.lists(st.sampled_from([b"a", b"ab", b"b", b"the ", b"\0" * 9, b"\xd0\xb0"]), max_size=80).map(b"".join)
anything = st.one_of(st.binary(max_size=300), few)


def words(size: int, seed: int) -> bytes:
    choice = random.Random(seed)
    vocabulary = [bytes(choice.choices(b"etaoinshrdlu", k=choice.randint(1, 9))) for _ in range(60)]
    return b" ".join(choice.choices(vocabulary, k=size // 3))[:size]


@pytest.mark.parametrize("crc32c", [plain_checksum.crc32c, native.crc32c])
def test_crc32c_equals_the_examples_of_rfc_3720(crc32c):
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789") == 0xE3069283


@needs_compiled
@given(anything)
def test_compiled_crc32c_equals_the_plain_one(data):
    assert C.crc32c(data) == plain_checksum.crc32c(data)


@needs_compiled
@settings(max_examples=40)
@given(anything, st.integers(0, 20), st.integers(1, 5))
def test_compiled_merges_equal_the_plain_ones(data, most, least):
    pairs, merged = C.bpe_learn(data, most, least)
    assert (pairs, merged) == plain_bpe.bpe_learn(data, most, least)
    assert C.bpe_apply(data, pairs) == plain_bpe.bpe_apply(data, pairs) == merged
    assert C.bpe_expand(merged, pairs, len(data)) == plain_bpe.bpe_expand(merged, pairs, len(data)) == data


@needs_compiled
@given(anything, st.binary(max_size=30), st.integers(0, 2000))
def test_compiled_and_plain_expansion_agree_on_hostile_merges(data, pairs, size):
    pairs = pairs[: len(pairs) // 3 * 3]
    assert _outcome(C.bpe_expand, data, pairs, size) == _outcome(plain_bpe.bpe_expand, data, pairs, size)


@needs_compiled
@given(anything, st.integers(1, 9))
def test_compiled_ulz_equals_the_plain_one(data, level):
    packed = C.ulz_encode(data, level)
    assert packed == plain_ulz.ulz_encode(data, level)
    assert C.ulz_decode(packed, len(data)) == plain_ulz.ulz_decode(packed, len(data)) == data


@needs_compiled
@pytest.mark.parametrize("level", [1, 4, 7, 9])
def test_compiled_ulz_equals_the_plain_one_on_long_input(level):
    data = words(2500, 1) + bytes(3000) + words(2000, 1)
    packed = C.ulz_encode(data, level)
    assert packed == plain_ulz.ulz_encode(data, level)
    assert plain_ulz.ulz_decode(packed, len(data)) == data


@needs_compiled
@given(st.binary(max_size=60), st.integers(0, 200))
def test_compiled_and_plain_ulz_agree_on_hostile_streams(packed, size):
    assert _outcome(C.ulz_decode, packed, size) == _outcome(plain_ulz.ulz_decode, packed, size)


@needs_compiled
@settings(max_examples=12)
@given(anything)
def test_compiled_mixing_equals_the_plain_one(data):
    packed = C.mixing_encode(data)
    assert packed == plain_mixing.mixing_encode(data)
    assert C.mixing_decode(packed, len(data)) == plain_mixing.mixing_decode(packed, len(data)) == data


@needs_compiled
def test_compiled_mixing_equals_the_plain_one_on_long_input():
    data = words(1500, 2) + bytes(700) + words(900, 2) + bytes(range(256))
    assert C.mixing_encode(data) == plain_mixing.mixing_encode(data)


@needs_compiled
@settings(max_examples=12)
@given(st.binary(max_size=60), st.integers(0, 100))
def test_compiled_and_plain_mixing_agree_on_hostile_payloads(payload, size):
    assert C.mixing_decode(payload, size) == plain_mixing.mixing_decode(payload, size)


def test_a_length_that_the_stream_contradicts_is_refused():
    packed = native.ulz_encode(b"abcd" * 100, 5)
    for size in (0, 399, 401, 1 << 20):
        with pytest.raises(ValueError, match=r"bytes|passes an end"):
            native.ulz_decode(packed, size)


def _outcome(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return ValueError


@needs_compiled
@settings(max_examples=12)
@given(st.lists(few, min_size=1, max_size=4), st.integers(1, 9))
def test_texts_that_learn_together_are_predicted_alike(texts, portion):
    size = max(1, *(len(text) for text in texts))
    compiled, plain = C.mixing_open(size, len(texts)), plain_mixing.mixing_open(size, len(texts))
    for begin in range(0, size, portion):
        for stream, text in enumerate(texts):
            C.mixing_turn(compiled, stream)
            plain_mixing.mixing_turn(plain, stream)
            for byte in text[begin : begin + portion]:
                for k in range(7, -1, -1):
                    assert C.mixing_predict(compiled) == plain_mixing.mixing_predict(plain)
                    C.mixing_update(compiled, byte >> k & 1)
                    plain_mixing.mixing_update(plain, byte >> k & 1)


@pytest.mark.parametrize("module", [native, plain_mixing])
def test_a_text_that_learns_refuses_what_it_cannot_take(module):
    with pytest.raises(ValueError, match="2\\^30 bytes"):
        module.mixing_open(1 << 20, 2000)
    texts = module.mixing_open(1, 2)
    with pytest.raises(ValueError, match="learned once"):
        module.mixing_update(texts, 1)
    module.mixing_predict(texts)
    module.mixing_update(texts, 1)
    for stream in (0, 2, -1):
        with pytest.raises(ValueError, match="between two bytes"):
            module.mixing_turn(texts, stream)
    for _ in range(7):
        module.mixing_predict(texts)
        module.mixing_update(texts, 0)
    module.mixing_predict(texts)
    with pytest.raises(ValueError, match="end of its text"):
        module.mixing_update(texts, 0)
