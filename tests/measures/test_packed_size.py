"""The packed size is real: it is the length of bytes that give the text back, and it is the model's code length."""

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import base, lm
from kobza.core.errors import CheckFailed, EmptyText
from kobza.measures import bits_per_byte, packed_size
from kobza.models.predictor import ModelPredictor
from kobza.models.tiny import tiny as make_tiny

TEXT = b"In the end the instrument is only wood and air. What it says depends on the hand. " * 4
MODELS = {family: make_tiny(family, layers=1) for family in ("llama", "gemma2")}


@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode), streams=st.integers(0, 3))
def test_any_bytes_come_back(family: str, data: bytes, streams: int) -> None:
    model = MODELS[family]
    predictor = ModelPredictor(model)
    blob = lm.compress(data, predictor=predictor, vocabulary=model.tokenizer, streams=streams, window=20, overlap=5)
    assert lm.decompress(blob, predictor=predictor, vocabulary=model.tokenizer) == data


@pytest.mark.parametrize(
    "data", [b"<s></s>", b"\r\n", "кобза".encode(), b"\xf0\x9f", b"\xed\xa0\x80", bytes(range(256))]
)
def test_awkward_bytes_come_back(tiny: Any, data: bytes) -> None:
    predictor = ModelPredictor(tiny)
    blob = lm.compress(data, predictor=predictor, vocabulary=tiny.tokenizer)
    assert lm.decompress(blob, predictor=predictor, vocabulary=tiny.tokenizer) == data


def test_one_stream_packs_to_the_bits_per_byte(tiny: Any) -> None:
    options = {"window": 60, "overlap": 20}
    packed = packed_size.measure(tiny, TEXT, streams=1, **options)
    ideal = bits_per_byte.measure(tiny, TEXT, **options).value * len(TEXT) / 8
    assert ideal <= packed.value <= ideal * 1.003 + 64
    assert packed.value - ideal < 6


def test_a_model_without_a_start_token_packs_to_its_bits_per_byte(tiny: Any) -> None:
    tiny.tokenizer = copy.copy(tiny.tokenizer)  # tiny models share one
    tiny.tokenizer.marks = replace(tiny.tokenizer.marks, start_id=None)
    packed = packed_size.measure(tiny, TEXT, streams=1, window=60, overlap=0)
    ideal = bits_per_byte.measure(tiny, TEXT, window=60, overlap=0).value * len(TEXT) / 8
    assert ideal <= packed.value < ideal + 6


def test_the_size_is_that_of_the_packed_file_without_what_is_around_its_block(tiny: Any) -> None:
    blob = lm.compress(TEXT, predictor=ModelPredictor(tiny), vocabulary=tiny.tokenizer)
    (block,) = base.Reader(io.BytesIO(blob)).blocks()
    assert block.codec == 1
    assert packed_size.measure(tiny, TEXT).value == block.packed_size
    around = len(blob) - block.packed_size
    assert around < 600, "header (two fingerprints, versions), block head, index, footer"


def test_the_parts_add_up_to_the_size(tiny: Any) -> None:
    reading = packed_size.measure(tiny, TEXT)
    assert reading.parts is not None
    assert sum(part for part, _ in reading.parts) == pytest.approx(reading.value)
    assert reading.value == int(reading.value)


def test_the_note_tells_the_ideal_and_the_streams(tiny: Any) -> None:
    note = packed_size.measure(tiny, TEXT, streams=2).note
    assert "bit/B; ideal " in note
    assert "; 2 streams of " in note


def test_the_limit_is_said(tiny: Any) -> None:
    reading = packed_size.measure(tiny, TEXT, limit=100)
    assert reading.record["text"]["bytes"] == 100
    assert f"the first 100 of {len(TEXT)} bytes" in reading.note


def test_an_empty_text_is_refused(tiny: Any) -> None:
    with pytest.raises(EmptyText):
        packed_size.measure(tiny, b"")


def test_a_text_that_does_not_come_back_is_a_failure(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "restore", lambda *_, **__: b"other")
    with pytest.raises(CheckFailed, match="did not come back"):
        packed_size.measure(tiny, TEXT)


def test_the_environment_names_threads_and_versions(tiny: Any) -> None:
    environment = ModelPredictor(tiny).environment
    assert "torch 2" in environment
    assert "1 threads" in environment
    assert "float32" in environment


@pytest.mark.real
def test_smollm2_packs_within_a_hair_of_its_code_length(smollm2: Any) -> None:
    reading = packed_size.measure(smollm2, "topics[:250]", streams=2)
    predictor = ModelPredictor(smollm2)
    assert predictor.fingerprint == reading.record["model"]["fingerprint"]
    ideal = float(reading.note.split("ideal ")[1].split(" ")[0])
    assert ideal <= reading.value <= 1.003 * ideal + 64
    assert reading.value < ideal + 8
