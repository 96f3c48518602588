"""Pruning: the right entries go, the right number of them, and those that stay repair what they can."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import pruning

CALIBRATION = ("topics[320000:330000]",)
FAST: dict[str, Any] = {"calibration": CALIBRATION, "calibration_tokens": 128}


def matrix() -> torch.Tensor:
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


def moments(N: int = 64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(2000, N // 4, generator=draw) @ torch.randn(N // 4, N, generator=draw)
    X = X + 0.3 * torch.randn(2000, N, generator=draw)
    return (X.T @ X).double() / 2000


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_share_of_zero_changes_nothing(tiny: Any, method: Any) -> None:
    edited = pruning.apply(tiny, method=method, share=0.0, **FAST)
    assert edited.fingerprint == tiny.fingerprint


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("share", "among"), [(0.5, 0), (0.25, -1), (0.5, 4), (0.75, 8), (1.0, 0)])
def test_the_share_of_zeros_is_what_was_asked(tiny: Any, method: Any, share: float, among: int) -> None:
    edited = pruning.apply(tiny, where="blocks.*.mlp", method=method, share=share, among=among, **FAST)
    change = edited.changes[-1]
    assert change.facts["zeros"] == pytest.approx(share, abs=0.01)
    assert change.kind == "values"
    assert edited.stored_bytes == tiny.stored_bytes
    if among > 0:
        W = edited.matrix("blocks.0.mlp.up")
        assert ((W.view(len(W), -1, among) == 0).sum(-1) == round(share * among)).all()


def test_the_largest_stay_unchanged_and_the_smallest_go() -> None:
    W = matrix()
    kept = pruning._masked(W, W.abs(), 0.5, -1)
    gone = kept == 0
    assert W[gone].abs().max() <= W[~gone].abs().min()
    assert torch.equal(kept[~gone], W[~gone])


def test_wanda_is_magnitude_times_input_within_a_row() -> None:
    W, size = matrix(), torch.logspace(-2, 2, 64)
    mask = pruning.smallest(W.abs() * size, 0.5, 0)
    for row in range(len(W)):
        order = (W[row].abs() * size).argsort()
        assert mask[row, order[:32]].all()
        assert not mask[row, order[32:]].any()


@pytest.mark.parametrize("among", [0, 4, -1])
def test_repairing_loses_less_output_than_masking(among: int) -> None:
    W, H = matrix(), moments()

    def error(V: torch.Tensor) -> float:
        E = (V - W).double()
        return float((E @ H * E).sum())

    masked = pruning._masked(W, W.abs() * H.diagonal().sqrt().float(), 0.5, among)
    repaired = pruning.compensated(W, H, 0.5, among, 0.01)
    assert error(repaired) < 0.5 * error(masked)
    assert (repaired - W).norm() > (masked - W).norm()


def test_on_inputs_apart_from_each_other_sparsegpt_is_magnitude() -> None:
    W = matrix()
    V = pruning.compensated(W, torch.eye(64, dtype=torch.float64), 0.5, 0, 1e-9)
    assert torch.allclose(V, pruning._masked(W, W.abs(), 0.5, 0), atol=1e-6)


def test_the_control_chooses_others(tiny: Any) -> None:
    plain = pruning.apply(tiny, method="wanda", **FAST)
    assert pruning.apply(tiny, method="wanda", shuffle=1, **FAST).fingerprint != plain.fingerprint


def test_what_does_not_fit_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match=r"share=1\.5"):
        pruning.apply(tiny, share=1.5)
    with pytest.raises(OutOfRange, match="every 4"):
        pruning.apply(tiny, share=0.3, among=4)
    with pytest.raises(BadValue, match="embed"):
        pruning.apply(tiny, where="embed", method="wanda")
