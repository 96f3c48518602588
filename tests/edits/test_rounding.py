"""Rounding: GGUF's own formats bit for bit, nothing lost where nothing needs to be, stored bytes that are true."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch

import kobza
from kobza.core.errors import NotComparable, NotFinite, NothingMatched, OutOfRange
from kobza.core.texts import text
from kobza.edits import _grids as grids
from kobza.edits import base, rounding

GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
CALIBRATION = ("topics[320000:324000]",)


def matrix(M: int = 64, N: int = 96, seed: int = 0) -> torch.Tensor:
    W = torch.randn(M, N, generator=torch.Generator().manual_seed(seed)) ** 3
    W[3, :32] = 0
    W[4, 32:64] = 0.25
    return W


@pytest.mark.parametrize("form", GGUF)
@pytest.mark.parametrize("seed", range(5))
def test_values_equal_those_of_the_gguf_package_bit_for_bit(form: str, seed: int) -> None:
    W = matrix(seed=seed)
    kind = getattr(gguf.GGMLQuantizationType, form.upper())
    theirs = gguf.quantize(W.numpy(), kind)
    ours = grids.rounded(W, grids.PRESETS[form])
    assert np.array_equal(ours.dense().numpy(), gguf.dequantize(theirs, kind))
    assert ours.nbytes == theirs.nbytes


@pytest.mark.parametrize("form", [*GGUF, "f16", "nf4", "fp4"])
def test_rounding_twice_equals_rounding_once(tiny: Any, form: Any) -> None:
    once = rounding.apply(tiny, where="blocks,embed", format=form)
    twice = rounding.apply(once, where="blocks,embed", format=form)
    for name in once.changes[-1].matrices:
        assert torch.allclose(twice.matrix(name), once.matrix(name), rtol=2e-3, atol=1e-6), name
    if form == "f16":
        assert twice.fingerprint == once.fingerprint


def test_sixteen_bits_change_a_weight_by_less_than_their_own_precision(tiny: Any) -> None:
    edited = rounding.apply(tiny, where="blocks,embed", format="f16")
    assert edited.changes[-1].facts["relative_error"] < 2**-11
    matrices = [m for m in tiny.matrices.values() if len(m.shape) == 2]
    assert tiny.stored_bytes - edited.stored_bytes == sum(m.bytes for m in matrices) / 2


def test_values_alone_claim_no_bytes(tiny: Any) -> None:
    dense = rounding.apply(tiny, store="dense")
    assert dense.changes[-1].kind == "values"
    assert dense.stored_bytes == tiny.stored_bytes == dense.changes[-1].facts["stored_bytes"]
    coded = rounding.apply(tiny)
    assert coded.changes[-1].kind == "factor"
    assert coded.changes[-1].facts["stored_bytes"] == coded.stored_bytes
    assert torch.equal(coded.matrix("blocks.0.mlp.up"), dense.matrix("blocks.0.mlp.up"))


def test_more_bits_are_never_worse(tiny: Any) -> None:
    errors = [rounding.apply(tiny, bits=bits).changes[-1].facts["relative_error"] for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 3, "symmetric": True}, {"format": "ternary"}])
def test_a_searched_scale_is_never_worse_than_the_rule(tiny: Any, options: dict[str, Any]) -> None:
    plain = rounding.apply(tiny, **options).changes[-1].facts["relative_error"]
    searched = rounding.apply(tiny, rule="search", **options).changes[-1].facts["relative_error"]
    assert searched < plain


def test_importance_lowers_the_error_where_inputs_are_strong() -> None:
    W = matrix()
    weights = torch.logspace(-3, 3, 96)
    given = grids.Grid("unsigned", 3, 32, "search")

    def error(weighting: torch.Tensor | None) -> float:
        return float(((grids.rounded(W, given, weighting).dense() - W).square() * weights).sum())

    assert error(weights) < 0.9 * error(None)
    assert error(weights) < error(weights.flip(0))


def test_both_rules_of_four_signed_bits_use_codes_as_they_say(tiny: Any) -> None:
    reference = rounding.apply(tiny, format="q4_0").changes[-1].facts["code_use"]
    absmax = rounding.apply(tiny, format="q4_0", rule="absmax").changes[-1].facts["code_use"]
    blocks = sum(m.bytes for n, m in tiny.matrices.items() if n.startswith("blocks") and len(m.shape) == 2) // 4 // 32
    assert sum(reference) == sum(absmax) == 32 * blocks
    assert reference[0] >= blocks  # the largest entry of a block takes the lowest code
    assert absmax[0] == 0  # both ends alike: the lowest code is left out


def test_outliers_are_kept_to_half_precision() -> None:
    W = matrix()
    W[7, 11] = 400.0
    kept = grids.outliers(W, 0.01)
    value = grids.rounded(grids.without(W, kept), grids.PRESETS["q4_0"], None, **kept)
    assert value.dense()[7, 11] == 400.0
    assert len(kept["outlier_values"]) == round(0.01 * W.numel())
    assert (value.dense() - W).norm() < 0.6 * (grids.rounded(W, grids.PRESETS["q4_0"]).dense() - W).norm()


def test_a_rotation_spreads_what_sticks_out() -> None:
    W = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    W[:, 5] *= 50
    sign = grids.signs(64, base.generator(1, "x"))
    given = grids.Grid("unsigned", 4, 0)
    plain = (grids.rounded(W, given).dense() - W)[:, torch.arange(64) != 5].norm()
    turned = grids.rounded(grids.turned(W, sign), given, None, signs=sign).dense() - W
    assert turned.norm() < plain


def test_calibration_is_named_and_refused_as_the_test_text(tiny: Any) -> None:
    edited = rounding.apply(tiny, bits=3, rule="search", importance="inputs", calibration=CALIBRATION)
    facts = edited.changes[-1].facts
    assert facts["calibration"]["texts"][0]["sha256"] == text(CALIBRATION[0]).sha256
    with pytest.raises(NotComparable, match="calibrated on"):
        base.refuse_calibration(edited.changes, text(CALIBRATION[0]))
    other = rounding.apply(tiny, bits=3, rule="search", importance="inputs", shuffle=1, calibration=CALIBRATION)
    assert other.fingerprint != edited.fingerprint


def test_the_original_is_untouched_and_both_ends_stay_tied(tiny: Any) -> None:
    before = tiny.fingerprint
    edited = rounding.apply(tiny, where="embed", bits=2)
    assert edited.is_tied
    assert not rounding.apply(tiny, where="embed.in", bits=2).is_tied
    assert tiny.fingerprint == before


def test_what_does_not_fit_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="bits=9"):
        rounding.apply(tiny, bits=9)
    with pytest.raises(OutOfRange, match="outliers=0.7"):
        rounding.apply(tiny, outliers=0.7)
    with pytest.raises(NothingMatched):
        rounding.apply(tiny, where="blocks.*.ffn")
    with pytest.raises(NotFinite, match="float16"):
        rounding.apply(tiny.replace({"embed": tiny.matrix("embed") * 1e7}, change=tiny_change()), where="embed")


def tiny_change() -> Any:
    return kobza.models.model.Change("test")


@pytest.mark.real
def test_a_model_read_from_q4_1_lies_on_that_grid_already(smollm2: Any) -> None:
    edited = rounding.apply(smollm2, where="blocks.3", format="q4_1")
    assert edited.changes[-1].facts["relative_error"] < 1e-6
