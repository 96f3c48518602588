"""Healing: the divergence falls on text it did not read, and what must stay as it was stays so."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, EmptyText, OutOfRange, WrongVocabulary
from kobza.edits import healing, layer_drop, lowrank, noise, pruning, rounding

FAST: dict[str, Any] = {"calibration": ("topics[320000:330000]",), "steps": 40, "window": 32}

NUMBERS: list[Any] = ["float32", "bfloat16"]


@pytest.mark.parametrize("what", ["lowrank", "norms", "all"])
def test_the_divergence_on_held_out_windows_falls(tiny: Any, what: Any) -> None:
    edited = noise.apply(tiny, where="blocks", strength=0.3)
    before = tiny.fingerprint, edited.fingerprint
    healed = healing.apply(edited, what=what, rate=1e-3, **FAST)
    facts = healed.changes[-1].facts
    least = {"lowrank": 0.85, "norms": 0.98, "all": 0.8}[what]
    assert facts["divergence"] < least * facts["divergence_before"]
    assert facts["tokens"] == 40 * 32
    assert healed.stored_bytes == edited.stored_bytes == facts["stored_bytes"]
    assert (tiny.fingerprint, edited.fingerprint) == before


def test_the_recorded_divergence_is_that_of_the_result(tiny: Any) -> None:
    edited = noise.apply(tiny, where="blocks", strength=0.3)
    healed = healing.apply(edited, **FAST)
    ids = healing.Windows.of(tiny, healing.base.calibration_texts(FAST["calibration"]), 32, 0).held[0]
    p, q = (m.module(input_ids=ids).logits[0].double().log_softmax(-1) for m in (tiny, healed))
    bits = float((p.exp() * (p - q)).sum(-1).mean()) / torch.log(torch.tensor(2.0)).item()
    assert healed.changes[-1].facts["divergence"] == pytest.approx(bits, rel=1e-4)


def test_narrow_products_heal_as_well_and_leave_wide_weights(tiny: Any) -> None:
    edited = noise.apply(tiny, where="blocks", strength=0.3)
    facts = [healing.apply(edited, what="all", rate=1e-3, number=n, **FAST).changes[-1].facts for n in NUMBERS]
    assert facts[1]["divergence"] == pytest.approx(facts[0]["divergence"], rel=0.1)
    healed = healing.apply(edited, what="all", number="bfloat16", **FAST)
    assert healed.matrix("blocks.0.attn.q").dtype == torch.float32
    assert not torch.equal(healed.matrix("blocks.0.attn.q"), healed.matrix("blocks.0.attn.q").bfloat16().float())


def test_every_window_is_read_once_before_any_comes_again(tiny: Any) -> None:
    texts = healing.base.calibration_texts(("topics[320000:321000]", "source[:2000]"))
    windows = healing.Windows.of(tiny, texts, 32, seed=1)
    counts = [len(own) for own in windows.texts]
    batch = windows.batch(3, 4)
    assert batch.shape == (4, 32) and torch.equal(batch, windows.batch(3, 4))
    first = [tuple(windows._window(2 * i)[0].tolist()) for i in range(counts[0])]
    assert sorted(first) == sorted(tuple(own[0].tolist()) for own in windows.texts[0])
    held = {tuple(ids[0].tolist()) for ids in windows.held}
    assert not held & set(first)


def test_an_unedited_model_hardly_moves(tiny: Any) -> None:
    facts = healing.apply(tiny, **FAST).changes[-1].facts
    assert facts["divergence_before"] == pytest.approx(0, abs=1e-6)
    assert facts["divergence"] < 1e-3


@pytest.mark.parametrize("what", ["lowrank", "all"])
def test_pruned_zeros_stay_unless_freed(tiny: Any, what: Any) -> None:
    edited = pruning.apply(tiny, where="blocks.*.mlp")
    gone = edited.matrix("blocks.0.mlp.up") == 0
    assert torch.equal(healing.apply(edited, what=what, **FAST).matrix("blocks.0.mlp.up") == 0, gone)
    freed = healing.apply(edited, what=what, zeros="free", **FAST).matrix("blocks.0.mlp.up")
    assert int((freed == 0).sum()) < 0.1 * int(gone.sum())


def test_codes_stay_and_the_rest_heals_around_them(tiny: Any) -> None:
    edited = rounding.apply(tiny, where="blocks.*.mlp", bits=2)
    healed = healing.apply(edited, **FAST)
    for name in ("blocks.0.mlp.up", "blocks.1.mlp.down"):
        assert torch.equal(healed.matrix(name), edited.matrix(name))
    assert not torch.equal(healed.matrix("blocks.0.attn.q"), edited.matrix("blocks.0.attn.q"))
    assert healed.stored_bytes == edited.stored_bytes
    assert healed.changes[-1].facts["divergence"] < healed.changes[-1].facts["divergence_before"]


def test_norms_move_norms_only(tiny: Any) -> None:
    healed = healing.apply(noise.apply(tiny, where="blocks", strength=0.3), what="norms", **FAST)
    edited = noise.apply(tiny, where="blocks", strength=0.3)
    moved = {name for name in edited.matrices if not torch.equal(healed.matrix(name), edited.matrix(name))}
    assert moved
    assert all(edited.matrix(name).ndim == 1 for name in moved)


def test_factors_are_trained_as_factors_and_ties_stay(tiny: Any) -> None:
    edited = lowrank.apply(tiny, where="embed,blocks.0.mlp.up", rank=8, store="factors")
    healed = healing.apply(edited, what="all", **FAST)
    assert healed.is_tied == tiny.is_tied
    assert healed.matrices["blocks.0.mlp.up"].stored_as == edited.matrices["blocks.0.mlp.up"].stored_as
    assert torch.linalg.matrix_rank(healed.matrix("blocks.0.mlp.up")) <= 8
    assert healed.changes[-1].facts["divergence"] < healed.changes[-1].facts["divergence_before"]


def test_a_model_of_fewer_layers_is_healed_and_saved(tiny: Any, tmp_path: Any) -> None:
    import kobza

    healed = healing.apply(layer_drop.apply(tiny, layers=[1]), **FAST)
    healed.save(tmp_path / "healed")
    again = kobza.open(tmp_path / "healed")
    assert again.fingerprint == healed.fingerprint
    assert again.changes[-1].technique == "healing"


def test_what_does_not_fit_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="window=1"):
        healing.apply(tiny, window=1)
    with pytest.raises(EmptyText, match="two windows"):
        healing.apply(tiny, calibration=("topics[320000:320020]",), window=64)
    with pytest.raises(BadValue, match="cannot be opened"):
        healing.apply(tiny, original="nosuchmodel", **FAST)
    with pytest.raises(WrongVocabulary, match="other tokens"):
        healing.apply(tiny, original="tiny:llama?vocabulary=280", **FAST)


def test_the_divergence_and_its_gradient_are_those_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randn(150, 40, generator=draw)
    pair = [torch.randn(150, 40, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    ours = healing._Divergence.apply(pair[0], wanted)
    theirs = torch.nn.functional.kl_div(
        pair[1].log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    for value in (ours, theirs):
        (3 * value).backward()
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert torch.allclose(pair[0].grad, pair[1].grad, atol=1e-7)  # type: ignore[arg-type]
