"""Layer drop: what is left skips the blocks, and opens everywhere; the cheap table is the exact one."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import OutOfRange
from kobza.core.texts import text
from kobza.decoding import greedy
from kobza.edits import layer_drop, rounding
from kobza.edits._layers import Walk
from kobza.models import forward

IDS = torch.arange(40, 60)[None]
TEXTS = ("topics[320000:330000]",)
FAMILIES = ("llama", "qwen2", "gemma2", "gpt2", "smollm3", "phi3", "opt")


def skipped(model: Any, layers: list[int]) -> torch.Tensor:
    """Logits of the unchanged model with blocks bypassed by hooks."""
    blocks = model.module.get_submodule(model.family.blocks)
    hooks = []
    for layer in layers:

        def bypass(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
            entered = args[0] if args else kwargs["hidden_states"]
            return (entered, *out[1:]) if isinstance(out, tuple) else entered

        hooks.append(blocks[layer].register_forward_hook(bypass, with_kwargs=True))
    try:
        return forward.logits(model, IDS)
    finally:
        for hook in hooks:
            hook.remove()


def test_no_layer_dropped_changes_nothing(tiny: Any) -> None:
    edited = layer_drop.apply(tiny, drops=0)
    assert edited.fingerprint == tiny.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_skips_the_blocks_and_opens_again(family: str, tmp_path: Any) -> None:
    model = kobza.open(f"tiny:{family}?layers=4&seed=0")
    edited = layer_drop.apply(model, layers=[1, 2])
    assert edited.layers == 2
    assert torch.allclose(forward.logits(edited, IDS), skipped(model, [1, 2]), atol=1e-5)
    assert edited.changes[-1].facts["stored_bytes"] == edited.stored_bytes < model.stored_bytes
    saved = edited.save(tmp_path / "short")
    assert saved.stored_bytes == edited.stored_bytes
    again = kobza.open(tmp_path / "short")
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))
    cached = greedy.generate(edited, "the banks", tokens=6).ids  # keys and values are kept by number of layer
    ids = edited.tokenizer.encode(b"the banks")
    ids = [edited.tokenizer.start_id, *ids] if len(ids) < 9 and ids[0] != edited.tokenizer.start_id else ids
    for token in cached:
        assert int(forward.logits(edited, torch.tensor([ids]))[0, -1].argmax()) == token
        ids = [*ids, token]


def test_codes_stay_codes(tiny: Any) -> None:
    edited = layer_drop.apply(rounding.apply(tiny, format="q4_0"), layers=[0])
    assert edited.matrices["blocks.0.mlp.up"].stored_as == "codes"
    other = rounding.apply(layer_drop.apply(tiny, layers=[0]), format="q4_0")
    assert torch.equal(forward.logits(edited, IDS), forward.logits(other, IDS))
    assert edited.stored_bytes == other.stored_bytes


def test_the_table_from_remembered_inputs_equals_dropping_each_layer() -> None:
    model = kobza.open("tiny:llama?layers=4&seed=0")
    texts = [text(TEXTS[0])]
    rows = layer_drop.table(model, texts, tokens=128).rows
    for row in rows:
        short = layer_drop.apply(model, layers=[row["layer"]])
        walk = Walk(short, texts, 128)
        hidden = walk.hidden
        for layer in range(short.layers):
            hidden = [walk.out(short, layer, h) for h in hidden]
        assert row["bits_per_token"] == pytest.approx(walk.bits(short, hidden), rel=1e-6)


def test_the_walk_gives_the_bits_of_the_model(tiny: Any) -> None:
    walk = Walk(tiny, [text(TEXTS[0])], 128)
    hidden = walk.hidden
    for layer in range(tiny.layers):
        hidden = [walk.out(tiny, layer, h) for h in hidden]
    ids = walk.fed[0]
    logits = forward.logits(tiny, ids)[0, :-1].double()
    wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:]) / torch.log(torch.tensor(2.0))
    assert walk.bits(tiny, hidden) == pytest.approx(float(wanted), rel=1e-5)


def test_a_block_that_does_nothing_costs_nothing() -> None:
    model = kobza.open("tiny:llama?layers=4&seed=0")
    nothing = {f"blocks.2.{part}": model.matrix(f"blocks.2.{part}") * 0 for part in ("attn.o", "mlp.down")}
    idle = model.replace(nothing, change=kobza.models.model.Change("test"))
    edited = layer_drop.apply(idle, drops=1, calibration=TEXTS, calibration_tokens=128)
    assert edited.changes[-1].facts["removed"] == [2]
    assert torch.allclose(forward.logits(edited, IDS), forward.logits(idle, IDS), atol=1e-5)
    assert edited.changes[-1].facts["calibration"]["texts"][0]["name"] == TEXTS[0]
    row = layer_drop.table(idle, [text(TEXTS[0])], tokens=128).rows[2]
    assert row["loss"] == pytest.approx(0, abs=1e-6)
    assert row["influence"] == pytest.approx(0, abs=1e-6)


def test_greedy_looks_again_after_each_drop() -> None:
    model = kobza.open("tiny:llama?layers=4&seed=0")
    edited = layer_drop.apply(model, drops=2, by="greedy", calibration=TEXTS, calibration_tokens=128)
    first = layer_drop.apply(model, drops=1, by="loss", calibration=TEXTS, calibration_tokens=128)
    assert set(first.changes[-1].facts["removed"]) <= set(edited.changes[-1].facts["removed"])
    assert edited.layers == 2


def test_layers_that_are_not_there_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match=r"0 \.\. 1"):
        layer_drop.apply(tiny, layers=[2])
    with pytest.raises(OutOfRange, match="at least one"):
        layer_drop.apply(tiny, layers=[0, 1])


def test_the_table_costs_half_the_blocks() -> None:
    model = kobza.open("tiny:llama?layers=6&seed=0")
    walk = Walk(model, [text(TEXTS[0])], 128)
    layer_drop.losses(model, walk, range(6))
    assert walk.runs == 6 * 7 / 2  # of 6 * 5 for six models of five layers; 465 of 870 for thirty layers
    assert "21 blocks run for the losses, 30 otherwise" in layer_drop.table(model, [text(TEXTS[0])], tokens=128).note


def test_the_entropy_of_normal_entries_is_the_closed_form() -> None:
    h = 3 * torch.randn(1, 1000, 100, generator=torch.Generator().manual_seed(0))
    wanted = 0.5 * torch.log2(torch.tensor(2 * torch.pi * torch.e * 9 / 0.25**2))
    assert layer_drop._entropy([h], 0.25) == pytest.approx(float(wanted), abs=0.01)


def test_by_entropy_the_block_that_adds_nothing_goes_first_but_none_before_the_lowest() -> None:
    model = kobza.open("tiny:llama?layers=4&seed=0")
    nothing = {f"blocks.2.{part}": model.matrix(f"blocks.2.{part}") * 0 for part in ("attn.o", "mlp.down")}
    idle = model.replace(nothing, change=kobza.models.model.Change("test"))
    edited = layer_drop.apply(idle, by="entropy", calibration=TEXTS, calibration_tokens=128)
    assert edited.changes[-1].facts["removed"] == [2]
    assert edited.changes[-1].facts["worth"][2] == pytest.approx(0, abs=1e-9)
