"""Allotting: the path along the hulls is the best one, as trying everything shows."""

import itertools
import random

import pytest

from kobza.recipes.allotting import Price, hull, path, patterns


def some(seed: int, count: int = 5, forms: int = 4) -> dict[str, list[Price]]:
    draw = random.Random(seed)
    return {
        f"m{i}": [Price(str(f), draw.randint(1, 50), draw.random() if f else 0.0) for f in range(forms)]
        for i in range(count)
    }


def total(prices: dict[str, list[Price]], forms: dict[str, str]) -> tuple[int, float]:
    chosen = [next(p for p in prices[name] if p.form == form) for name, form in forms.items()]
    return sum(p.bytes for p in chosen), sum(p.loss for p in chosen)


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_beats_the_path_in_bytes_and_loss_at_once(seed: int) -> None:
    prices = some(seed)
    found = path(prices, fixed=7)
    every = [
        (7 + sum(p.bytes for p in chosen), sum(p.loss for p in chosen))
        for chosen in itertools.product(*prices.values())
    ]
    for at, (size, loss) in enumerate(zip(found.bytes, found.losses, strict=True)):
        assert (size - 7, pytest.approx(loss)) == total(prices, found.forms(at))
        assert all(other >= loss - 1e-12 for bytes_, other in every if bytes_ <= size)


def test_a_budget_is_kept_by_the_first_step_that_fits() -> None:
    found = path(some(1))
    for most in range(found.bytes[-1], found.bytes[0]):
        at = found.within_bytes(most)
        assert at is not None and found.bytes[at] <= most and (at == 0 or found.bytes[at - 1] > most)
    assert found.within_bytes(found.bytes[-1] - 1) is None
    assert found.within_loss(found.losses[-1]) == len(found.steps)
    assert found.within_loss(-1.0) is None


def test_forms_that_cost_more_for_more_bytes_are_never_taken() -> None:
    assert [p.form for p in hull([Price("a", 8, 0.0), Price("d", 9, 0.5), Price("c", 8, 0.2)])] == ["a"]
    assert [p.form for p in hull([Price("a", 8, 0.1), Price("b", 8, 0.1)])] == ["b"]


def test_patterns_name_kinds_where_all_of_a_kind_are_chosen() -> None:
    every = [f"blocks.{layer}.{part}" for layer in range(3) for part in ("mlp.up", "attn.q")] + ["embed"]
    assert patterns(every[:-1], every) == "blocks"
    assert patterns([n for n in every if "up" in n], every) == "blocks.*.mlp.up"
    assert patterns(["blocks.1.attn.q"], every) == "blocks.1.attn.q"
