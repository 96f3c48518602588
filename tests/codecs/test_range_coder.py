"""The range coder gives back what it was given, at the price that the tables name."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs.range_coder import MAX_TOTAL, Decoder, Encoder
from kobza.core.errors import Corrupt, OutOfRange

TABLES = st.lists(
    st.lists(st.integers(1, MAX_TOTAL // 300) | st.integers(1, 3), min_size=1, max_size=300).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.integers(0, len(sizes) - 1))
    ),
    max_size=60,
)


def running(sizes: list[int]) -> list[int]:
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    return sums


def code(symbols: list[tuple[list[int], int]]) -> bytes:
    encoder = Encoder()
    for sizes, symbol in symbols:
        sums = running(sizes)
        encoder.encode(sums[symbol], sizes[symbol], sums[-1])
    return encoder.finish()


@settings(max_examples=200, deadline=None)
@given(TABLES)
def test_any_symbols_under_any_tables_come_back(symbols: list[tuple[list[int], int]]) -> None:
    decoder = Decoder(code(symbols))
    assert [decoder.decode(running(sizes)) for sizes, _ in symbols] == [symbol for _, symbol in symbols]
    assert decoder.is_exhausted


@settings(max_examples=100, deadline=None)
@given(TABLES)
def test_the_size_is_the_code_length_plus_at_most_one_byte(symbols: list[tuple[list[int], int]]) -> None:
    ideal = sum(math.log2(sum(sizes) / sizes[symbol]) for sizes, symbol in symbols)
    # a table's total of at most 2**48 against a range of at least 2**56 wastes at most 2**-8 of the interval
    assert len(code(symbols)) <= ideal / 8 + 1 + len(symbols) * math.log2(1 + 2**-7) / 8


def test_carries_run_through_all_written_bytes() -> None:
    choice = random.Random(0)
    symbols = [([2**40 - 1, 1], choice.choice([0, 0, 1])) for _ in range(3000)]
    decoder = Decoder(code(symbols))
    assert [decoder.decode(running(sizes)) for sizes, _ in symbols] == [symbol for _, symbol in symbols]


def test_a_certain_symbol_costs_nothing() -> None:
    assert code([([5], 0)] * 1000) == b""


def test_nothing_coded_is_no_bytes() -> None:
    assert Encoder().finish() == b""


@given(st.lists(st.integers(0, 255), max_size=40))
def test_plain_bits_come_back(values: list[int]) -> None:
    encoder = Encoder()
    for value in values:
        encoder.bits(value, 8)
    decoder = Decoder(encoder.finish())
    assert [decoder.bits(8) for _ in values] == values


@pytest.mark.parametrize(("start", "size", "total"), [(0, 0, 5), (-1, 2, 5), (3, 3, 5), (0, 1, MAX_TOTAL + 1)])
def test_a_part_outside_its_table_is_refused(start: int, size: int, total: int) -> None:
    with pytest.raises(OutOfRange, match=rf"\[{start}, {start + size}\) does not lie in \[0, {total}\)"):
        Encoder().encode(start, size, total)


@pytest.mark.parametrize("total", [0, MAX_TOTAL + 1])
def test_a_total_out_of_range_is_refused_when_reading(total: int) -> None:
    with pytest.raises(OutOfRange, match=f"total is {total}"):
        Decoder(b"abc").target(total)


def test_stepping_past_a_symbol_that_is_not_there_is_noticed() -> None:
    decoder = Decoder(code([([1, 1], 1)]))
    with pytest.raises(Corrupt, match="damaged, or another model"):
        decoder.advance(0, 1, 2)


def test_the_stream_is_as_specified() -> None:
    """Three plain bytes are the fraction 0x00.. that begins the interval, by hand."""
    encoder = Encoder()
    for value in (1, 2, 255):
        encoder.bits(value, 8)
    assert encoder.finish()[:2] == bytes([1, 2])
