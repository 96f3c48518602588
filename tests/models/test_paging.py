"""A cache in pages speaks as one in one piece, and its bytes are those of the pages in use, to the last."""

import gc
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import beam, best_of, greedy, tree
from kobza.models.bare import BareStepper
from kobza.models.paging import PagedStepper, paged_bytes
from kobza.models.stepping import using
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 90), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("page", [1, 5, 16, 100])
def test_logits_are_those_of_a_cache_in_one_piece(page: int, is_native: bool) -> None:
    model = tiny(layers=3)
    full, run = BareStepper(model, is_native=is_native), PagedStepper(model, page=page, is_native=is_native)
    for begin, end in ((0, 40), (40, 41), (41, 57), (57, 64)):
        expected, found = (each.feed(IDS[:, begin:end], keep=end - begin) for each in (full, run))
        assert torch.allclose(found, expected, atol=1e-5)
    for each in (full, run):
        each.rollback(11)
        each.feed_tree([1, 2, 3, 4], [-1, 0, 0, 2])
        each.prune(4, [0, 2, 3])
        each.select([0, 0, 0])
    expected, found = (each.feed([[7], [8], [9]]) for each in (full, run))
    assert torch.allclose(found, expected, atol=1e-5)
    assert run.nbytes == run.pool.nbytes == paged_bytes(model, 57, page=page, rows=3, shared=56)


def test_bytes_are_those_of_the_pages_in_use_whatever_is_forked_and_forgotten() -> None:
    model = tiny(layers=3, kv_heads=2)
    run = PagedStepper(model, page=8)
    page = 2 * 3 * 2 * 8 * 8 * 4  # 2 L K P E 4
    assert (run.pool.page_bytes, run.pool.nbytes) == (page, 0)
    run.feed(IDS[:, :20])
    assert run.pool.used == 3 and run.nbytes == paged_bytes(model, 20, page=8)
    twins = [run.fork() for _ in range(5)]
    assert run.pool.used == 3 and run.pool.counts[:3] == [6, 6, 6]
    for n, twin in enumerate(twins):
        twin.feed([[n]])
        assert run.pool.used == 3 + n + 1  # the cut page is copied, the whole ones are shared
    assert run.pool.nbytes == paged_bytes(model, 21, page=8, rows=6, shared=16)
    run.feed([[9]])
    assert run.pool.used == 8, "the last to write needs no copy"
    twins[0].rollback(13)  # 8 left
    assert run.pool.used == 7
    del twins, twin
    gc.collect()
    assert run.pool.used == 3
    run.rollback(21)
    assert run.pool.nbytes == 0


def test_forks_do_not_hear_of_each_other() -> None:
    model = tiny(layers=2)
    run, alone = PagedStepper(model, page=8), BareStepper(model)
    run.feed(IDS[:, :12])
    one, other = run.fork(), run.fork()
    one.feed([[1, 2, 3]])
    other.feed([[4, 5, 6]])
    alone.feed(IDS[:, :12])
    alone.feed([[4, 5, 6]])
    assert torch.allclose(other.feed([[7]]), alone.feed([[7]]), atol=1e-5)


@pytest.mark.parametrize("technique", [greedy, beam, best_of, tree])
def test_strategies_say_the_same_in_pages(technique: Any) -> None:
    model = tiny(layers=2)
    said = []
    for backend in ("bare", "paged"):
        with using(backend):
            said.append(technique.generate(model, "one two one two", tokens=20).ids)
    assert said[0] == said[1]


def test_what_a_paged_cache_cannot_do_is_refused() -> None:
    with pytest.raises(OutOfRange, match="page is 0"):
        PagedStepper(tiny(), page=0)
    run = PagedStepper(tiny())
    run.feed(IDS)
    with pytest.raises(BadValue, match="drops no single positions"):
        run.keep([0])
