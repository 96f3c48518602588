"""Optimizers: equal to torch's, schedulefree's and galore-torch's, with the bytes of state they claim."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import UnknownName
from kobza.training.parts import galore, optimizers, schedule_free

GOLDENS = json.loads((Path(__file__).resolve().parent / "goldens.json").read_text())["optimizers"]


def problem() -> tuple[torch.nn.Parameter, torch.Tensor]:
    return torch.nn.Parameter(torch.tensor(GOLDENS["start"])), torch.tensor(GOLDENS["target"])


def walked(p: torch.nn.Parameter, target: torch.Tensor, optimizer: Any, steps: int = 10) -> None:
    for _ in range(steps):
        p.grad = (p - target).detach()
        optimizer.step()


def test_schedule_free_equals_the_authors() -> None:
    p, target = problem()
    optimizer = schedule_free.ScheduleFree([p], lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)
    walked(p, target, optimizer)
    assert torch.allclose(p, torch.tensor(GOLDENS["schedule_free_y"]), atol=1e-6)
    before = p.detach().clone()
    with optimizer.averaged():
        assert torch.allclose(p, torch.tensor(GOLDENS["schedule_free_x"]), atol=1e-6)
    assert torch.equal(p, before), "training goes on with the same bits"


def test_galore_equals_the_authors() -> None:
    p, target = problem()
    walked(p, target, galore.GaLore([p], lr=0.05, rank=2, every=100, betas=(0.9, 0.99)))
    assert torch.allclose(p, torch.tensor(GOLDENS["galore"]), atol=1e-5)


def test_galore_of_full_rank_reaches_the_minimum_and_a_tall_matrix_goes_as_its_transpose() -> None:
    p, target = problem()
    tall = torch.nn.Parameter(p.detach().T.clone())
    for one, aim in ((p, target), (tall, target.T)):
        walked(one, aim, galore.GaLore([one], lr=0.2, rank=4, every=50, scale=1.0), 200)
    assert torch.allclose(p, target, atol=1e-2)
    assert torch.allclose(tall, p.T, atol=1e-4)


def test_the_state_of_galore_is_really_low_rank() -> None:
    p = torch.nn.Parameter(torch.randn(256, 1024))
    sizes = {}
    for name in optimizers.NAMES:
        optimizer = optimizers.build(name, [("blocks.0.up", p)], rate=1e-3, decay=0.0, betas=(0.9, 0.99), rank=8)
        p.grad = torch.randn(256, 1024)
        optimizer.step()
        sizes[name] = optimizers.state_bytes(optimizer)
    assert sizes["adamw"] == 2 * p.nbytes + 4
    assert sizes["galore"] == 4 * (256 * 8 + 2 * 8 * 1024)
    assert sizes["schedule_free"] == 2 * p.nbytes
    assert sizes["muon"] == p.nbytes
    assert sizes["adafactor"] < p.nbytes / 100


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_torchs_own_optimizers_are_used_as_they_are(name: str) -> None:
    ours, target = problem()
    theirs = torch.nn.Parameter(ours.detach().clone())
    built = optimizers.build(name, [("blocks.0.up", ours)], rate=0.01, decay=0.1, betas=(0.9, 0.99))
    how: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    plain = {
        "adamw": lambda: torch.optim.AdamW([theirs], betas=(0.9, 0.99), **how),
        "muon": lambda: torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **how),
        "adafactor": lambda: torch.optim.Adafactor([theirs], **how),
    }[name]()
    walked(ours, target, built)
    walked(theirs, target, plain)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_tables_and_heads_are_not_matrices_of_a_block(tiny: Any) -> None:
    inner = {name for name, p in tiny.module.named_parameters() if optimizers.is_inner(name, p)}
    assert all(".layers." in name and "norm" not in name for name in inner)
    assert len(inner) == 7 * tiny.layers


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UnknownName, match="adamw"):
        optimizers.build("adam", [], rate=1, decay=0, betas=(0.9, 0.99))
