"""Trees of tokens, the nearest keys, watched attention: the C loops and their torch twin do the same."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.models.bare import BareStepper
from kobza.models.caching import PackedStepper
from kobza.models.stepping import Stepper, steps
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(0))
TREE = [5, 6, 7, 8, 9, 10]
PARENTS = [-1, 0, 0, 1, 2, 4]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 4, 5]]  # to each token


def runs(kind: str) -> Any:
    model = tiny("qwen3" if kind == "qwen3" else "llama", layers=3)
    if kind in ("loops", "qwen3"):
        return BareStepper(model)
    if kind == "plain":
        return BareStepper(model, is_native=False)
    return PackedStepper(model, keys="channel") if kind == "packed" else Stepper(model)


@pytest.mark.parametrize("kind", ["loops", "qwen3", "plain", "packed", "transformers"])
def test_every_branch_of_a_tree_reads_as_if_it_were_alone(kind: str) -> None:
    run = runs(kind)
    run.feed(IDS[:, :40])
    near = 0.05 if kind == "packed" else 1e-4
    alone = [run.fork().feed([[TREE[n] for n in path]]) for path in PATHS]
    twin = run.fork()
    logits, states = run.feed_tree(TREE, PARENTS)
    assert run.length == 46 and states.shape == (6, 32)
    assert torch.allclose(logits, torch.cat(alone), atol=near)
    run.prune(6, PATHS[-1])
    assert run.length == 44
    twin.feed([[5, 7, 9, 10]])
    assert torch.allclose(run.feed(IDS[:, :3], keep=3), twin.feed(IDS[:, :3], keep=3), atol=near)
    run.rollback(4)
    run.feed_tree([1, 2], [-1, -1])
    run.prune(2, [])
    assert run.length == 43


def test_a_long_tree_goes_the_same_way() -> None:
    """More tokens than the loops take are matrix products."""
    run, twin = runs("loops"), runs("plain")
    ids, parents = IDS[0, :40].tolist(), [-1, *(n // 2 for n in range(39))]
    for each in (run, twin):
        each.feed(IDS[:, :5])
    assert torch.allclose(run.feed_tree(ids, parents)[0], twin.feed_tree(ids, parents)[0], atol=1e-4)


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(OutOfRange, match="a parent each, earlier than its child"):
        runs("loops").feed_tree([1, 2], [-1, 1])
    with pytest.raises(OutOfRange, match="in 2 rows"):
        steps(tiny(), 2).feed_tree([1], [-1])
    run = runs("plain")
    run.feed_tree([1, 2, 3], [-1, 0, 1])
    with pytest.raises(OutOfRange, match="must rise from 0 to 2"):
        run.prune(3, [1, 1])
    with pytest.raises(BadValue, match="see a part of the text only"):
        Stepper(tiny("gemma2")).feed_tree([1], [-1])


def test_as_many_nearest_keys_as_there_are_change_nothing() -> None:
    model = tiny(layers=3)
    full = BareStepper(model)
    expected = [full.feed(IDS[:, n : n + 6], keep=6) for n in range(0, 60, 6)]
    for is_native in (True, False):
        run = BareStepper(model, nearest=60, is_native=is_native)
        for n, right in zip(range(0, 60, 6), expected, strict=True):
            assert torch.allclose(run.feed(IDS[:, n : n + 6], keep=6), right, atol=1e-5)


@pytest.mark.parametrize("nearest", [1, 5, 20])
def test_loops_and_twin_agree_on_the_nearest_keys(nearest: int) -> None:
    model = tiny(layers=3)
    run, twin = (BareStepper(model, nearest=nearest, is_native=is_native) for is_native in (True, False))
    full = BareStepper(model)
    for n in range(0, 60, 6):
        found, right = (each.feed(IDS[:, n : n + 6], keep=6) for each in (run, twin))
        assert torch.allclose(found, right, atol=1e-4)
        full.feed(IDS[:, n : n + 6])
    assert not torch.allclose(run.feed([[3]]), full.feed([[3]]), atol=1e-3)


def test_one_nearest_key_is_read_alone() -> None:
    """Authority: with one key the shares are 1 and the head reads that value, by hand."""
    from kobza.models.attention import mixed

    generator = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(1, n, t, 4, generator=generator) for n, t in ((4, 1), (2, 9), (2, 9)))
    found = mixed(q, keys, values, torch.ones(1, 9, dtype=torch.bool), scale=0.5, nearest=1)
    for head in range(4):
        best = int((keys[0, head // 2] @ q[0, head, 0]).argmax())
        assert torch.equal(found[0, head, 0], values[0, head // 2, best])


def test_watched_attention_adds_up_to_one_a_head_and_query() -> None:
    model = tiny(layers=3)
    both = []
    for is_native in (True, False):
        run = BareStepper(model, is_native=is_native)
        run.watch()
        run.feed(IDS[:, :7])
        run.feed(IDS[:, 7:9])
        assert run.weight is not None
        assert torch.allclose(run.weight[0].sum(-1), torch.full((3, 1, 2), 9 * 2.0))  # queries x heads of a group
        assert 0 < run.weight[1].sum() < 9 * 2 * 6 * 9
        both.append(run)
    assert torch.allclose(both[0].weight, both[1].weight, atol=1e-4)
    places = both[0].weight[0, ..., :9].topk(4, -1).indices.sort(-1).values
    for run in both:
        run.keep(places)
        assert (run.length, run.dropped) == (9, 5)
        assert torch.equal(run.weight[..., 4:], torch.zeros_like(run.weight[..., 4:]))
    assert torch.allclose(both[0].feed([[1, 2]], keep=2), both[1].feed([[1, 2]], keep=2), atol=1e-4)


def test_heads_may_keep_different_positions() -> None:
    """Keeping the same ones by head is keeping them for all; a packed cache does the same."""
    model = tiny(layers=2)
    one, other, packed = BareStepper(model), BareStepper(model), PackedStepper(model)
    for run in (one, other, packed):
        run.feed(IDS[:, :12])
    one.keep([0, 3, 7, 11])
    at = torch.tensor([0, 3, 7, 11]).expand(2, 1, 2, 4)
    other.keep(at)
    packed.keep(at)
    expected = one.feed(IDS[:, 12:15], keep=3)
    assert torch.equal(expected, other.feed(IDS[:, 12:15], keep=3))
    assert torch.allclose(expected, packed.feed(IDS[:, 12:15], keep=3), atol=0.05)
    with pytest.raises(OutOfRange, match="must rise"):
        other.keep(at.flip(-1))


def test_vectors_of_tokens_read_as_the_tokens() -> None:
    run, twin = BareStepper(tiny()), BareStepper(tiny())
    table = run.model.module.get_input_embeddings().weight
    for n in (3, 30):
        found, states = run.feed_vectors(table[IDS[:, :n]])
        right, expected = twin.feed_states(IDS[:, :n])
        assert torch.equal(found, right) and torch.equal(states, expected)
