"""LASER: the search gives what reducing each matrix alone gives, and finds the one that does nothing."""

from typing import Any

import numpy as np
import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.core.texts import text
from kobza.edits import base, laser
from kobza.edits._layers import Walk
from kobza.edits._lowrank import whitened
from kobza.models import forward
from kobza.models.model import Change

IDS = torch.arange(40, 60)[None]
TEXTS = ("topics[320000:330000]",)
FAST: dict[str, Any] = {"calibration": TEXTS, "calibration_tokens": 128}


def test_the_full_rank_changes_nothing(tiny: Any) -> None:
    edited = laser.apply(tiny, share=1.0, count=3, **FAST)
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(tiny, IDS), atol=1e-4)
    assert max(map(abs, edited.changes[-1].facts["worth"].values())) < 1e-4


def test_each_worth_is_that_of_the_model_with_this_matrix_reduced() -> None:
    model = kobza.open("tiny:llama?layers=3&seed=0")
    names = base.select(model, "blocks.*.mlp")
    worth, reduced = laser.searched(model, names, [text(TEXTS[0])], 0.1, "none", 1, 128)

    def bits(one: Any) -> float:
        walk = Walk(one, [text(TEXTS[0])], 128)
        return laser._bits(walk, one, 0)

    whole = bits(model)
    for name in names:
        alone = model.replace({name: reduced(name)}, change=Change("test"))
        assert worth[name] == pytest.approx(bits(alone) - whole, abs=2e-5)


def test_the_matrix_least_missed_is_taken_and_stored_smaller() -> None:
    model = kobza.open("tiny:llama?layers=3&seed=0")
    idle = model.replace({"blocks.1.mlp.down": model.matrix("blocks.1.mlp.down") * 0}, change=Change("test"))
    edited = laser.apply(idle, where="blocks.*.mlp", **FAST)
    change = edited.changes[-1]
    assert change.facts["worth"]["blocks.1.mlp.down"] == pytest.approx(0, abs=1e-6)
    (name,) = change.matrices
    assert name == min(change.facts["worth"], key=change.facts["worth"].__getitem__)
    (M, N), R = idle.matrix(name).shape, edited.matrices[name].rank
    assert edited.stored_bytes == idle.stored_bytes - 4 * (M * N - R * (M + N))


def test_reduced_without_a_metric_equals_the_truncated_svd_of_numpy() -> None:
    for shape in ((9, 14), (14, 9)):
        W = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        U, S, Vt = np.linalg.svd(W.double().numpy())
        wanted = U[:, :4] * S[:4] @ Vt[:4]
        assert np.allclose(whitened(W, 4).dense().numpy(), wanted, atol=1e-5)


def test_reduced_in_a_metric_leaves_the_tail_of_the_whitened_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(60, 9, generator=draw).double() @ torch.randn(9, 9, generator=draw).double()
    H, W = X.T @ X / 60, torch.randn(14, 9, generator=draw)
    L = torch.linalg.cholesky(H)
    tail = torch.linalg.svdvals(W.double() @ L)[4:].square().sum().sqrt()
    gap = (whitened(W, 4, H).dense() - W).double() @ L
    assert float(gap.norm()) == pytest.approx(float(tail), rel=1e-5)
    flat = torch.zeros(9, 9, dtype=torch.float64)
    flat[:4, :4] = torch.eye(4, dtype=torch.float64)  # a singular metric: only four directions are ever read
    assert torch.allclose(whitened(W, 4, flat).dense()[:, :4], W[:, :4], atol=1e-5)


def test_the_table_shows_every_matrix_and_its_map(tiny: Any) -> None:
    found = laser.table(tiny, [text(TEXTS[0])], where="blocks.*.mlp", tokens=128)
    assert len(found.rows) == 6
    changes = [row["change"] for row in found.rows]
    assert changes == sorted(changes)
    assert found.figures[0].data["rows"] == ["mlp.down", "mlp.gate", "mlp.up"]


def test_ranks_are_rounded_to_multiples_that_fit() -> None:
    W = torch.zeros(576, 1536)
    assert [laser.rank_of(W, share, 64) for share in (0.01, 0.1, 0.5, 1.0)] == [64, 64, 256, 576]
    assert laser.rank_of(W, 0.1, 1) == 58


def test_what_does_not_fit_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="share=0"):
        laser.apply(tiny, share=0.0)
    with pytest.raises(OutOfRange, match=r"1 \.\. 14"):
        laser.apply(tiny, count=99)
    with pytest.raises(BadValue, match="linear layer"):
        laser.apply(tiny, where="embed", **FAST)
