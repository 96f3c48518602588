"""GPTQ: less output error than rounding at equal bits; with plain inputs it is rounding; the control does not help."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import _grids as grids
from kobza.edits import gptq
from kobza.edits.gptq import Rule

CALIBRATION = ("topics[320000:330000]",)
GIVEN = grids.Grid("unsigned", 3, 16, "search")


def rule(**options: Any) -> Rule:
    usual = {"outliers": 0.0, "rotate": 0, "correct": 0.0, "rounds": 2, "damping": 0.01, "shuffle": 0}
    return Rule(**{"grid": GIVEN, **usual, **options})


def inputs(N: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(32, N, generator=draw)
    X = torch.randn(2000, N // 3, generator=draw) @ torch.randn(N // 3, N, generator=draw)
    X = X + 0.3 * torch.randn(2000, N, generator=draw)
    return W, (X.T @ X).double() / 2000


def output_error(W: torch.Tensor, V: torch.Tensor, H: torch.Tensor) -> float:
    E = (V - W).double()
    return float((E @ H * E).sum())


def test_it_loses_far_less_output_than_rounding_and_more_of_the_matrix() -> None:
    W, H = inputs()
    plain = grids.rounded(W, GIVEN, H.diagonal()).dense()
    clever = gptq.round_matrix(W, H, H, rule()).dense()
    assert output_error(W, clever, H) < 0.6 * output_error(W, plain, H)
    assert (clever - W).norm() > (plain - W).norm()


def test_with_inputs_alike_and_apart_it_is_rounding_to_nearest() -> None:
    W, _ = inputs()
    unit = torch.eye(W.shape[1], dtype=torch.float64)
    given = rule(rounds=1)
    scales = grids.fitted(W, GIVEN, unit.diagonal().float()).stored()
    codes, _ = gptq._rounded(W, unit * 1.01, given)
    assert torch.equal(codes, grids.joined(grids.encode(grids.blocked(W, 16), scales, GIVEN), (32, 48)))


def test_the_scales_fitted_to_the_codes_are_the_least_squares_answer() -> None:
    W, H = inputs()
    scales = grids.fitted(W, GIVEN).stored()
    codes = grids.joined(grids.encode(grids.blocked(W, 16), scales, GIVEN), (32, 48))
    fitted = gptq.refit(W, H, codes, scales, GIVEN)
    least = gptq.output_error(W, H, codes, fitted, GIVEN)
    assert least < gptq.output_error(W, H, codes, scales, GIVEN)
    for change in (0.99, 1.01):
        moved = grids.Scales(fitted.scale * change, fitted.offset)
        assert gptq.output_error(W, H, codes, moved, GIVEN) > least


def test_the_correction_heads_for_the_output_on_the_original_inputs() -> None:
    W, _ = inputs()
    draw = torch.Generator().manual_seed(1)
    X0 = torch.randn(3000, 48, generator=draw)
    X = X0 + 0.5 * torch.randn(3000, 48, generator=draw)
    H, C = (X.T @ X).double() / 3000, (X0.T @ X).double() / 3000
    fine = rule(grid=grids.Grid("unsigned", 8, 16, "search"))

    def error(correct: float) -> float:
        V = gptq.round_matrix(W, H, C, Rule(**{**vars(fine), "correct": correct})).dense()
        return float((X0 @ W.T - X @ V.T).square().mean())

    assert error(1.0) < error(0.5) < error(0.0)


def test_shuffled_inputs_do_not_help() -> None:
    W, H = inputs()
    plain = output_error(W, grids.rounded(W, GIVEN).dense(), H)
    assert output_error(W, gptq.round_matrix(W, H, H, rule(shuffle=1)).dense(), H) > 0.9 * plain


@pytest.mark.parametrize("options", [{"format": "q4_0"}, {"bits": 2, "block": 8}, {"rotate": 1}, {"outliers": 0.02}])
def test_a_whole_model_is_rounded_and_named(tiny: Any, options: dict[str, Any]) -> None:
    edited = gptq.apply(tiny, calibration=CALIBRATION, calibration_tokens=256, **options)
    change = edited.changes[-1]
    assert len(change.matrices) == 14
    assert all(edited.matrices[name].stored_as == "codes" for name in change.matrices)
    assert change.facts["calibration"]["texts"][0]["name"] == CALIBRATION[0]
    assert edited.stored_bytes == change.facts["stored_bytes"] < tiny.stored_bytes


def test_a_chosen_few_leave_the_rest_alone(tiny: Any) -> None:
    edited = gptq.apply(tiny, where="blocks.1.mlp", calibration=CALIBRATION, calibration_tokens=128)
    assert edited.changes[-1].matrices == ["blocks.1.mlp.gate", "blocks.1.mlp.up", "blocks.1.mlp.down"]
    assert torch.equal(edited.matrix("blocks.0.mlp.up"), tiny.matrix("blocks.0.mlp.up"))


def test_tables_and_senseless_options_are_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="embed"):
        gptq.apply(tiny, where="embed")
    with pytest.raises(OutOfRange, match="damping=0"):
        gptq.apply(tiny, damping=0.0)
