"""Ranges: what each spelling stands for."""

import pytest

from kobza.core.errors import OutOfRange
from kobza.recipes.ranges import expand, is_range


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("64", ["64"]),
        ("64|128|256", ["64", "128", "256"]),
        ("64..256:64", ["64", "128", "192", "256"]),
        ("64..300:100", ["64", "164", "264"]),
        ("64..512", ["64", "128", "256", "512"]),
        ("64..576", ["64", "128", "256", "512", "576"]),
        ("0..4", ["0", "1", "2", "3", "4"]),
        ("0..16", [str(i) for i in range(17)]),
        ("1..1000:*10", ["1", "10", "100", "1000"]),
        ("0.1..0.8", ["0.1", "0.2", "0.4", "0.8"]),
        ("-1..1", ["-1", "0", "1"]),
        ("0..2|10|1", ["0", "1", "2", "10"]),
        ("embed.in|embed", ["embed.in", "embed"]),
        ("../poem..txt", ["../poem..txt"]),
        ("1e-3..4e-3:1e-3", ["0.001", "0.002", "0.003", "0.004"]),
    ],
)
def test_a_range_stands_for_these_values(word: str, values: list[str]) -> None:
    assert expand(word) == values


def test_steps_are_exact_decimal_fractions() -> None:
    assert expand("0.1..0.5:0.1") == ["0.1", "0.2", "0.3", "0.4", "0.5"]


@pytest.mark.parametrize("value", [3, 0.5, None, True, ["64", "128"]])
def test_anything_but_a_word_stands_for_itself(value: object) -> None:
    assert expand(value) == [value]
    assert not is_range(value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("512..64", "runs downwards"),
        ("0..1:0", "step of 0"),
        ("0..1:-1", "step of -1"),
        ("0..0.5", "cannot grow from 0"),
        ("1..9:*1", "factor of 1"),
        ("0..1000000:1", "more than 10000 values"),
        ("1..2:1e-30", "more than 10000 values"),
        ("1..1e300:*1.00001", "more than 10000 values"),
    ],
)
def test_a_range_that_leads_nowhere_is_refused(word: str, said: str) -> None:
    with pytest.raises(OutOfRange, match=said):
        expand(word)
