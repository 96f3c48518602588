"""Budgets and rates."""

import math

import pytest

from kobza.core.errors import BadValue, UnknownName
from kobza.training.parts.schedules import Budget, budget, rate_at


def test_a_budget_is_read_in_all_three_coins() -> None:
    assert budget("3000steps") == budget(3000) == Budget(steps=3000)
    assert budget("5min") == Budget(seconds=300)
    assert budget("1.65bpb") == Budget(bits_per_byte=1.65)
    assert budget("10 steps, 2 s, 1 bpb") == Budget(10, 2.0, 1.0)
    assert str(budget("10,2s")) == "10 steps or 2 s"


@pytest.mark.parametrize("words", ["", "many", "0steps", "-3s", "1.5steps", "3 parsecs"])
def test_a_budget_of_another_form_is_refused(words: str) -> None:
    with pytest.raises(BadValue, match="budget"):
        budget(words)


def test_whatever_is_spent_first_ends_the_run() -> None:
    both = budget("10steps,5s,1.5bpb")
    assert not both.is_spent(9, 4.9, 1.6)
    assert both.is_spent(10, 0, None)
    assert both.is_spent(0, 5, None)
    assert both.is_spent(0, 0, 1.5)
    assert both.part(2, 4) == 0.8


def test_the_cosine_is_half_in_the_middle_and_the_trapezoid_full_until_the_last_fifth() -> None:
    assert rate_at(0.5, 1) == pytest.approx(0.5)
    assert rate_at(1.0, 1, floor=0.1) == pytest.approx(0.1)
    assert rate_at(0.25, 1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_at(0.79, 1, kind="trapezoid") == 1.0
    assert rate_at(0.9, 1, kind="trapezoid") == pytest.approx(0.5)
    assert [rate_at(0.0, n, kind="constant", warmup=3) for n in range(4)] == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(UnknownName, match="cosine"):
        rate_at(0, 0, kind="cosin")
