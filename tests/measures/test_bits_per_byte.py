"""Bits per byte equals the closed computation with transformers, and says what it counted."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import NotFinite, OutOfRange
from kobza.measures import bits_per_byte
from kobza.models.tiny import tiny as make_tiny

TEXT = b"The old players were often blind; they went from fair to fair. " * 6


def closed_form(model: Any, data: bytes) -> float:
    """One window, with transformers' own loss."""
    ids = torch.tensor([model.tokenizer.encode(data, start=True)])
    with torch.inference_mode():
        loss = model.module(input_ids=ids, labels=ids).loss
    return float(loss) * (ids.shape[1] - 1) / math.log(2) / len(data)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_equals_the_loss_of_transformers(family: str) -> None:
    model = make_tiny(family)
    reading = bits_per_byte.measure(model, TEXT)
    assert reading.value == pytest.approx(closed_form(model, TEXT), rel=1e-5)


def test_windows_are_independent_without_overlap(tiny: Any) -> None:
    ids = tiny.tokenizer.encode(TEXT)
    cut = len(tiny.tokenizer.decode(ids[:50]))
    whole = bits_per_byte.measure(tiny, TEXT[: 2 * cut], window=50, overlap=0)
    first = closed_form(tiny, TEXT[:cut]) * cut
    assert whole.value * 2 * cut > first
    assert bits_per_byte.measure(tiny, TEXT[:cut], window=50, overlap=0).value * cut == pytest.approx(first, rel=1e-5)


def test_the_value_is_the_ratio_of_its_parts(tiny: Any) -> None:
    reading = bits_per_byte.measure(tiny, TEXT)
    assert reading.parts is not None
    assert reading.low is not None
    assert reading.high is not None
    assert reading.value == pytest.approx(sum(a for a, _ in reading.parts) / len(TEXT))
    assert reading.low < reading.value < reading.high
    assert sum(b for _, b in reading.parts) == pytest.approx(len(TEXT))


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(tiny: Any) -> None:
    tiny.module.lm_head.weight.zero_()  # tied: both ends
    tokens = len(tiny.tokenizer.encode(TEXT))
    assert bits_per_byte.measure(tiny, TEXT).value == pytest.approx(tokens * math.log2(300) / len(TEXT), rel=1e-6)


def test_equal_calls_give_equal_bits(tiny: Any) -> None:
    assert bits_per_byte.measure(tiny, TEXT).value == bits_per_byte.measure(tiny, TEXT).value


def test_more_than_eight_bits_per_byte_are_shown_as_such(tiny: Any) -> None:
    reading = bits_per_byte.measure(tiny, "ukrainian", limit=500)
    assert reading.value > 8
    assert "worse than 8 bits per byte" in reading.note


def test_bytes_that_the_vocabulary_cannot_say_cost_eight_bits(tiny: Any) -> None:
    plain = bits_per_byte.measure(tiny, b"the kobza").value * 9
    reading = bits_per_byte.measure(tiny, b"the kobza\xff\xfe")
    assert reading.value * 11 == pytest.approx(plain + 16)
    assert "2 bytes that the vocabulary cannot say" in reading.note


def test_weights_that_are_not_numbers_stop_with_the_place(tiny: Any) -> None:
    tiny.module.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"not finite \(nan\) at token 0 \('The', byte 0 of"):
        bits_per_byte.measure(tiny, TEXT)


def test_a_window_longer_than_trained_is_cut_and_said() -> None:
    reading = bits_per_byte.measure(make_tiny(context=512), TEXT, window=4096)
    assert reading.record["how"]["window"] == 512
    assert reading.record["how"]["overlap"] == 128, "as a packed text is read"
    assert "window 512, overlap 128: the model was trained for no more" in reading.note


def test_an_overlap_as_long_as_the_window_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="window 64 and overlap 64"):
        bits_per_byte.measure(tiny, TEXT, window=64, overlap=64)


@pytest.mark.real
def test_smollm2_equals_the_loss_of_transformers(smollm2: Any) -> None:
    reading = bits_per_byte.measure(smollm2, "topics[:1500]")
    from kobza.core.texts import text

    assert reading.value == pytest.approx(closed_form(smollm2, text("topics[:1500]").data), rel=1e-4)
    assert 0.7 < reading.value < 1.5
