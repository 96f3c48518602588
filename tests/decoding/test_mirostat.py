"""Mirostat holds the surprisal near its target."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.decoding import greedy, mirostat


def test_the_cut_keeps_what_is_no_more_surprising() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert mirostat.below(logits, 2.01).softmax(-1).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert mirostat.below(logits, 0.0).softmax(-1).tolist() == [1, 0, 0, 0], "the likeliest always stays"


def test_a_target_of_nothing_is_greedy(tiny: Any) -> None:
    found = mirostat.generate(tiny, "The kobza", tokens=20, target=0.0)
    assert found.ids == greedy.generate(tiny, "The kobza", tokens=20).ids


@pytest.mark.parametrize("target", [4.0, 6.0])
def test_the_mean_surprisal_comes_near_the_target(tiny: Any, target: float) -> None:
    found = mirostat.generate(tiny, "The kobza", tokens=300, target=target, seed=1)
    bits = [-p / math.log(2) for p in found.logprobs[50:]]
    # surprisal is that of the model, the target that of the cut distribution: a little less
    assert sum(bits) / len(bits) == pytest.approx(target, abs=1.0)


def test_options_out_of_range_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="target is -1"):
        mirostat.generate(tiny, "a", target=-1.0)
    with pytest.raises(OutOfRange, match="temperature is 0"):
        mirostat.generate(tiny, "a", temperature=0.0)
