"""Lookup copies ahead and says the greedy text."""

from typing import Any

import pytest

from kobza.core.errors import OutOfRange
from kobza.decoding import greedy, lookup
from kobza.decoding.lookup import Lookup
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("price", [0.0, 0.15])
def test_the_text_is_greedy(family: str, price: float) -> None:
    model = make_tiny(family)
    right = greedy.generate(model, "abc abc abc", tokens=60)
    found = lookup.generate(model, "abc abc abc", tokens=60, price=price)
    assert found.ids == right.ids
    assert found.passes <= right.passes


def test_a_loop_is_copied_in_few_passes(tiny: Any) -> None:
    right = greedy.generate(tiny, "The kobza", tokens=120)
    found = lookup.generate(tiny, "The kobza", tokens=120)
    assert found.ids == right.ids
    assert found.passes < right.passes or not found.drafts


def test_the_longest_and_latest_match_is_continued() -> None:
    drafter = Lookup(10, 0.0)
    assert drafter.continued([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2) == ([9, 2], 3)
    assert drafter.continued([1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 9, 5, 9], 3) == ([5, 9], 1)
    assert Lookup(10, 0.0).continued([1, 2, 3], 5) == ([], 0)


def test_options_out_of_range_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="draft is 0"):
        lookup.generate(tiny, "a", draft=0)
    with pytest.raises(OutOfRange, match="price is -1"):
        lookup.generate(tiny, "a", price=-1.0)


@pytest.mark.real
def test_the_real_model_copies_in_far_fewer_passes(smollm2: Any) -> None:
    passage = (
        "The bandura has more strings than the kobza, and the lyre has fewer; all three were played by the blind. "
    )
    prompt = f"Repeat the passage.\n{passage}\nOnce more:\n{passage}\nOnce more:\nThe bandura"
    right = greedy.generate(smollm2, prompt, tokens=32)
    found = lookup.generate(smollm2, prompt, tokens=32)
    assert found.ids == right.ids
    assert found.passes <= 12
