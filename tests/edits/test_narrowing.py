"""Narrowing: what stays is a plain model; idle neurons and heads go first and cost nothing; takeover helps."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import narrowing
from kobza.models import forward

IDS = torch.arange(40, 60)[None]
FAST: dict[str, Any] = {"calibration": ("topics[320000:330000]",), "calibration_tokens": 256}


@pytest.mark.parametrize("what", ["neurons", "heads", "groups"])
@pytest.mark.parametrize("family", narrowing.FAMILIES)
def test_keeping_all_changes_nothing(family: str, what: Any) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    edited = narrowing.apply(model, what=what, share=1.0, **FAST)
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(model, IDS), atol=1e-5)


@pytest.mark.parametrize(("what", "size"), [("neurons", 64), ("heads", 2), ("groups", 2)])
@pytest.mark.parametrize("family", narrowing.FAMILIES)
def test_it_opens_everywhere_and_equals_the_model_with_what_went_silenced(
    family: str, what: Any, size: int, tmp_path: Any
) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    edited = narrowing.apply(model, what=what, share=0.5 if what != "neurons" else 0.667, refit=False, **FAST)
    part = "mlp.down" if what == "neurons" else "attn.o"
    silenced = {}
    for layer in range(2):
        name = f"blocks.{layer}.{part}"
        W, kept = model.matrix(name), edited.matrix(name)
        at = torch.tensor([i for i in range(W.shape[1]) if any(torch.equal(W[:, i], c) for c in kept.T)])
        silenced[name] = torch.zeros_like(W).index_copy(1, at, W[:, at])
        assert len(at) == kept.shape[1] < W.shape[1]
    wanted = model.replace(silenced, change=edited.changes[-1])
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(wanted, IDS), atol=1e-5)
    config = edited.config
    assert {"neurons": config.intermediate_size, "heads": config.num_attention_heads}.get(what, size) in (64, 2, size)
    edited.save(tmp_path / "narrow")
    again = kobza.open(tmp_path / "narrow")
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))
    assert again.stored_bytes == edited.stored_bytes < model.stored_bytes


def test_neurons_that_do_nothing_go_first() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    idle = {f"blocks.{i}.mlp.down": model.matrix(f"blocks.{i}.mlp.down").clone() for i in range(2)}
    for W in idle.values():
        W[:, 10:42] = 0
    model = model.replace(idle, change=kobza.models.model.Change("test"))
    edited = narrowing.apply(model, share=0.667, refit=False, **FAST)
    assert edited.config.intermediate_size == 64
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(model, IDS), atol=1e-5)


def test_a_neuron_that_repeats_another_is_taken_over() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(500, 8, generator=draw)
    X = torch.cat([X, 2 * X[:, :4]], 1)  # four inputs twice as large as four others, and equal to them
    H, W = (X.T @ X).double() / 500, torch.randn(5, 12, generator=draw)
    kept = torch.tensor([4, 5, 6, 7, 8, 9, 10, 11])
    V = narrowing.taken_over(W, H, kept, 1e-9)
    assert torch.allclose(X @ V.T, X @ W.T, atol=1e-3)
    assert torch.equal(narrowing.taken_over(W, H, kept, 0.0)[:, 4:], W[:, 4:])


def test_the_takeover_loses_less_output() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(500, 6, generator=draw) @ torch.randn(6, 12, generator=draw)
    X = X + 0.2 * torch.randn(500, 12, generator=draw)
    H, W, kept = (X.T @ X).double() / 500, torch.randn(5, 12, generator=draw), torch.arange(8)
    plain, fitted = (narrowing.taken_over(W, H, kept, damping) for damping in (0.0, 0.01))
    assert (X @ (fitted - W).T).norm() < 0.5 * (X @ (plain - W).T).norm()


def test_what_does_not_come_out_even_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="leaves 0"):
        narrowing.apply(tiny, share=0.1)
    with pytest.raises(OutOfRange, match="do not divide"):
        narrowing.apply(kobza.open("tiny:llama?width=60&heads=10&kv_heads=5"), what="groups", share=0.8)
    with pytest.raises(BadValue, match="gpt2"):
        narrowing.apply(kobza.open("tiny:gpt2?layers=1"))
