"""Random projection: an orthogonal projection whose closed forms are held."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.edits import random_projection
from kobza.models import forward

IDS = torch.arange(40, 100)[None]


def test_all_dimensions_change_nothing(tiny: Any) -> None:
    edited = random_projection.apply(tiny, rank=32)
    assert torch.equal(edited.matrix("embed"), tiny.matrix("embed"))
    stored = random_projection.apply(tiny, rank=32, store="factors")
    assert torch.allclose(stored.matrix("embed"), tiny.matrix("embed"), atol=1e-5)


def test_it_is_down_by_a_gaussian_and_back_by_its_pseudo_inverse() -> None:
    from kobza.edits import base

    P = torch.randn(40, 9, generator=base.generator(5, "embed"), dtype=torch.float64)
    assert torch.allclose(random_projection.operator(40, 9, seed=5), P @ torch.linalg.pinv(P))


@pytest.mark.parametrize(("width", "rank"), [(8, 1), (32, 8), (96, 64), (33, 33)])
def test_the_mean_diagonal_of_the_operator_is_the_share_of_dimensions(width: int, rank: int) -> None:
    P = random_projection.operator(width, rank)
    assert float(P.trace()) / width == pytest.approx(rank / width, rel=1e-12)
    assert torch.allclose(P @ P, P)
    assert torch.allclose(P, P.T)


def test_the_spread_of_the_operators_entries_is_the_expected_one() -> None:
    found = [random_projection.statistics(64, 40, seed=seed) for seed in range(60)]
    for key in ("diagonal_std", "rest_std"):
        mean_square = sum(one[key] ** 2 for one in found) / len(found)
        assert math.sqrt(mean_square) == pytest.approx(found[0][f"{key}_expected"], rel=0.05)
    assert abs(sum(one["rest_mean"] for one in found) / len(found)) < 0.002


@pytest.mark.parametrize("rank", [8, 16, 24])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_error_follows_its_closed_form(tiny: Any, rank: int, rescale: bool) -> None:
    share = rank / 32
    expected = math.sqrt(1 / share - 1) if rescale else math.sqrt(1 - share)
    seen = [
        random_projection.apply(tiny, rank=rank, rescale=rescale, seed=seed).changes[-1].facts["relative_error"]
        for seed in range(30)
    ]
    assert math.sqrt(sum(e**2 for e in seen) / len(seen)) == pytest.approx(expected, rel=0.05)


def test_error_and_kept_energy_add_to_one(tiny: Any) -> None:
    facts = random_projection.apply(tiny, rank=20).changes[-1].facts
    assert facts["relative_error"] ** 2 + facts["energy_kept"] == pytest.approx(1, rel=1e-5)


def test_rescaling_multiplies_by_columns_over_rank(tiny: Any) -> None:
    plain, scaled = (random_projection.apply(tiny, rank=8, rescale=r).matrix("embed") for r in (False, True))
    assert torch.allclose(scaled, 4 * plain, rtol=1e-4, atol=1e-6)


def test_factors_and_their_product_give_equal_logits(tiny: Any) -> None:
    dense, factors = (random_projection.apply(tiny, rank=12, store=s, rescale=True) for s in ("dense", "factors"))
    assert torch.allclose(forward.logits(dense, IDS), forward.logits(factors, IDS), atol=1e-4)
    assert factors.changes[-1].facts["matrices"]["embed"]["stored_bytes"] == 4 * (300 * 12 + 12 * 32)


def test_equal_seeds_give_equal_bits_and_others_do_not(tiny: Any) -> None:
    one, same, other = (random_projection.apply(tiny, rank=12, seed=s).matrix("embed") for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_one_end_and_both_ends_use_the_same_subspace(tiny: Any) -> None:
    one, both = (random_projection.apply(tiny, where=w, rank=12).matrix("embed.in") for w in ("embed.in", "embed"))
    assert torch.equal(one, both)


def test_the_rank_is_bounded_by_the_columns(tiny: Any) -> None:
    random_projection.apply(tiny, where="blocks.0.mlp.down", rank=96)
    with pytest.raises(OutOfRange, match="rank=97 does not fit 'blocks.0.mlp.down' of shape 32 x 96; allowed: 1 .. 96"):
        random_projection.apply(tiny, where="blocks.0.mlp.down", rank=97)
    with pytest.raises(OutOfRange, match="rank=0 is not a number of dimensions of 8"):
        random_projection.operator(8, 0)


def test_the_picture_states_the_diagonal_seen_and_expected() -> None:
    figure = random_projection.picture(48, 12, seed=1)
    assert figure.kind == "image"
    assert len(figure.data["values"]) == 48
    assert "Diagonal 0.2500" in figure.caption
    assert "<" in figure.html()
