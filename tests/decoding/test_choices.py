"""Choices are scored exactly, over a tree that reads each token once."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import choices
from kobza.decoding.base import Note


@torch.inference_mode()
def plainly(model: Any, prompt: str, text: str) -> float:
    """The log-probability of a text by one whole run."""
    ids, more = model.tokenizer.encode(prompt, start=True), model.tokenizer.encode(text)
    logits = model.module(torch.tensor([[*ids, *more]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(ids) - 1 + n, token] for n, token in enumerate(more)))


def test_log_probabilities_are_exact(tiny: Any) -> None:
    texts = [" the kobza", " the lute", " a drum", "zither"]
    found = choices.logprobs(tiny, "She plays", texts)
    assert found == pytest.approx([plainly(tiny, "She plays", text) for text in texts], abs=1e-4)


def test_a_choice_that_begins_another_leaves_it_its_share(tiny: Any) -> None:
    found = choices.logprobs(tiny, "It is", [" 1", " 10", " 100"])
    whole = [plainly(tiny, "It is", text) for text in (" 1", " 10", " 100")]
    assert found[2] == pytest.approx(whole[2], abs=1e-4)
    assert math.exp(found[1]) + math.exp(found[2]) == pytest.approx(math.exp(whole[1]), rel=1e-3)
    assert sum(map(math.exp, found)) == pytest.approx(math.exp(whole[0]), rel=1e-3)


def test_the_likeliest_is_said_with_its_own_log_probabilities(tiny: Any) -> None:
    texts = [" the kobza", " the lute", " a drum"]
    found = choices.generate(tiny, "She plays", choices=texts)
    scores = choices.logprobs(tiny, "She plays", texts)
    assert found.text == texts[scores.index(max(scores))]
    assert sum(found.logprobs) == pytest.approx(max(scores), abs=1e-4)
    assert isinstance(found.events[0], Note) and "'" in found.events[0].said
    assert found.stopped_by == "end"


def test_means_favor_no_short_choices(tiny: Any) -> None:
    texts = ["a", "a lute and a drum"]
    scores = choices.logprobs(tiny, "She plays", ["x" + texts[0], "y" + texts[1]])
    assert scores[0] > scores[1]
    per = choices.generate(tiny, "She plays", choices=["x" + texts[0], "y" + texts[1]], per="byte")
    means = [score / len(text.encode()) for score, text in zip(scores, ["x" + texts[0], "y" + texts[1]], strict=True)]
    assert per.text == ("x" + texts[0] if means[0] > means[1] else "y" + texts[1])


def test_a_rating_is_the_expected_value(tiny: Any) -> None:
    values = [1, 2, 3, 4, 5]
    weights = torch.tensor([plainly(tiny, "Rating:", f" {v}") for v in values]).softmax(-1)
    expected = float(weights @ torch.tensor([float(v) for v in values]))
    assert choices.rating(tiny, "Rating:", values) == pytest.approx(expected, abs=1e-4)


def test_bad_choices_are_refused(tiny: Any) -> None:
    for bad in (["a"], ["a", ""], ["a", "a"]):
        with pytest.raises(BadValue, match="give two or more"):
            choices.generate(tiny, "x", choices=bad)
    with pytest.raises(OutOfRange, match="the longest choice"):
        choices.generate(tiny, "x", choices=["a", "b" * 90])
