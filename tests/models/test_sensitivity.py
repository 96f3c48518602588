"""Sensitivity: the price of a small change is what the change costs, by the exact divergence."""

import math
from typing import Any

import pytest
import torch

import kobza
from kobza.models import forward, passes, sensitivity
from kobza.models.model import Change

DATA = kobza.text("topics[:600]").data


def divergence(before: Any, after: Any) -> float:
    """KL in bits per byte, windows as `listen` cuts them."""
    ids, total = before.tokenizer.encode(DATA), 0.0
    for begin, _, end in passes.windows(len(ids), sensitivity.WINDOW, 0):
        fed = passes.fed_ids(torch.tensor(ids[begin:end]), before.tokenizer.start_id)[None]
        p, q = (forward.logits(m, fed)[0].double().log_softmax(-1) for m in (before, after))
        total += float((p.exp() * (p - q)).sum())
    return total / math.log(2) / len(DATA)


@pytest.mark.parametrize("name", ["blocks.0.attn.q", "blocks.0.attn.v", "blocks.1.mlp.down", "embed"])
def test_the_price_of_a_small_change_is_its_divergence(name: str) -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    felt = sensitivity.listen(model, DATA)
    W = model.matrix(name)
    prices, true = 0.0, 0.0
    for seed in range(6):  # one change is one draw: positions are taken as independent
        noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(seed)) * W.std() * 0.05
        prices += felt.bits(name, noise)
        true += divergence(model, model.replace({name: W + noise}, change=Change("noise")))
    assert 0.4 < prices / true < 2.5


def test_no_change_costs_nothing_and_twice_the_change_four_times() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    felt = sensitivity.listen(model, DATA)
    W = model.matrix("blocks.0.mlp.up")
    assert felt.bits("blocks.0.mlp.up", torch.zeros_like(W)) == 0
    assert felt.bits("blocks.0.mlp.up", 2 * W) == pytest.approx(4 * felt.bits("blocks.0.mlp.up", W), rel=1e-3)


def test_listening_leaves_no_hook_and_draws_from_its_seed() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    before = model.fingerprint
    a, b, c = (sensitivity.listen(model, DATA, seed=seed) for seed in (0, 0, 1))
    W = model.matrix("blocks.0.mlp.up")
    prices = [s.bits("blocks.0.mlp.up", W) for s in (a, b, c)]
    assert prices[0] == prices[1] != prices[2]
    assert model.fingerprint == before
    assert not any(part._forward_hooks for part in model.module.modules())
