"""Slicing: a rotation changes nothing, a cut is a plain smaller model, the random basis is worse, the refit better."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.core.texts import text
from kobza.edits import slicing
from kobza.models import forward

IDS = torch.arange(40, 60)[None]
TEXTS = ("topics[320000:330000]",)
FAST: dict[str, Any] = {"calibration": TEXTS, "calibration_tokens": 512}


def distance(model: Any, edited: Any) -> float:
    return float((forward.logits(edited, IDS) - forward.logits(model, IDS)).norm() / forward.logits(model, IDS).norm())


@pytest.mark.parametrize("family", slicing.FAMILIES)
@pytest.mark.parametrize("random", [0, 1])
def test_a_rotation_without_a_cut_changes_nothing(family: str, random: int) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    edited = slicing.apply(model, share=1.0, random=random, **FAST)
    assert distance(model, edited) < 2e-5
    assert edited.width == model.width
    assert not edited.is_tied


def test_a_stream_of_low_rank_is_cut_without_loss() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    P = torch.linalg.qr(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))[0]
    flat = {"embed": model.matrix("embed") @ P @ P.T}
    for name in model.find("blocks.*.attn.o,blocks.*.mlp.down"):
        flat[name] = P @ P.T @ model.matrix(name)
    model = model.replace(flat, change=kobza.models.model.Change("test"))
    edited = slicing.apply(model, share=0.5, refit=False, **FAST)
    assert edited.width == 16
    assert edited.changes[-1].facts["energy_kept"] == pytest.approx(1)
    assert distance(model, edited) < 1e-4


def test_on_held_out_text_the_refit_comes_closer_and_the_random_basis_stays_behind() -> None:
    model = kobza.open("tiny:llama?layers=2&seed=0")
    ids = torch.tensor([model.tokenizer.encode(text("topics[330000:331000]").data)[:300]])

    def lost(**options: Any) -> float:
        edited = slicing.apply(model, share=0.75, calibration=TEXTS, calibration_tokens=4096, **options)
        return float((forward.logits(edited, ids) - forward.logits(model, ids)).norm())

    plain = lost(refit=False)
    assert lost() < 0.9 * plain < 0.9 * lost(refit=False, random=1)


@pytest.mark.parametrize("family", slicing.FAMILIES)
def test_it_is_a_plain_smaller_model_that_opens_everywhere(family: str, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = kobza.open(f"tiny:{family}?layers=2&seed=0&tied=false")
    before = model.fingerprint
    edited = slicing.apply(model, share=0.75, **FAST)
    assert model.fingerprint == before
    assert edited.width == 24
    facts = edited.changes[-1].facts
    assert facts["stored_bytes"] == edited.stored_bytes < facts["stored_bytes_before"] == model.stored_bytes
    edited.save(tmp_path / "narrow")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, forward.logits(edited, IDS), atol=1e-5)


def test_the_least_squares_answer_is_the_closed_form() -> None:
    draw = torch.Generator().manual_seed(0)
    X, Y = torch.randn(200, 8, generator=draw).double(), torch.randn(200, 3, generator=draw).double()
    W = slicing.solved(torch.zeros(3, 8), Y.T @ X / 200, X.T @ X / 200, 1e-12)
    assert torch.allclose(W.double(), torch.linalg.lstsq(X, Y).solution.T, atol=1e-5)
    start = torch.randn(3, 8, generator=draw)
    held = slicing.solved(start, Y.T @ X / 200, X.T @ X / 200, 1e9)
    assert torch.allclose(held, start, atol=1e-4)


def test_widths_and_families_that_do_not_fit_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="leaves 0"):
        slicing.apply(tiny, share=0.01)
    with pytest.raises(OutOfRange, match=r"share=1\.5"):
        slicing.apply(tiny, share=1.5)
    with pytest.raises(BadValue, match="gpt2"):
        slicing.apply(kobza.open("tiny:gpt2?layers=1"))
