"""The first layers draft, the text stays the model's own."""

from typing import Any

import pytest

from kobza.core.errors import OutOfRange
from kobza.decoding import early_exit, greedy
from kobza.models.stepping import using
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize(("family", "backend"), [("llama", "bare"), ("qwen3", "bare"), ("llama", "transformers"),
                                                 ("gemma2", "auto"), ("gpt2", "auto")])  # fmt: skip
@pytest.mark.parametrize("layer", [1, 3])
def test_the_text_is_greedy(family: str, backend: str, layer: int) -> None:
    model = make_tiny(family, layers=4)
    with using(backend):
        right = greedy.generate(model, "The kobza", tokens=40)
        found = early_exit.generate(model, "The kobza", tokens=40, layer=layer, draft=3)
        assert found.ids == right.ids


def test_the_bare_step_and_transformers_accept_the_same() -> None:
    model = make_tiny(layers=4)
    rates = []
    for backend in ("bare", "transformers"):
        with using(backend):
            rates.append(early_exit.generate(model, "The kobza", tokens=40, layer=3, temperature=0.7).acceptance)
    assert rates[0] == rates[1] > 0


@pytest.mark.parametrize("backend", ["bare", "transformers"])
@pytest.mark.parametrize("confidence", [0.02, 0.1, 1.0])
def test_an_exit_that_is_not_sure_proposes_nothing_and_changes_nothing(backend: str, confidence: float) -> None:
    model = make_tiny(layers=4)
    with using(backend):
        right = greedy.generate(model, "The kobza", tokens=40)
        found = early_exit.generate(model, "The kobza", tokens=40, layer=3, draft=3, confidence=confidence)
    assert found.ids == right.ids
    assert (not found.drafts) == (confidence == 1.0)


def test_layers_that_are_not_there_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="layer is 2; allowed is 0 to 1"):
        early_exit.generate(tiny, "a", layer=2)
