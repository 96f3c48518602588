"""Sharing: a group of one changes nothing, shared blocks are stored once and come back shared, dense for everybody."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import OutOfRange
from kobza.edits import rounding, sharing
from kobza.models import forward

IDS = torch.arange(40, 60)[None]


def test_a_group_of_one_changes_nothing(tiny: Any) -> None:
    assert sharing.apply(tiny, group=1).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("keep", ["first", "last", "mean"])
def test_every_place_computes_with_the_weights_said(keep: Any) -> None:
    model = kobza.open("tiny:llama?layers=4&seed=0")
    edited = sharing.apply(model, layers=[1], group=2, keep=keep)
    for name in [name for name in model.matrices if name.startswith("blocks.1.")]:
        pair = [model.matrix(name), model.matrix(name.replace("blocks.1", "blocks.2"))]
        wanted = {"first": pair[0], "last": pair[1], "mean": (pair[0] + pair[1]) / 2}[keep]
        for place in (1, 2):
            assert torch.allclose(edited.matrix(name.replace("blocks.1", f"blocks.{place}")), wanted, atol=1e-7)
    assert torch.equal(edited.matrix("blocks.3.attn.q"), model.matrix("blocks.3.attn.q"))
    by_hand = model.replace(
        {name: edited.matrix(name) for name in model.matrices if name.startswith(("blocks.1.", "blocks.2."))},
        change=kobza.models.model.Change("test"),
    )
    assert torch.equal(forward.logits(edited, IDS), forward.logits(by_hand, IDS))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_shared_blocks_are_stored_once_and_open_again_shared(family: str, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = kobza.open(f"tiny:{family}?layers=4&seed=0")
    edited = sharing.apply(model, group=2)
    block = sum(matrix.bytes for name, matrix in model.matrices.items() if name.startswith("blocks.1."))
    assert edited.stored_bytes == model.stored_bytes - 2 * block
    saved = edited.save(tmp_path / "shared")
    assert not saved.opens_in_transformers
    on_disk = (tmp_path / "shared" / "factored.safetensors").stat().st_size
    assert edited.stored_bytes <= on_disk < edited.stored_bytes + 20_000
    again = kobza.open(tmp_path / "shared")
    assert again.stored_bytes == edited.stored_bytes
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))
    edited.save(tmp_path / "plain", dense=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, forward.logits(edited, IDS), atol=1e-5)


def test_codes_are_shared_too(tmp_path: Any) -> None:
    model = rounding.apply(kobza.open("tiny:llama?layers=2&seed=0"), bits=4, block=16)
    edited = sharing.apply(model, group=2)
    edited.save(tmp_path / "codes")
    again = kobza.open(tmp_path / "codes")
    assert again.stored_bytes == edited.stored_bytes < model.stored_bytes
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))


def test_groups_that_do_not_fit_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="group=9"):
        sharing.apply(tiny, group=9)
    with pytest.raises(OutOfRange, match="overlap or reach beyond the layers 0 .. 1"):
        sharing.apply(tiny, layers=[1], group=2)
