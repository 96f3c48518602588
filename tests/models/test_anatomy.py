"""Anatomy: counts are exact, and rules of thumb are shown with their error."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kobza.core.errors import OutOfRange
from kobza.models.anatomy import attention_operations, kv_numbers, listing, operations
from kobza.models.model import Change, Factors
from kobza.models.tiny import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_add_up_to_the_stored_bytes_and_parameters(family: str) -> None:
    model = tiny(family)
    result = model.anatomy()
    for table in result.tables[1:]:
        assert sum(table["bytes"]) == model.stored_bytes == 4 * sum(table["parameters"])
        assert sum(table["share"]) == pytest.approx(1)
    assert result.reading("parameters").value == model.module.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_bytes_are_what_transformers_keeps(family: str) -> None:
    model = tiny(family)
    cache = model.module(torch.arange(5)[None], use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kv_numbers(model) * 5 == kept
    assert model.anatomy().reading("kv_bytes_per_token").value == 4 * kept / 5


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family: str) -> None:
    model = tiny(family)
    model.module.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(torch.arange(10)[None], use_cache=False)
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op)) / 10
    rotations = 0 if family in ("gpt2", "opt") else _rotation(counter)
    assert products == operations(model, 10) - attention_operations(model, 10)
    attention = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op)) - rotations
    assert attention == 10 * _full_attention(model)


def _rotation(counter: FlopCounterMode) -> int:
    """Rotary tables are made by a small batched product outside the attention."""
    inside = sum(
        n
        for name, ops in counter.get_flop_counts().items()
        if name.split(".")[-1].startswith("rotary_emb")
        for op, n in ops.items()
        if "bmm" in str(op)
    )
    return int(inside)


def _full_attention(model: object) -> int:
    return attention_operations(model, 10)  # type: ignore[arg-type]


def test_factored_matrices_count_as_two_thin_products() -> None:
    model = tiny()
    E = model.matrix("embed")
    thin = model.replace({"embed": Factors(E[:, :8].clone(), torch.eye(32)[:8])}, change=Change("x"))
    assert operations(model, 1) - operations(thin, 1) == 2 * 300 * 32 - 2 * 8 * (300 + 32)
    assert sum(thin.anatomy().tables[2]["bytes"]) == thin.stored_bytes


def test_sliding_windows_bound_the_attention() -> None:
    model = tiny("gemma2")  # one layer of two sees 16 positions
    assert attention_operations(model, 100) == 4 * 32 * (16 + 100)


def test_rules_of_thumb_are_shown_with_their_error() -> None:
    result = tiny().anatomy(context=100)
    assert "12 d^2 L = 24,576" in result.reading("block_parameters").note
    assert "4 L d" in result.reading("kv_bytes_per_token").note
    assert result.reading("kv_numbers_per_token").value == 2 * 2 * 16
    assert "2 times the exact" in result.reading("kv_numbers_per_token").note
    assert "times the exact" in result.reading("operations_per_token").note


def test_the_overview_says_what_is_tied_and_how_heads_are_shared() -> None:
    text = str(tiny().anatomy())
    assert "tied: one tensor" in text and "grouped" in text and "300 rows" in text
    assert "two tensors" in str(tiny(tied=False).anatomy())
    assert "in parallel" in str(tiny("phi").anatomy())
    assert "found by name" in str(tiny("stablelm").anatomy())


def test_a_listing_takes_a_pattern_and_a_context_must_be_positive() -> None:
    assert listing(tiny(), "embed")["matrix"] == ["embed.in", "embed.out"]
    assert len(listing(tiny(), "blocks.*.mlp")) == 6
    with pytest.raises(OutOfRange, match="context 0"):
        tiny().anatomy(context=0)
