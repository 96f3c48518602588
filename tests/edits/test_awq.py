"""Activation-aware scaling: power 0 is rounding, the chosen power errs less, the wrong columns do not help."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import _grids as grids
from kobza.edits import awq

CALIBRATION = ("topics[320000:330000]",)
GIVEN = grids.Grid("unsigned", 3, 16)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights alike, inputs of which every sixteenth is thirty times as strong."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(1000, 64, generator=draw)
    X[:, ::16] *= 30
    return torch.randn(32, 64, generator=draw), (X.T @ X).double() / 1000


def output_error(W: torch.Tensor, V: torch.Tensor, H: torch.Tensor) -> float:
    E = (V - W).double()
    return float((E @ H * E).sum())


def test_the_power_zero_is_plain_rounding() -> None:
    W, H = inputs()
    value, exponent = awq.scaled_rounding(W, H, GIVEN, 1)
    assert exponent == 0
    assert torch.equal(value.dense(), grids.rounded(W, GIVEN).dense())


def test_strong_columns_are_protected() -> None:
    W, H = inputs()
    value, exponent = awq.scaled_rounding(W, H, GIVEN, 20)
    plain = grids.rounded(W, GIVEN).dense()
    assert exponent > 0
    assert output_error(W, value.dense(), H) < 0.5 * output_error(W, plain, H)
    strong = torch.arange(64) % 16 == 0
    assert (value.dense() - W)[:, strong].norm() < 0.5 * (plain - W)[:, strong].norm()


def test_inputs_alike_choose_no_scaling() -> None:
    W, _ = inputs()
    assert awq.scaled_rounding(W, torch.eye(64, dtype=torch.float64), GIVEN, 20)[1] == 0


def test_a_whole_model_is_rounded_with_one_number_more_per_column(tiny: Any) -> None:
    edited = awq.apply(tiny, bits=3, block=32, calibration=CALIBRATION, calibration_tokens=256)
    facts = edited.changes[-1].facts
    M, N = tiny.matrix("blocks.0.mlp.down").shape
    assert facts["matrices"]["blocks.0.mlp.down"]["stored_bytes"] == M * N // 2 + 2 * N  # 3 bits, scale, offset: 4 bits
    assert edited.matrices["blocks.0.attn.q"].stored_as == "codes"
    other = awq.apply(tiny, bits=3, shuffle=1, calibration=CALIBRATION, calibration_tokens=256)
    assert other.fingerprint != edited.fingerprint


def test_senseless_options_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="exponents=0"):
        awq.apply(tiny, exponents=0)
    with pytest.raises(BadValue, match="embed"):
        awq.apply(tiny, where="embed.in")
