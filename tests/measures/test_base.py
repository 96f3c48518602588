"""What all measures share: chunks add up, records name the conditions, awkward texts are told apart."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.core.errors import EmptyText, MissingFile, NotComparable, OutOfRange
from kobza.measures import base, bits_per_byte
from kobza.models.tiny import tiny as make_tiny

TEXT = b"Nobody knows who made the first one: the name came with traders from the east.\n" * 8


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(1, 9))
def test_chunks_add_up_to_the_whole(data: bytes, chunks: int) -> None:
    sample = base.take(make_tiny(), data)
    values = np.random.default_rng(0).random(len(sample.ids))
    literal = sample.spelled.literal_bytes
    assert sample.chunked(values, chunks, literals=8.0).sum() == pytest.approx(values.sum() + 8 * literal)
    assert int(sample.sizes.sum()) == len(data)


def test_a_token_is_shared_out_over_its_bytes(tiny: Any) -> None:
    sample = base.take(tiny, b"abcd")
    assert len(sample.ids) == 4
    assert sample.chunked([1, 2, 3, 4], 8).tolist() == [0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]


def test_chunks_are_cut_at_equal_bytes_for_every_vocabulary() -> None:
    few, many = make_tiny(vocabulary=258), make_tiny(vocabulary=300)
    a, b = (bits_per_byte.measure(m, TEXT, chunks=5) for m in (few, many))
    assert a.parts is not None
    assert b.parts is not None
    assert [size for _, size in a.parts] == [size for _, size in b.parts]
    assert a.compare(b).low is not None


def test_a_chunk_is_not_shorter_than_64_bytes(tiny: Any) -> None:
    reading = bits_per_byte.measure(tiny, TEXT[:200], chunks=32)
    assert reading.parts is not None
    assert len(reading.parts) == 3


def test_a_text_of_one_chunk_has_no_interval(tiny: Any) -> None:
    reading = bits_per_byte.measure(tiny, b"short")
    assert (reading.low, reading.high) == (None, None)
    assert "shorter than two chunks" in reading.spread


def test_the_record_names_every_condition(tiny: Any) -> None:
    record = bits_per_byte.measure(tiny, TEXT, window=100, overlap=10).record
    assert record["how"] == {"window": 100, "overlap": 10}
    assert record["text"]["bytes"] == len(TEXT)
    assert record["model"]["fingerprint"] == tiny.fingerprint
    assert record["model"]["start"] == "<s>"
    assert record["model"]["dtype"] == "float32"
    assert set(record["versions"]) == {"kobza", "torch", "transformers", "python"}
    assert record["machine"]["threads"] == 1


def test_readings_of_other_windows_or_texts_are_not_compared(tiny: Any) -> None:
    reading = bits_per_byte.measure(tiny, TEXT, window=100, overlap=10)
    with pytest.raises(NotComparable, match="window"):
        reading.compare(bits_per_byte.measure(tiny, TEXT, window=50, overlap=10))
    with pytest.raises(NotComparable, match="text"):
        reading.compare(bits_per_byte.measure(tiny, TEXT[:-5], window=100, overlap=10))


def test_changes_do_not_hinder_a_comparison(tiny: Any) -> None:
    other = make_tiny(seed=1)
    assert bits_per_byte.measure(tiny, TEXT).compare(bits_per_byte.measure(other, TEXT)).value != 0


def test_a_limit_cuts_at_a_character_and_says_so(tiny: Any) -> None:
    sample = base.take(tiny, "дума".encode(), limit=3)
    assert sample.text.data == "д".encode()
    assert sample.remarks == ["the first 2 of 8 bytes"]
    assert base.take(tiny, b"abc", limit=0).remarks == []


def test_a_negative_limit_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="limit is -1; allowed is 0"):
        base.take(tiny, b"abc", limit=-1)


def test_an_empty_text_is_refused(tiny: Any) -> None:
    with pytest.raises(EmptyText):
        base.take(tiny, b"")


def test_a_text_that_is_not_there_is_refused(tiny: Any) -> None:
    with pytest.raises(MissingFile, match="no-such-text"):
        base.take(tiny, "no-such-text")


def test_a_text_without_tokens_is_refused(tiny: Any) -> None:
    with pytest.raises(EmptyText, match=r"\(2 bytes\) gives 0 tokens; at least 1 needed"):
        bits_per_byte.measure(tiny, b"\xff\xfe")
