"""Attention over long inputs: patterns are the model's own, tiles show their strongest cell."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.interventions import attention, heads
from kobza.interventions.base import prompt_ids
from kobza.interventions.planner import Run
from kobza.models.tiny import tiny as make

PROMPT = "the banks of it and the winds of it"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_patterns_are_those_of_the_eager_model(family: str) -> None:
    """Authority: what transformers hands out when asked for attention."""
    model = make(family)
    ids = prompt_ids(model, PROMPT)
    found = torch.stack([attention._pattern(Run(model, ids), layer) for layer in range(2)])
    torch.testing.assert_close(found, heads.patterns(model, ids), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-5)


def test_shares_and_distances_are_means_over_queries(tiny: Any) -> None:
    ids = prompt_ids(tiny, PROMPT)
    pattern = heads.patterns(tiny, ids)[1, 2].double()
    row = next(row for row in attention.run(tiny, prompt=PROMPT).tables[0] if row["head"] == "L1H2")
    assert row["first"] == pytest.approx(float(pattern[1:, 0].mean()), rel=1e-4)
    assert row["previous"] == pytest.approx(float(pattern.diagonal(-1).mean()), rel=1e-4)
    distance = sum(float(pattern[i, j]) * (i - j) for i in range(1, len(ids)) for j in range(i)) / (len(ids) - 1)
    assert row["distance"] == pytest.approx(distance, rel=1e-4)


def test_a_single_strong_cell_survives_tiling() -> None:
    pattern = torch.zeros(1000, 1000)
    pattern[777, 333] = 0.9
    found = attention.tiled(pattern, 50)
    assert found.shape == (50, 50)
    assert float(found[777 // 20, 333 // 20]) == pytest.approx(0.9)
    assert float(found.sum()) == pytest.approx(0.9)


def test_a_long_text_is_drawn_in_tiles(tiny: Any) -> None:
    result = attention.run(tiny, limit=1500, heads="L1H2;0.3", tiles=32)
    assert [figure.title for figure in result.tables[0].figures] == ["L1H2", "L0H3"]
    assert len(result.tables[0].figures[0].data["values"]) == 32
    assert len(result.tables[0]) == 8


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"heads": "q"}, BadValue),
        ({"heads": "2.0"}, OutOfRange),
        ({"heads": "1.9"}, OutOfRange),
        ({"tiles": 0}, OutOfRange),
    ],
)
def test_what_is_no_head_is_refused(tiny: Any, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        attention.run(tiny, **{"prompt": PROMPT, **options})
