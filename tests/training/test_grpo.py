"""GRPO: TRL's value and slope; a rule changes what is said."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, EmptyText, OutOfRange, UnknownName
from kobza.training import grpo


def test_loss_and_slope_equal_those_of_trl(goldens: Any) -> None:
    given = {key: torch.tensor(value) for key, value in goldens["grpo"].items()}
    logps = given["logps"].requires_grad_()
    loss = grpo.loss(
        logps, given["old"], given["reference"], given["gains"], given["mask"], beta=0.1, clip_ratio=0.2
    )  # fmt: skip
    assert loss.item() == pytest.approx(float(given["loss"]), abs=1e-5)
    assert torch.allclose(torch.autograd.grad(loss, logps)[0], given["slope"], atol=1e-6)


def test_advantages_are_rewards_in_standard_deviations_of_their_group() -> None:
    found = grpo.advantages(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert found[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-3)
    assert found[1].tolist() == [0, 0, 0]


def test_the_first_gradient_is_that_of_plain_policy_gradient() -> None:
    logps = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = grpo.loss(
        logps, logps.detach(), None, torch.tensor([3.0]), torch.ones(1, 2), beta=0.0, clip_ratio=0.2
    )  # fmt: skip
    assert torch.autograd.grad(loss, logps)[0].tolist() == [[-1.5, -1.5]]


def letter(prompt: str, answer: str) -> float:
    """Reward answers for the letter e."""
    return answer.count("e") / (1 + len(answer))


@pytest.mark.slow
def test_a_rule_is_followed_after_a_while(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grpo.REWARDS, "letter", letter)
    run = grpo.train(
        tiny,
        ["the", "a"] * 3,
        reward="letter",
        adapter="none",
        group=8,
        tokens=8,
        steps=30,
        rate=3e-3,
        beta=0.0,
        held=0.0,
    )
    rewards = [row["reward"] for row in run.history if "reward" in row]
    assert rewards[-1] > 3 * max(rewards[0], 0.01)


def test_best_of_n_has_the_best_of_n_as_its_optimum() -> None:
    N, M = 4, 2000
    rewards = torch.arange(M, dtype=torch.float64)  # every answer of the model as it was equally likely
    optimum = grpo.best_of_rewards(rewards, rewards, N).softmax(-1)  # of E[(N - 1) log F] - KL from uniform
    F = torch.arange(1, M + 1, dtype=torch.float64) / M
    right = F**N - (F - 1 / M) ** N
    assert float((optimum - right).abs().sum()) < 2e-3
    divergence = float((right * (right * M).log()).sum())
    assert divergence == pytest.approx(math.log(N) - (N - 1) / N, abs=1e-3)


def test_best_of_n_and_its_options_are_kept_in_the_record(tiny: Any) -> None:
    run = grpo.train(tiny, ["the", "a"], best_of=2, group=2, tokens=3, steps=2, beta=1.0, held=0.5)
    assert run.history.units["held"] == "-reward"
    options = run.model.changes[-1].options
    assert options["best_of"] == 2 and options["tokens"] == 3 and options["temperature"] == 1.0
    with pytest.raises(OutOfRange, match="best_of 1"):
        grpo.train(tiny, ["a"], best_of=1)


def test_rules_are_found_by_name_sum_and_module() -> None:
    assert grpo.rewarding("no_digit")("", "a 1") == 0.0
    assert grpo.rewarding("short+no_digit")("", "") == 2.0
    assert grpo.rewarding("kobza.training.grpo:short")("", "word " * 20) == 0.5
    with pytest.raises(UnknownName, match="no_digit"):
        grpo.rewarding("no_digits")
    with pytest.raises(BadValue, match="nowhere"):
        grpo.rewarding("nowhere:rule")


def test_no_prompts_and_a_group_of_one_are_refused(tiny: Any) -> None:
    with pytest.raises(EmptyText):
        grpo.train(tiny, [])
    with pytest.raises(OutOfRange, match="group 1"):
        grpo.train(tiny, ["a"], group=1)
    with pytest.raises(BadValue, match="'prompt'"):
        grpo.train(tiny, [{"text": "a"}])
