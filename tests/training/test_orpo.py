"""ORPO: TRL's values and slopes; identical answers teach the odds part nothing."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.training import orpo


def test_loss_and_slope_at_the_logits_equal_those_of_trl(goldens: Any, sums: Any, counts: Any) -> None:
    given = goldens["preferences"]
    logits = torch.tensor(given["logits"], requires_grad=True)
    losses = orpo.odds_loss(sums(logits) / counts)
    assert losses.tolist() == pytest.approx(given["orpo"]["losses"], abs=1e-5)
    slope = torch.autograd.grad(losses.mean(), logits)[0]
    assert torch.allclose(slope, torch.tensor(given["orpo"]["slope"]), atol=1e-6)


def test_the_odds_of_one_half_against_one_fifth_are_four_to_one() -> None:
    means = torch.tensor([[0.5], [0.2]]).log()
    assert orpo.odds_loss(means).item() == pytest.approx(-math.log(4 / 5), abs=1e-6)


def test_identical_answers_give_ln_2_and_no_gradient() -> None:
    """What the circulating listing computes: equal inputs for both answers, a constant."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mean = logits.log_softmax(-1)[:, 2].mean()
    loss = orpo.odds_loss(torch.stack([mean, mean])[:, None]).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-7


def test_a_certain_answer_stays_finite() -> None:
    means = torch.tensor([[0.0], [-50.0]], requires_grad=True)
    loss = orpo.odds_loss(means)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), means)[0]).all()


def test_the_chosen_answers_become_likelier_and_win(tiny: Any, pairs: Any) -> None:
    run = orpo.train(tiny, pairs, steps=12, rate=5e-3, held=0.25)
    assert run.history["held"][-1] < run.history["held"][0]
    assert run.history["wins"][-1] == 1.0
    assert run.model.changes[-1].technique == "orpo"
    with pytest.raises(OutOfRange, match="beta"):
        orpo.train(tiny, pairs, beta=-1.0)
