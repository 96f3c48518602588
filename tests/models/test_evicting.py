"""Rules keep what they say, by head where they weigh; the budget is never exceeded."""

from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.models.bare import BareStepper
from kobza.models.evicting import Evictor, evict
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 200), generator=torch.Generator().manual_seed(0))


def test_rules_keep_the_budget_and_the_heaviest() -> None:
    weight = torch.stack([torch.arange(10.0), torch.arange(10.0).flip(0)])
    assert evict("recent", 10, 4).tolist() == [6, 7, 8, 9]
    assert evict("sinks", 10, 4, sinks=2).tolist() == [0, 1, 8, 9]
    assert evict("heavy", 10, 4, weight=weight).tolist() == [[6, 7, 8, 9], [0, 1, 8, 9]]
    assert evict("full", 10, 4).tolist() == list(range(10))
    kept = evict("random", 10, 6, weight=weight, generator=torch.Generator().manual_seed(1))
    assert kept.shape == (2, 6) and bool((kept.diff(dim=-1) > 0).all()) and bool((kept[:, 3:] >= 7).all())


@pytest.mark.parametrize("rule", ["recent", "sinks", "random", "heavy", "pivotal"])
def test_no_more_than_the_budget_is_ever_stored(rule: Any) -> None:
    run = BareStepper(tiny(layers=2))
    evictor = Evictor(run, rule, 32, window=16)
    for begin in range(0, 200, 8):
        evictor.make_room(8)
        run.feed(IDS[:, begin : begin + 8])
        evictor.heard(8)
        assert run.length - run.dropped <= 32
    assert run.length == 200


def test_sinks_see_what_a_mask_would_let_them_see() -> None:
    """Authority: the module itself, with everything but 2 sinks and the last 14 masked."""
    model = tiny(layers=2)
    run = BareStepper(model)
    evictor = Evictor(run, "sinks", 16, sinks=2)
    found = []
    for n in range(60):
        evictor.make_room(1)
        found.append(run.feed(IDS[:, n : n + 1])[0])
    at = torch.arange(60)
    visible = (at[:, None] >= at) & ((at[:, None] - at < 14) | (at < 2))
    mask = torch.zeros(1, 1, 60, 60).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        right = model.module(IDS[:, :60], attention_mask=mask).logits[0]
    assert torch.allclose(torch.stack(found), right, atol=1e-4)


def test_pivotal_forgets_what_lies_before_the_window() -> None:
    run = BareStepper(tiny(layers=2))
    evictor = Evictor(run, "pivotal", 32, window=16)
    for begin in range(0, 64, 8):
        evictor.make_room(8)
        run.feed(IDS[:, begin : begin + 8])
        evictor.heard(8)
    assert [count for count, _ in evictor._lately] == [8, 8]
    alone = BareStepper(run.model)
    alone.watch()
    alone.feed(IDS[:, :8])
    twin = BareStepper(run.model)
    lately = Evictor(twin, "pivotal", 32, window=8)
    twin.feed(IDS[:, :8])
    lately.heard(8)
    assert torch.equal(lately._weight(8), alone.weight[1, ..., :8])


def test_budgets_that_cannot_be_are_refused() -> None:
    with pytest.raises(OutOfRange, match="budget 4, sinks 4, window 64"):
        Evictor(BareStepper(tiny()), "sinks", 4, sinks=4)
