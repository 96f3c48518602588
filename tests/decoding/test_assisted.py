"""An assistant drafts, the text stays the model's own."""

from typing import Any

import pytest

from kobza.core.errors import OutOfRange, WrongVocabulary
from kobza.decoding import assisted, greedy
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize("assistant", ["self", "tiny:llama?layers=1&seed=3", "tiny:gpt2?seed=1"])
def test_the_text_is_greedy(assistant: str) -> None:
    model = make_tiny("qwen3")
    right = greedy.generate(model, "The kobza", tokens=40)
    found = assisted.generate(model, "The kobza", tokens=40, assistant=assistant)
    assert found.ids == right.ids


def test_of_itself_everything_is_accepted(tiny: Any) -> None:
    found = assisted.generate(tiny, "The kobza", tokens=41, draft=4)
    assert found.acceptance == 1
    assert found.passes == 1 + 40 / 5
    drawn = assisted.generate(tiny, "The kobza", tokens=41, draft=4, temperature=1.0)
    assert drawn.acceptance == 1, "p = q accepts all"


def test_another_vocabulary_is_refused(tiny: Any) -> None:
    with pytest.raises(WrongVocabulary, match="has 310 tokens of its own, 'tiny:llama"):
        assisted.generate(tiny, "a", assistant="tiny:llama?vocabulary=310")
    with pytest.raises(OutOfRange, match="draft is 0"):
        assisted.generate(tiny, "a", draft=0)


@pytest.mark.real
def test_the_quantized_file_drafts_for_the_model(smollm2: Any) -> None:
    pytest.importorskip("llama_cpp", reason="the extra 'llama' is not installed")
    right = greedy.generate(smollm2, "Once upon a time", tokens=24)
    found = assisted.generate(smollm2, "Once upon a time", tokens=24, assistant="gguf")
    assert found.ids == right.ids
    assert found.acceptance > 0.6
