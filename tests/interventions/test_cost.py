"""Cost: the yardstick read while parts are off equals the yardstick of a model without them."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.interventions import cost
from kobza.measures import bits_per_byte
from kobza.models.model import Change

SMALL: Any = {"limit": 400, "window": 64}


def test_removing_a_head_costs_what_the_model_without_its_columns_costs(tiny: Any) -> None:
    W = tiny.matrix("blocks.1.attn.o").clone()
    W[:, 16:24] = 0
    without = tiny.replace({"blocks.1.attn.o": W}, change=Change("without"))
    expected = bits_per_byte.measure(without, "topics", limit=400, window=64, overlap=16).value
    row = cost.run(tiny, over="z.1.2", **SMALL).tables[0][0]
    assert row["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    base = bits_per_byte.measure(tiny, "topics", limit=400, window=64, overlap=16).value
    assert row["cost"] == pytest.approx(expected - base, abs=1e-6)
    assert row["low"] <= row["cost"] <= row["high"]


def test_a_whole_block_is_attention_and_mlp_together(tiny: Any) -> None:
    zeros = {name: torch.zeros_like(tiny.matrix(name)) for name in ("blocks.0.attn.o", "blocks.0.mlp.down")}
    without = tiny.replace(zeros, change=Change("without"))
    expected = bits_per_byte.measure(without, "topics", limit=400, window=64, overlap=16).value
    table = cost.run(tiny, over="block.0; attn_out.0+mlp_out.0", controls=0, **SMALL).tables[0]
    assert table["bits_per_byte"] == pytest.approx([expected] * 2, rel=1e-6)


def test_together_makes_one_set_of_all(tiny: Any) -> None:
    table = cost.run(tiny, over="z.1.*", together=True, **SMALL).tables[0]
    alone = cost.run(tiny, over="attn_out.1", controls=0, **SMALL).tables[0]
    assert len(table) == 1
    assert table[0]["bits_per_byte"] == pytest.approx(alone[0]["bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "resample", "noise", "value"])
def test_every_kind_changes_the_bits_and_none_of_no_strength(tiny: Any, kind: Any) -> None:
    row = cost.run(tiny, over="mlp_out.1", kind=kind, value=0.5, controls=0, **SMALL).tables[0][0]
    assert row["cost"] != 0
    assert cost.run(tiny, over="mlp_out.1", kind="noise", strength=0, controls=0, **SMALL).tables[0][0]["cost"] == 0


def test_controls_are_other_places_and_their_absence_is_said(tiny: Any) -> None:
    result = cost.run(tiny, over="z.0.*", together=True, controls=2, **SMALL)
    expected = cost.run(tiny, over="z.1.*", together=True, controls=0, **SMALL)
    assert result.tables[0][0]["control"] == pytest.approx(expected.tables[0][0]["cost"], abs=1e-6), "all that is left"
    assert "uncontrolled" in expected.title
    assert "uncontrolled" not in result.title


def test_a_position_is_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="names a position"):
        cost.run(tiny, over="z.0.1@0", **SMALL)


@pytest.mark.real
def test_a_block_of_smollm2_costs_bits_beyond_chance(smollm2: Any) -> None:
    row = cost.run(smollm2, over="block.15", limit=1500, controls=0).tables[0][0]
    assert 0 < row["low"] < row["cost"] < row["high"]
