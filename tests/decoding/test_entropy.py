"""Entropy-driven sampling: what is measured is right, and both versions are what they say."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import entropy
from kobza.decoding.base import Note
from kobza.decoding.entropy import Bounds, Seen, choose, cut, measured
from kobza.models.tiny import tiny as make_tiny


def test_entropy_and_varentropy_are_those_of_the_definition() -> None:
    p = torch.tensor([0.917, 0.083])
    seen = measured(p.log(), torch.zeros(2, 4), is_published=False)
    H = -sum(x * math.log2(x) for x in p.tolist())
    assert seen.entropy == pytest.approx(H, abs=1e-5)
    assert seen.varentropy == pytest.approx(0.914, abs=2e-3), "the greatest there is for two outcomes"
    assert measured(torch.zeros(2), torch.zeros(2, 4), is_published=False).varentropy == 0


def test_attention_is_measured_over_the_positions_seen() -> None:
    alike = measured(torch.zeros(3), torch.zeros(4, 8), is_published=False)
    assert alike.attention_entropy == pytest.approx(3) and alike.attention_varentropy == pytest.approx(0)
    assert alike.agreement == pytest.approx(1)
    apart = measured(torch.zeros(3), 100 * torch.eye(4), is_published=False)
    assert apart.agreement == pytest.approx(1 / 4)
    assert measured(torch.zeros(3), 100 * torch.eye(4), is_published=True).agreement > 0, "it measures disagreement"
    assert measured(torch.zeros(3), torch.zeros(4, 8), is_published=True).agreement == 0


def test_the_published_cut_drops_the_likeliest_and_the_repaired_one_does_not() -> None:
    logits = torch.zeros(25).index_fill(0, torch.tensor([7]), 0.3)
    assert cut(logits, 1.0, 25, 0.9, 0.0, is_published=True)[7] == 0
    assert cut(logits, 1.0, 25, 0.9, 0.0, is_published=False).argmax() == 7


def test_min_p_is_dead_as_published() -> None:
    logits = torch.tensor([5.0, 1.0, 0.0])
    assert torch.equal(*(cut(logits, 1.0, 3, 1.0, least, is_published=True) for least in (0.01, 0.5)))
    assert int((cut(logits, 1.0, 3, 1.0, 0.5, is_published=False) > 0).sum()) == 1


def test_the_middle_takes_the_likeliest_of_five_draws() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    seen = Seen(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    shares = cut(logits, 0.666, 27, 0.9, 0.03, is_published=True)
    expected = 1 - (1 - float(shares.max())) ** 5
    top = int(shares.argmax())
    hits = sum(choose(logits, seen, "middle", generator, is_published=True) == top for _ in range(800)) / 800
    assert hits == pytest.approx(expected, abs=0.05)


def test_the_corners_of_both_versions() -> None:
    bounds = Bounds(0.1, 3.0, 5.0, 5.0)
    names = {
        (0.0, 0.0): "follow",
        (6.0, 0.0): "pause",
        (1.0, 6.0): "branch",
        (6.0, 6.0): "redraw",
        (2.0, 2.0): "middle",
    }
    for (H, V), name in names.items():
        seen = Seen(H, V, 0, 0, 0, 0)
        assert bounds.corner(seen, is_published=True) == name
        assert bounds.corner(seen, is_published=False) == name.replace("middle", "follow")


@pytest.mark.parametrize("version", ["published", "repaired"])
def test_every_token_has_its_corner(tiny: Any, version: Any) -> None:
    found = entropy.generate(tiny, "The kobza", tokens=12, version=version)
    notes = [event.said for event in found.events if isinstance(event, Note)]
    assert len(notes) == len(found.ids) == 12
    assert set(notes) <= {"follow", "pause", "branch", "redraw", "middle"}


def test_a_pause_is_said_once(tiny: Any) -> None:
    found = entropy.generate(tiny, "The kobza", tokens=8, pause="x", entropy=0.0, varentropy=1e9, flat=0.0)
    said = int(tiny.tokenizer.id_of(b"x"))
    assert found.ids[0] == said and found.ids[1] != said


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(BadValue, match="attention of 'tiny:gpt2' cannot be read"):
        _ = entropy.generate(make_tiny("gpt2"), "a", tokens=2).text
    with pytest.raises(OutOfRange, match="low is -1"):
        entropy.generate(make_tiny(), "a", low=-1.0)
