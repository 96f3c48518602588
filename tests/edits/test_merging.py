"""Merging: the ends of every method are the models themselves; closed forms; what cannot be merged is refused."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange, WrongTensors, WrongVocabulary
from kobza.core.texts import text
from kobza.edits import merging
from kobza.models import forward

IDS = torch.arange(40, 60)[None]
OTHER = "tiny:llama?layers=2&seed=1"
THIRD = "tiny:llama?layers=2&seed=2"
NAME = "blocks.0.mlp.up"
METHODS = ("linear", "slerp", "task", "ties", "dare", "dare_ties")


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_stays_itself(tiny: Any, method: Any) -> None:
    edited = merging.apply(tiny, method=method)
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(tiny, IDS), atol=1e-5)
    assert edited.is_tied


@pytest.mark.parametrize("method", ["task", "ties", "dare", "dare_ties"])
def test_the_whole_difference_of_one_other_is_that_other(tiny: Any, method: Any) -> None:
    edited = merging.apply(tiny, others=[OTHER], method=method, density=1.0)
    other = kobza.open(OTHER)
    for name in (NAME, "embed", "norm"):
        assert torch.allclose(edited.matrix(name), other.matrix(name), atol=1e-6)


def test_linear_is_the_weighted_mean(tiny: Any) -> None:
    edited = merging.apply(tiny, others=[OTHER, THIRD], weights=[1, 2, 5])
    models = [tiny, kobza.open(OTHER), kobza.open(THIRD)]
    mean = sum(w * m.matrix(NAME) for w, m in zip([1, 2, 5], models, strict=True)) / 8
    assert torch.allclose(edited.matrix(NAME), mean, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_follows_the_arc(tiny: Any, t: float) -> None:
    a, b = tiny.matrix(NAME).double(), kobza.open(OTHER).matrix(NAME).double()
    c = merging.apply(tiny, others=[OTHER], method="slerp", t=t).matrix(NAME).double()
    angle = torch.acos((a * b).sum() / a.norm() / b.norm())
    wanted = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    assert torch.allclose(c, wanted, atol=1e-6)


def test_ties_keeps_the_largest_and_lets_the_sign_be_voted() -> None:
    zero = torch.zeros(4)
    a, b = torch.tensor([4.0, -3.0, 0.1, 2.0]), torch.tensor([-1.0, -5.0, 0.2, 3.0])
    found = merging._one([zero, a, b], "ties", [1.0, 1.0], 0.5, 0.5, torch.Generator())
    # each keeps two: (4, -3, 0, 0) and (0, -5, 0, 3); where one alone speaks, its own value counts
    assert torch.allclose(found, torch.tensor([4.0, -4.0, 0.0, 3.0]))


def test_dare_keeps_the_mean_of_what_it_thins() -> None:
    delta = torch.ones(100_000)
    thin = merging.dropped(delta, 0.25, torch.Generator().manual_seed(0))
    assert float((thin != 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(thin.mean()) == pytest.approx(1, abs=0.02)


def test_passthrough_puts_layers_of_both_on_top_of_each_other(tiny: Any, tmp_path: Any) -> None:
    tall = merging.apply(tiny, others=[OTHER], method="passthrough", slices=["0:0-2", "1:1-2"])
    assert tall.layers == 3
    assert torch.equal(tall.matrix("blocks.2.mlp.up"), kobza.open(OTHER).matrix("blocks.1.mlp.up"))
    assert torch.equal(tall.matrix("blocks.1.mlp.up"), tiny.matrix("blocks.1.mlp.up"))
    same = merging.apply(tiny, others=[OTHER], method="passthrough", slices=["0:0-2"])
    assert same.fingerprint == tiny.fingerprint
    tall.save(tmp_path / "tall")
    assert torch.equal(forward.logits(kobza.open(tmp_path / "tall"), IDS), forward.logits(tall, IDS))


def test_the_barrier_stands_on_the_line_between_the_ends(tiny: Any) -> None:
    table = merging.barrier(tiny, kobza.open(OTHER), text("topics[:600]"), points=3)
    assert [row["t"] for row in table.rows] == [0, 0.5, 1]
    back = merging.barrier(kobza.open(OTHER), tiny, text("topics[:600]"), points=2)
    assert table.rows[2]["bits_per_byte"] == pytest.approx(back.rows[0]["bits_per_byte"], rel=1e-6)
    assert "barrier" in table.note


def test_models_that_do_not_mean_the_same_are_refused(tiny: Any) -> None:
    with pytest.raises(WrongTensors, match="families"):
        merging.apply(tiny, others=["tiny:qwen2?layers=2"])
    with pytest.raises(WrongVocabulary, match="different tokens"):
        merging.apply(tiny, others=["tiny:llama?layers=2&vocabulary=290"])
    with pytest.raises(WrongTensors, match="tied"):
        merging.apply(tiny, others=["tiny:llama?layers=2&tied=false"])
    with pytest.raises(WrongTensors, match="blocks"):
        merging.apply(tiny, others=["tiny:llama?layers=3"])
    with pytest.raises(BadValue, match="3 were given"):
        merging.apply(tiny, others=[OTHER, THIRD], method="slerp")
    with pytest.raises(BadValue, match="2 weights for 3"):
        merging.apply(tiny, others=[OTHER, THIRD], weights=[1, 2])
    with pytest.raises(OutOfRange, match="sum to 0"):
        merging.apply(tiny, others=[OTHER], weights=[1, -1])
    with pytest.raises(OutOfRange, match="density=0"):
        merging.apply(tiny, others=[OTHER], method="ties", density=0.0)
    with pytest.raises(BadValue, match="MODEL:FIRST-END"):
        merging.apply(tiny, others=[OTHER], method="passthrough", slices=["0-2"])
