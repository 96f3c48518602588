"""Scaling: the error is |s - 1| |W|, and each end feels it differently."""

from typing import Any

import pytest
import torch

from kobza.edits import scaling
from kobza.models import forward

IDS = torch.arange(40, 60)[None]


def test_the_factor_one_changes_nothing(tiny: Any) -> None:
    edited = scaling.apply(tiny, where="*", factor=1.0)
    for name in edited.changes[-1].matrices:
        assert torch.equal(edited.matrix(name), tiny.matrix(name))


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.1, 2.0, 10.0])
@pytest.mark.parametrize("where", ["embed", "embed.in", "embed.out", "blocks.*.mlp"])
def test_the_relative_error_is_the_distance_of_the_factor_from_one(tiny: Any, factor: float, where: str) -> None:
    facts = scaling.apply(tiny, where=where, factor=factor).changes[-1].facts
    assert facts["relative_error"] == pytest.approx(abs(factor - 1), rel=1e-6)
    assert facts["energy_kept"] == pytest.approx(factor**2, rel=1e-5)


def test_at_the_output_end_it_multiplies_the_logits(tiny: Any) -> None:
    edited = scaling.apply(tiny, where="embed.out", factor=3.0)
    assert torch.allclose(forward.logits(edited, IDS), 3 * forward.logits(tiny, IDS), atol=1e-5)
    assert not edited.is_tied


def test_both_ends_are_one_end_after_the_other(tiny: Any) -> None:
    both = scaling.apply(tiny, factor=2.0)
    steps = scaling.apply(scaling.apply(tiny, where="embed.in", factor=2.0), where="embed.out", factor=2.0)
    assert both.is_tied
    assert torch.equal(forward.logits(both, IDS), forward.logits(steps, IDS))


def test_the_input_model_is_not_touched(tiny: Any) -> None:
    before = tiny.matrix("embed").clone()
    scaling.apply(tiny, factor=0.0)
    assert torch.equal(tiny.matrix("embed"), before)
