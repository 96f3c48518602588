"""A cache in fewer bits: bytes by formula, errors by half a step; a cache that drops: what stays is what is seen."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import bounded, greedy
from kobza.decoding.base import Note
from kobza.models.bare import BareStepper
from kobza.models.caching import GROUP, Packed, PackedStepper, cache_bytes
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 90), generator=torch.Generator().manual_seed(0))
every_packing = pytest.mark.parametrize(("bits", "keys"), [(8, "token"), (4, "token"), (8, "channel"), (4, "channel")])


@every_packing
def test_a_number_is_off_by_half_a_step_at_most(bits: int, keys: Any) -> None:
    values = torch.randn(2, 3, 70, 16, generator=torch.Generator().manual_seed(1))
    side = Packed(bits, keys, values[:, :, :0])
    for begin, end in ((0, 40), (40, 41), (41, 70)):
        side.add(values[:, :, begin:end])
    step = 8.0 / (2**bits - 1)  # the range of these numbers is below 8
    assert float((side.read() - values).abs().max()) < step / 2 + 0.005
    assert torch.equal(side.read()[:, :, 64:], values[:, :, 64:]) == (keys == "channel")
    before = side.read()
    side.cut(50)
    assert torch.equal(side.read(), before[:, :, :50])


@every_packing
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_bytes_stored_are_those_of_the_formula(bits: int, keys: Any, kv_heads: int) -> None:
    model = tiny(layers=3, kv_heads=kv_heads)
    run = PackedStepper(model, 2, bits=bits, keys=keys)
    run.feed(IDS.expand(2, -1))
    run.feed(IDS[:, :5].expand(2, -1))
    assert run.nbytes == cache_bytes(model, 95, bits=bits, keys=keys, batch=2)
    rows, E = 3 * 2 * kv_heads, 8
    if keys == "token":
        assert run.nbytes == 2 * rows * 95 * (E * bits // 8 + 4)
    else:
        groups = 95 // GROUP
        assert run.nbytes == rows * (95 * (E * bits // 8 + 4) + groups * E * (4 * bits + 4) + 31 * E * 4)


@pytest.mark.parametrize(("bits", "near"), [(8, 0.06), (4, 1.0)])
@pytest.mark.parametrize("keys", ["token", "channel"])
def test_logits_stay_within_a_share_of_their_deviation(bits: int, near: float, keys: Any) -> None:
    model = tiny(layers=3)
    full, run = BareStepper(model), PackedStepper(model, bits=bits, keys=keys)
    worst = 0.0
    for begin in range(0, 80, 4):
        piece = IDS[:, begin : begin + 4]
        expected = full.feed(piece, keep=4)
        worst = max(worst, float((run.feed(piece, keep=4) - expected).abs().max() / expected.std()))
    assert 0 < worst < near


@pytest.mark.real
@pytest.mark.parametrize(("keys", "most"), [("token", 0.05), ("channel", 0.01)])
def test_eight_bits_cost_at_most_so_many_bits_per_token(smollm2: Any, keys: Any, most: float) -> None:
    import kobza

    ids = smollm2.tokenizer.encode(kobza.text("topics[40000:40300]").string)[:48]
    costs = []
    for run in (BareStepper(smollm2), PackedStepper(smollm2, keys=keys)):
        rows = torch.cat([run.feed([[smollm2.tokenizer.start_id]]), *(run.feed([[id]]) for id in ids[:-1])])
        costs.append(float(-rows.double().log_softmax(-1)[range(len(ids)), ids].mean()) / 0.6931)
    assert abs(costs[1] - costs[0]) < most


@pytest.mark.parametrize("keys", ["token", "channel"])
def test_a_packed_run_rolls_back_forks_and_selects(keys: Any) -> None:
    model = tiny()
    run = PackedStepper(model, keys=keys)
    run.feed(IDS[:, :40])
    twin = run.fork()
    twin.feed(IDS[:, 60:70])
    twin.rollback(10)
    expected = run.fork().feed(IDS[:, 40:41])
    assert torch.allclose(twin.feed(IDS[:, 40:41]), expected, atol=0.03)
    run.select([0, 0])
    assert torch.allclose(run.feed(IDS[:, 40:41].expand(2, -1)), expected.expand(2, -1), atol=1e-5)
    assert run.length == twin.length == 41


def test_a_packed_run_drops_what_the_full_one_drops() -> None:
    model = tiny()
    full, run = BareStepper(model), PackedStepper(model)
    kept = [0, 1, *range(30, 40)]
    for one in (full, run):
        one.feed(IDS[:, :40])
        one.keep(kept)
    assert torch.allclose(run.feed(IDS[:, 40:43]), full.feed(IDS[:, 40:43]), atol=0.03)
    assert run.nbytes == cache_bytes(model, 15, bits=8)


def test_a_full_cache_of_floats_speaks_like_greedy() -> None:
    model = tiny()
    expected = greedy.generate(model, "The bandura", tokens=20).ids
    assert bounded.generate(model, "The bandura", tokens=20, store="float32").ids == expected
    for drop in ("recent", "sinks", "random", "heavy", "pivotal"):
        assert bounded.generate(model, "The bandura", tokens=20, store="float32", drop=drop).ids == expected


@pytest.mark.parametrize("drop", ["recent", "sinks", "random", "heavy", "pivotal"])
def test_the_budget_is_kept_and_told(drop: Any) -> None:
    model = tiny()
    said = bounded.generate(model, "The bandura is an old instrument of wood", tokens=20, drop=drop, budget=8)
    note = said.events[-1]
    full = cache_bytes(model, len(said.prompt_ids) + len(said.ids) - 1)
    assert isinstance(note, Note)
    assert note.said == f"{cache_bytes(model, 8, bits=8)} bytes for 8 positions, {full} for all in float32"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadValue, match="per channel cannot drop"):
        bounded.generate(tiny(), "a", keys="channel", drop="recent")
    with pytest.raises(BadValue, match="family 'gpt2'"):
        bounded.generate(tiny("gpt2"), "a")
    with pytest.raises(OutOfRange, match="sinks is 9; allowed is 0 .. 7"):
        bounded.generate(tiny(), "a", drop="sinks", sinks=9, budget=8)
    with pytest.raises(BadValue, match="a cache of 5 bits"):
        PackedStepper(tiny(), bits=5)
