"""Uncertainty: closed formulas for entropy, varentropy and angles; the last stream is the model itself."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import EmptyText, OutOfRange
from kobza.interventions import uncertainty

PROMPT = "the banks of it"


def test_entropy_and_varentropy_follow_their_formulas() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]])
    entropy, varentropy = uncertainty.moments(p.log())
    assert entropy.tolist() == pytest.approx(
        [1.5, math.log2(3), 0.9 * math.log2(1 / 0.9) + 0.1 * math.log2(10)], rel=1e-6
    )
    # two outcomes: p (1 - p) log2(p / (1 - p))^2
    assert varentropy.tolist() == pytest.approx([0.25, 0, 0.09 * math.log2(9) ** 2], rel=1e-5, abs=1e-9)


def test_a_straight_path_has_no_curvature_and_a_turn_back_180_degrees() -> None:
    line = torch.arange(4.0)[:, None] * torch.tensor([1.0, 2.0])
    assert uncertainty.curvature(line)[1:-1].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert float(uncertainty.curvature(torch.tensor([[0.0], [1.0], [0.0]]))[1]) == pytest.approx(180)


def test_random_steps_stand_at_right_angles_in_high_dimension() -> None:
    walk = torch.randn(200, 4000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    assert float(uncertainty.curvature(walk).nanmean()) == pytest.approx(90, abs=0.5)


def test_the_last_stream_is_the_model_itself(tiny: Any) -> None:
    ids = tiny.tokenizer.encode(PROMPT, start=True)
    with torch.inference_mode():
        logs = tiny.module(input_ids=torch.tensor([ids])).logits[0, 1:].double().log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1) / math.log(2)
    result = uncertainty.run(tiny, prompt=PROMPT)
    assert result.tables[1]["entropy"] == pytest.approx(entropy.tolist(), rel=1e-5)
    assert result.tables[0][-1]["entropy"] == pytest.approx(float(entropy.mean()), rel=1e-5)


def test_without_controls_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in uncertainty.run(tiny, prompt=PROMPT, controls=0).title
    assert "uncontrolled" not in uncertainty.run(tiny, prompt=PROMPT).title


@pytest.mark.parametrize(("prompt", "error"), [("a", OutOfRange), ("", EmptyText)])
def test_too_short_a_prompt_is_refused(tiny: Any, prompt: str, error: Any) -> None:
    with pytest.raises(error):
        uncertainty.run(tiny, prompt=prompt)
