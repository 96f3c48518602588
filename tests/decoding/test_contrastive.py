"""Contrastive decoding equals its formula; the model against itself says what it always says."""

from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange, WrongVocabulary
from kobza.decoding import contrastive, greedy
from kobza.models.opening import open as open_model


def test_equals_the_formula(tiny: Any) -> None:
    worse = open_model("tiny:llama?layers=1&seed=5")
    found = contrastive.generate(tiny, "The kobza", tokens=12, amateur="tiny:llama?layers=1&seed=5", beta=0.7)
    text = list(found.prompt_ids)
    for token in found.ids:
        with torch.inference_mode():
            own, other = (m.module(torch.tensor([text])).logits[0, -1].double().log_softmax(-1) for m in (tiny, worse))
        worth = torch.where(own.exp() >= 0.1 * own.exp().max(), 1.7 * own - 0.7 * other, -torch.inf)
        assert token == int(worth.argmax())
        text.append(token)


@pytest.mark.parametrize("options", [{"amateur": "self"}, {"amateur": "tiny:llama?layers=1", "beta": 0.0}])
def test_no_contrast_is_greedy(tiny: Any, options: dict[str, Any]) -> None:
    found = contrastive.generate(tiny, "The kobza", tokens=15, **options)
    assert found.ids == greedy.generate(tiny, "The kobza", tokens=15).ids


def test_bad_options_are_refused(tiny: Any) -> None:
    with pytest.raises(WrongVocabulary, match="310 tokens"):
        contrastive.generate(tiny, "a", amateur="tiny:llama?vocabulary=310")
    with pytest.raises(OutOfRange, match="beta is -1"):
        contrastive.generate(tiny, "a", beta=-1.0)
