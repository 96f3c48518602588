"""Noise: its size is what the closed form says, its numbers are seeded by matrix."""

import math
from typing import Any

import pytest
import torch

from kobza.edits import noise
from kobza.models.tiny import tiny as make_tiny

IDS = torch.arange(40, 60)[None]


def test_no_noise_changes_nothing(tiny: Any) -> None:
    edited = noise.apply(tiny, where="*", strength=0.0)
    for name in edited.changes[-1].matrices:
        assert torch.equal(edited.matrix(name), tiny.matrix(name))


@pytest.mark.parametrize("strength", [0.01, 0.5, 3.0])
def test_the_error_is_strength_times_std_times_root_of_the_entries(tiny: Any, strength: float) -> None:
    W = tiny.matrix("embed").double()
    facts = noise.apply(tiny, strength=strength).changes[-1].facts
    expected = strength * float(W.std(correction=0)) * math.sqrt(W.numel())
    # the norm of n normal numbers is sqrt(n) within 1 / sqrt(2 n): five standard deviations
    assert facts["matrices"]["embed"]["error"] == pytest.approx(expected, rel=5 / math.sqrt(2 * W.numel()))


def test_equal_seeds_give_equal_bits_and_others_do_not(tiny: Any) -> None:
    assert torch.equal(noise.apply(tiny, seed=3).matrix("embed"), noise.apply(tiny, seed=3).matrix("embed"))
    assert not torch.equal(noise.apply(tiny, seed=3).matrix("embed"), noise.apply(tiny, seed=4).matrix("embed"))


def test_editing_less_does_not_change_the_numbers_of_the_rest(tiny: Any) -> None:
    many, one = noise.apply(tiny, where="blocks.*", seed=1), noise.apply(tiny, where="blocks.1.mlp.up", seed=1)
    assert torch.equal(many.matrix("blocks.1.mlp.up"), one.matrix("blocks.1.mlp.up"))


def test_one_end_and_both_ends_draw_the_same_numbers(tiny: Any) -> None:
    assert torch.equal(noise.apply(tiny, where="embed.in").matrix("embed.in"), noise.apply(tiny).matrix("embed.in"))


def test_the_ends_of_an_untied_model_draw_their_own_numbers() -> None:
    model = make_tiny(tied=False)
    edited = noise.apply(model)
    added = [edited.matrix(end) - model.matrix(end) for end in ("embed.in", "embed.out")]
    assert abs(float(torch.corrcoef(torch.stack([a.flatten() for a in added]))[0, 1])) < 0.05


def test_the_input_model_is_not_touched(tiny: Any) -> None:
    before = tiny.matrix("embed").clone()
    edited = noise.apply(tiny)
    assert torch.equal(tiny.matrix("embed"), before)
    assert not torch.equal(edited.matrix("embed"), before)
    assert tiny.changes == ()
    assert edited.changes[-1].seed == 0
