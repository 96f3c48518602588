"""Counts draft, the text stays greedy."""

from typing import Any

import pytest

from kobza.core.errors import OutOfRange
from kobza.decoding import greedy, ngram
from kobza.decoding.ngram import Counts


@pytest.mark.parametrize("price", [0.0, 0.15])
def test_the_text_is_greedy(tiny: Any, price: float) -> None:
    right = greedy.generate(tiny, "abc abc abc", tokens=60)
    assert ngram.generate(tiny, "abc abc abc", tokens=60, price=price).ids == right.ids
    assert ngram.generate(tiny, "abc abc abc", tokens=60, price=price, known="topics[:500]").ids == right.ids


def test_the_likeliest_successor_of_the_longest_ending_is_followed() -> None:
    counts = Counts(2, 5, 0.0)
    assert counts.continued([1, 2, 3, 1, 2, 4, 1, 2, 4, 1, 2], 3) == ([4, 1, 2], 2)
    assert Counts(2, 5, 0.0).continued([1, 2], 3) == ([], 0)


def test_options_out_of_range_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="order is 0"):
        ngram.generate(tiny, "a", order=0)
