"""Latent: full rank changes nothing, one B serves both, the cut is Eckart and Young's in the metric of the inputs."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import latent
from kobza.models import forward

IDS = torch.arange(40, 60)[None]
FAST: dict[str, Any] = {"calibration": ("topics[320000:330000]",), "calibration_tokens": 512}


def full(model: Any) -> int:
    return 2 * len(model.matrix("blocks.0.attn.k"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_the_full_rank_changes_nothing(family: str) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    edited = latent.apply(model, rank=min(full(model), model.width), **FAST)
    assert full(model) <= model.width
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(model, IDS), atol=1e-4)


def test_the_error_is_the_tail_of_the_singular_values_in_the_metric() -> None:
    draw = torch.Generator().manual_seed(0)
    W = [torch.randn(6, 20, generator=draw), torch.randn(6, 20, generator=draw)]
    X = torch.randn(100, 20, generator=draw).double() @ torch.randn(20, 20, generator=draw).double()
    H = X.T @ X / 100
    L = torch.linalg.cholesky(H)
    scales = [float(((M.double() @ L).square().sum()).sqrt()) for M in W]
    whitened = torch.cat([M.double() / s for M, s in zip(W, scales, strict=True)]) @ L
    tail = torch.linalg.svdvals(whitened)[5:].square().sum().sqrt()
    found = latent.latent(W, H, 5)
    gaps = [(F.dense() - M).double() / s for F, M, s in zip(found, W, scales, strict=True)]
    assert float((torch.cat(gaps) @ L).norm()) == pytest.approx(float(tail), rel=1e-5)
    assert found[0].B is found[1].B


def test_one_latent_is_stored_once_and_comes_back_shared(tmp_path: Any) -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    edited = latent.apply(model, rank=8, **FAST)
    facts = edited.changes[-1].facts
    rows, D = full(model), model.width
    assert edited.stored_bytes == model.stored_bytes - 2 * 4 * (rows * D - 8 * (rows + D))
    assert facts["stored_bytes"] == edited.stored_bytes == sum(m.bytes for m in edited.matrices.values())
    assert facts["cache_bytes"] == 2 * 4 * rows and facts["latent_bytes"] == 2 * 4 * 8
    edited.save(tmp_path / "latent")
    again = kobza.open(tmp_path / "latent")
    assert again.stored_bytes == edited.stored_bytes
    assert edited.stored_bytes <= (tmp_path / "latent" / "factored.safetensors").stat().st_size
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))


def test_keys_and_values_are_functions_of_the_latent_alone() -> None:
    edited = latent.apply(kobza.open("tiny:llama?layers=2&seed=0"), rank=8, **FAST)
    x = torch.randn(5, edited.width, generator=torch.Generator().manual_seed(0))
    attention: Any = edited.module.model.layers[0].self_attn
    c = x @ attention.k_proj.B.T
    assert c.shape == (5, 8)
    assert torch.allclose(attention.k_proj(x), c @ attention.k_proj.A.T, atol=1e-6)
    assert torch.allclose(attention.v_proj(x), c @ attention.v_proj.A.T, atol=1e-6)


def test_ranks_and_families_that_do_not_fit_are_refused() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    with pytest.raises(OutOfRange, match=r"rank=1000 does not fit .*attn\.k"):
        latent.apply(model, rank=1000)
    with pytest.raises(OutOfRange, match="two latents"):
        latent.apply(model, rank=7, joint=False)
    with pytest.raises(BadValue, match="no matrix"):
        latent.apply(kobza.open("tiny:gpt2?layers=1"))
