"""Transplant: a question brings along what its own run holds, and controls that do the same are told."""

from typing import Any

import pytest

from kobza.core.errors import OutOfRange
from kobza.interventions import transplant

INTO = "the wind blows||a bank of the river"


def test_the_last_stream_brings_the_whole_answer(tiny: Any) -> None:
    result = transplant.run(tiny, prompt="is it so", into=INTO, over="resid_post.1@-1", metric="logit:k")
    own = transplant.run(tiny, prompt="the end", into="is it so", over="resid_post.1@-1", metric="logit:k")
    assert result.tables[0][0]["logit:k"] == pytest.approx(own.reading("neutral").value, abs=1e-5)


def test_planned_equals_naive(tiny: Any) -> None:
    options = {"prompt": "is it so", "into": INTO, "over": "mlp_out.*@-1; z.*.*@-1", "metric": "logprob:k|a,diff:k|a"}
    a, b = (transplant.run(tiny, **options, how=how).tables[0] for how in ("planned", "naive"))
    for column in ("logprob:k|a", "diff:k|a change", "low", "high"):
        assert a[column] == pytest.approx(b[column], abs=1e-5)


def test_the_question_as_its_own_control_is_not_specific(tiny: Any) -> None:
    result = transplant.run(tiny, prompt="is it so", into=INTO, controls="is it so", over="z.*.*@-1", metric="logit:k")
    assert result.reading("shared").value == pytest.approx(1)
    assert "not specific" in result.title
    assert "the controls share it" in result.reading("shared").note
    assert result.tables[0]["specific"] == [0] * 8


def test_without_controls_the_result_says_so(tiny: Any) -> None:
    result = transplant.run(tiny, prompt="is it so", into=INTO, metric="logit:k")
    assert "uncontrolled" in result.title
    assert "uncontrolled" in result.tables[0].title


def test_correlation_is_pearsons() -> None:
    import numpy as np
    import torch

    a, b = (torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert transplant.correlation(a, b) == pytest.approx(np.corrcoef(a.numpy(), b.numpy())[0, 1])
    assert transplant.correlation(a, torch.ones(20, dtype=torch.float64)) == 0


def test_a_position_that_the_shorter_text_lacks_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="shorter prompt"):
        transplant.run(tiny, prompt="a", into="the wind blows over it", over="mlp_out.0@0")
