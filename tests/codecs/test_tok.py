"""tok: ids by frequency before another codec; any bytes come back, with the same vocabulary only."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kobza.codecs import base, tok
from kobza.core.errors import KobzaError

TEXT = "Every token has a rank; the lower its rank, the shorter its name. Шевченко, Кобзар.\r\n".encode() * 12


@pytest.fixture(scope="module")
def vocabulary():
    import kobza

    return kobza.open("tiny:llama?layers=2&seed=0").tokenizer


@given(st.lists(st.integers(0, tok.MOST_IDS - 1), max_size=200))
def test_ranks_come_back(ranks):
    raw = tok.write_ranks(np.array(ranks, np.int64))
    assert tok.read_ranks(raw).tolist() == ranks
    assert len(raw) == sum(1 + (r >= tok.SHORT) + (r >= tok.MIDDLE) for r in ranks)


def test_the_commonest_ids_have_the_lowest_ranks():
    counts = tok.rounded_counts([3] * 100 + [1] * 7 + [0], 5)
    assert tok.by_rank(counts).tolist() == [3, 1, 0, 2, 4]
    assert counts.tolist() == [1, 1 + 8 + 3, 0, 1 + 24 + 2, 0]


@pytest.mark.parametrize("second", ["store", "zlib", "lzma", "cm"])
@pytest.mark.parametrize("data", [b"", b"\0", TEXT, b"\xff\xfe\r\n<s></s><|endoftext|>\0" * 9, bytes(range(256))])
def test_every_sample_comes_back(vocabulary, data, second):
    assert tok.decompress(tok.compress(data, vocabulary=vocabulary, second=second), vocabulary=vocabulary) == data


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(lambda s: s.encode("utf-8", "replace"))))
def test_any_bytes_come_back(vocabulary, data):
    assert tok.decompress(tok.compress(data, vocabulary=vocabulary), vocabulary=vocabulary) == data


def test_blocks_that_were_not_counted_come_back_too(vocabulary):
    made = tok.coder(b"only these were counted", vocabulary=vocabulary)
    blob = base.pack(TEXT, made, block_log2=10, verify=True)
    assert base.unpack(blob, supply={"vocabulary": vocabulary}) == TEXT


def test_another_or_no_vocabulary_is_refused(vocabulary):
    class Other:
        fingerprint = "another"

    blob = tok.compress(TEXT, vocabulary=vocabulary)
    with pytest.raises(base.ModelMissing, match="none is given"):
        base.unpack(blob)
    with pytest.raises(base.ModelMismatch, match="'another'"):
        base.unpack(blob, supply={"vocabulary": Other()})


def test_damage_never_gives_wrong_bytes(vocabulary):
    blob = tok.compress(TEXT, vocabulary=vocabulary)
    rng = random.Random(4)
    for _ in range(300):
        damaged = bytearray(blob)
        damaged[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
        try:
            assert tok.decompress(bytes(damaged), vocabulary=vocabulary) == TEXT
        except KobzaError:
            continue


def test_payloads_that_lie_are_refused_before_they_grow(vocabulary):
    decode = tok.coder(TEXT, vocabulary=vocabulary, second="store").decode
    assert decode is not None
    for inner, match in [
        (base.varint(9) + base.varint(0) + b"\0" * 8, "cannot hold 9 ranks"),
        (base.varint(2000) + base.varint(0) + b"\0" * 2000, "cannot hold 2000 ranks"),
        (base.varint(1) + base.varint(1) + base.varint(2) + b"\0" * 9, "behind the last token"),
        (base.varint(1) + base.varint(0) + b"\xff\xff\xff", "not as many, or not as low"),
        (base.varint(0) + base.varint(9999), "9999 literals"),
    ]:
        with pytest.raises(ValueError, match=match):
            decode(base.varint(len(inner)) + inner, 1000)
    with pytest.raises(ValueError, match="cannot stand for 10 bytes"):
        decode(base.varint(4000), 10)


@pytest.mark.real
def test_smollm2s_tokens_help_deflate_and_xz(smollm2, data):
    text = (data / "text" / "tinyshakespeare.txt").read_bytes()[: 1 << 18]
    sizes = {s: len(tok.compress(text, vocabulary=smollm2.tokenizer, second=s)) for s in ("zlib", "lzma")}
    counts = len(tok.coder(text, vocabulary=smollm2.tokenizer).parameters["counts"])
    assert sizes["zlib"] - counts < 0.85 * len(zlib.compress(text, 9))
    assert sizes["lzma"] < sizes["zlib"]
