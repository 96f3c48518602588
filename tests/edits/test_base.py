"""Choosing, seeding, calibration and the facts of a Change."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NotComparable, NothingMatched, OutOfRange
from kobza.core.texts import Text
from kobza.edits import base
from kobza.models import forward
from kobza.models.model import Factors
from kobza.models.tiny import tiny as make_tiny

LETTERS = "the player plucks the long strings over the neck and sings to what he plays, from fair to fair. " * 12
OTHER = "a dead worker fails only its point; the same command again ends in the identical table, row by row. " * 12


def calibrated(name: str, text: bytes | Text) -> list[base.Change]:
    facts = base.calibration_facts([text if isinstance(text, Text) else Text(name, text)], 8)
    return [base.Change("lowrank", facts={"calibration": facts})]


def test_both_ends_of_a_tied_table_are_one_matrix(tiny: Any) -> None:
    assert base.select(tiny, "embed") == ["embed"]
    assert base.select(tiny, "embed.in") == ["embed.in"]
    assert base.select(make_tiny(tied=False), "embed") == ["embed.in", "embed.out"]


def test_a_pattern_that_matches_only_vectors_is_refused_and_named(tiny: Any) -> None:
    with pytest.raises(NothingMatched, match="no matrix; 'blocks.0.norm1' is a vector"):
        base.select(tiny, "blocks.*.norm1")


def test_a_pattern_that_matches_nothing_lists_the_nearest(tiny: Any) -> None:
    with pytest.raises(NothingMatched, match="'blocks.\\*.mlp'"):
        base.select(tiny, "blocks.*.mpl")


def test_a_rank_that_does_not_fit_is_refused_with_matrix_and_shape() -> None:
    with pytest.raises(OutOfRange, match="rank=40 does not fit 'embed' of shape 300 x 32; allowed: 1 .. 32"):
        base.require_rank("embed", (300, 32), 40, 32)


def test_numbers_depend_on_seed_and_name_and_on_nothing_else() -> None:
    def draw(seed: int, name: str) -> torch.Tensor:
        return torch.randn(4, generator=base.generator(seed, name))

    assert torch.equal(draw(1, "blocks.0.mlp.up"), draw(1, "blocks.0.mlp.up"))
    assert not torch.equal(draw(1, "blocks.0.mlp.up"), draw(2, "blocks.0.mlp.up"))
    assert not torch.equal(draw(1, "blocks.0.mlp.up"), draw(1, "blocks.1.mlp.up"))
    assert torch.equal(draw(1, "embed"), draw(1, "embed.in")), "one end or both must be comparable"


def test_facts_of_a_change_equal_numpy(tiny: Any) -> None:
    W = tiny.matrix("blocks.0.mlp.up")
    new = W * torch.linspace(0, 1, W.shape[1])
    edited = base.edited(tiny, "test", {}, {"blocks.0.mlp.up": new})
    before, after = W.double().numpy(), new.double().numpy()
    facts = edited.changes[-1].facts
    assert facts["relative_error"] == pytest.approx(((after - before) ** 2).sum() ** 0.5 / (before**2).sum() ** 0.5)
    assert facts["energy_kept"] == pytest.approx((after**2).sum() / (before**2).sum())
    assert facts["stored_bytes"] == facts["stored_bytes_before"] == edited.stored_bytes


def test_errors_of_several_matrices_add_in_squares(tiny: Any) -> None:
    new = {name: tiny.matrix(name) * 0.5 for name in ("blocks.0.mlp.up", "blocks.1.attn.q")}
    assert base.edited(tiny, "test", {}, new).changes[-1].facts["relative_error"] == pytest.approx(0.5)


def test_stored_bytes_are_those_of_the_fork(tiny: Any) -> None:
    W = tiny.matrix("embed")
    factors = Factors(W[:, :4].contiguous(), torch.eye(32)[:4])
    edited = base.edited(tiny, "test", {}, {"embed": factors})
    assert edited.changes[-1].kind == "factor"
    assert edited.changes[-1].facts["stored_bytes"] == edited.stored_bytes
    assert tiny.stored_bytes - edited.stored_bytes == 4 * (300 * 32 - 300 * 4 - 4 * 32)


def test_one_end_of_a_tied_model_costs_a_second_table(tiny: Any) -> None:
    facts = base.edited(tiny, "test", {}, {"embed.in": tiny.matrix("embed.in") * 2}).changes[-1].facts
    assert facts["stored_bytes"] - facts["stored_bytes_before"] == 300 * 32 * 4


def test_a_part_of_a_fused_matrix_is_edited_densely_or_refused() -> None:
    model = make_tiny("gpt2")
    q = model.matrix("blocks.0.attn.q")
    edited = base.edited(model, "test", {}, {"blocks.0.attn.q": q * 2})
    assert torch.equal(edited.matrix("blocks.0.attn.q"), q * 2)
    assert torch.equal(edited.matrix("blocks.0.attn.k"), model.matrix("blocks.0.attn.k"))
    with pytest.raises(BadValue, match="'blocks.0.attn.q' is a part of 'blocks.0.attn.qkv' and cannot be stored"):
        base.edited(model, "test", {}, {"blocks.0.attn.q": Factors(q[:, :4], torch.eye(32)[:4])})


def test_memory_makes_each_result_once_and_forgets_the_oldest() -> None:
    memory, made = base.Memory(2), []
    for key in ("a", "b", "a", "c", "b"):
        memory.get(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]


def test_equal_numbers_have_one_identity_in_every_fork(tiny: Any) -> None:
    fork = tiny.fork()
    changed = base.edited(tiny, "test", {}, {"embed": tiny.matrix("embed") * 2})
    assert base.identity(tiny, "embed") == base.identity(fork, "embed")
    assert base.identity(tiny, "embed") != base.identity(changed, "embed")


def test_counts_and_moments_equal_their_definition(tiny: Any) -> None:
    text = Text("letters", LETTERS.encode())
    found = base.moments(tiny, [text], 64)
    ids = torch.tensor(tiny.tokenizer.encode(text.data))
    counted = torch.bincount(ids, minlength=300).double()
    assert torch.allclose(base.shares(tiny, [text], 300), counted / len(ids))
    gradients = base.clipped(forward.embedding_gradients(tiny, ids[:64], window=512).double())
    assert torch.allclose(found.gradients, gradients.T @ gradients / 64)
    logits = forward.logits(tiny, forward.fed_ids(ids[:64], tiny.tokenizer.start_id)[None])[0].double()
    p = logits.softmax(-1)
    assert torch.allclose(found.rows, (p * (1 - p)).mean(0), atol=1e-8)


def test_moments_read_from_the_cache_folder_are_the_same(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text("letters", LETTERS.encode())
    first = base.moments(tiny, [text], 32)
    base._moments._kept.clear()
    monkeypatch.setattr(base, "_measured", lambda *_: pytest.fail("the cache was not read"))
    again = base.moments(tiny, [text], 32)
    for name in ("gradients", "rows", "states"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_a_damaged_cache_file_is_made_anew(tiny: Any) -> None:
    text = Text("other", OTHER.encode())
    first = base.moments(tiny, [text], 32)
    for file in (base.cache_dir() / "calibration").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    base._moments._kept.clear()
    assert torch.equal(base.moments(tiny, [text], 32).gradients, first.gradients)


def test_each_text_counts_alike_whatever_its_length(tiny: Any) -> None:
    short, long = Text("short", LETTERS[:200].encode()), Text("long", OTHER.encode())
    mean = (base.shares(tiny, [short], 300) + base.shares(tiny, [long], 300)) / 2
    assert torch.allclose(base.shares(tiny, [short, long], 300), mean)
    both = base.moments(tiny, [short, long], 32).states
    assert torch.allclose(both, (base.moments(tiny, [short], 16).states + base.moments(tiny, [long], 16).states) / 2)


def test_clipping_shortens_to_three_medians_and_keeps_directions() -> None:
    gradients = torch.diag(torch.tensor([1.0, 1.0, 1.0, 100.0]).double())
    assert torch.allclose(base.clipped(gradients), torch.diag(torch.tensor([1.0, 1.0, 1.0, 3.0]).double()))
    assert torch.equal(base.clipped(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_smoothing_leaves_no_token_without_weight() -> None:
    found = base.smoothed(torch.tensor([0.0, 3.0, 1.0]).double(), 0.1)
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0
    assert found[1] == pytest.approx(0.9 * 0.75 + 0.1 * (1 / 201) / (1 / 200 + 1 / 201 + 1 / 202))


def test_input_moments_equal_the_second_moments_of_what_a_layer_reads(tiny: Any) -> None:
    text = Text("letters", LETTERS.encode())
    seen: list[torch.Tensor] = []
    layer = tiny.module.model.layers[1].mlp.down_proj
    found = base.input_moments(tiny, ["blocks.1.mlp.down"], [text], 40)["blocks.1.mlp.down"]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    ids = torch.tensor(tiny.tokenizer.encode(text.data))[:40]
    forward.final_states(tiny, forward.fed_ids(ids, tiny.tokenizer.start_id)[None])
    handle.remove()
    x = seen[0].double()
    assert torch.allclose(found, x.T @ x / len(x), atol=1e-5)
    assert not layer._forward_pre_hooks


def test_a_matrix_that_reads_no_vectors_has_no_input_moments() -> None:
    model = make_tiny("gpt2")
    with pytest.raises(BadValue, match="'embed.positions' is not the weight of a linear layer"):
        base.input_moments(model, ["embed.positions"], [Text("letters", LETTERS.encode())], 40)


def test_the_calibration_text_is_refused_as_test_text() -> None:
    text = Text("letters", LETTERS.encode())
    with pytest.raises(NotComparable, match="'lowrank' was calibrated on 'letters', which holds 100% of"):
        base.refuse_calibration(calibrated("letters", text), text)


def test_a_part_of_the_calibration_text_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "calibration.txt"
    path.write_text("".join(f"line {i} of the calibration text is about {i * i}.\n" for i in range(200)))
    whole = base.read_text(str(path))
    changes = calibrated("", whole)
    with pytest.raises(NotComparable, match="calibration=NAME_OR_FILE"):
        base.refuse_calibration(changes, whole[1000:3000])
    with pytest.raises(NotComparable):
        base.refuse_calibration(changes, Text("mixed", OTHER.encode() + whole.data[500:1200]))
    base.refuse_calibration(changes, Text("other", OTHER.encode()))


def test_shared_bytes_finds_copied_passages_and_nothing_else() -> None:
    a = Text("a", bytes(range(256)) * 4)
    assert base.shared_bytes(a, Text("b", b"x" * 300)) == 0
    assert base.shared_bytes(a, Text("c", b"x" * 33 + a.data[:500])) >= 448


def test_the_default_calibration_lies_beyond_what_measures_read_by_default() -> None:
    from kobza.measures.base import LIMIT

    changes = [base.Change("lowrank", facts={"calibration": base.calibration_facts(
        base.calibration_texts(base.CALIBRATION), 8)})]  # fmt: skip
    for name in ("topics", "source", "ukrainian"):
        base.refuse_calibration(changes, base.read_text(name, limit=LIMIT))


def test_no_calibration_text_is_refused() -> None:
    with pytest.raises(BadValue, match="calibration names no text"):
        base.calibration_texts([])
