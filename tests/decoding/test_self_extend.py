"""Groups of far positions: nothing changes within the window, and the model's context is no limit."""

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.decoding import greedy, self_extend
from kobza.models.bare import BareStepper, rotated
from kobza.models.extending import ExtendedStepper
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 300), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_within_the_window_nothing_changes(family: str) -> None:
    model = tiny(family, layers=3, context=64)
    plain, run = BareStepper(model), ExtendedStepper(model, group=4, window=32)
    for begin, end in ((0, 20), (20, 21), (21, 32)):
        expected = plain.feed(IDS[:, begin:end], keep=end - begin)
        assert torch.allclose(run.feed(IDS[:, begin:end], keep=end - begin), expected, atol=1e-4)
    assert not torch.allclose(run.feed(IDS[:, 32:40]), plain.feed(IDS[:, 32:40]), atol=1e-3)


def test_a_group_of_one_is_plain_attention() -> None:
    model = tiny(context=512)
    run = ExtendedStepper(model, group=1, window=8)
    assert torch.allclose(run.feed(IDS, keep=300), BareStepper(model).feed(IDS, keep=300), atol=1e-4)


def test_a_far_key_is_seen_at_the_distance_of_its_group() -> None:
    """By hand: query 21, key 3, window 8, groups of 4: 21 // 4 + 8 - 2 - 3 // 4 = 11 places apart."""
    model = tiny(layers=1, context=64)
    run = ExtendedStepper(model, group=4, window=8)
    q, key = torch.randn(2, 1, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    found = run._scores(q, key, torch.tensor([21 // 4 + 8 - 2]), torch.tensor([3 // 4]))
    right = rotated(q, run.cos[11:12], run.sin[11:12]) @ key.transpose(-1, -2) * run._scale
    assert torch.allclose(found, right, atol=1e-5)
    assert ExtendedStepper(model, group=4, window=8).context == 4 * 56 + 8


def test_it_reads_more_than_was_trained_and_says_how_much() -> None:
    model = tiny(context=64)
    prompt = "the kobza " * 12
    with pytest.raises(OutOfRange, match="was trained for 64"):
        greedy.generate(model, prompt, tokens=20)
    said = self_extend.generate(model, prompt, tokens=20, group=4)
    assert len(said.ids) == 20 and len(said.prompt_ids) > 50
    assert said.ids == self_extend.generate(model, prompt, tokens=20, group=4).ids
    with pytest.raises(OutOfRange, match="can read 208 this way"):
        self_extend.generate(model, prompt, tokens=200, group=4)
    with pytest.raises(OutOfRange, match="window is 65; allowed is 0 to 64"):
        self_extend.generate(model, "a", window=65)


def test_a_prompt_within_the_window_is_greedy() -> None:
    model = tiny(context=256)
    assert self_extend.generate(model, "The kobza", tokens=20).ids == greedy.generate(model, "The kobza", tokens=20).ids
