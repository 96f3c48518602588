"""Forks share every tensor; replacing never changes the model it starts from; ties are explicit."""

import copy

import pytest
import torch

from kobza.core.errors import BadValue, NotFinite, NothingMatched, WrongTensors
from kobza.models import replacing
from kobza.models.forward import logits, token_bits
from kobza.models.model import Change, Factors, Model
from kobza.models.tiny import FAMILIES, tiny

EDIT = Change("test", {"strength": 2}, ["embed"])
IDS = torch.tensor([[0, 40, 50, 60, 70, 80]])


def factors(W: torch.Tensor, rank: int) -> Factors:
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return Factors((U * S)[:, :rank], Vt[:rank])


def pointers(model: Model) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in model.module.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fork_shares_every_tensor_and_gives_equal_bits(family: str) -> None:
    model = tiny(family)
    twin = model.fork(change=EDIT)
    assert pointers(twin) == pointers(model)
    assert torch.equal(logits(twin, IDS), logits(model, IDS))
    assert twin.changes == (EDIT,) and model.changes == ()
    assert twin.module.config is not model.module.config
    assert twin.fingerprint == model.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["embed", "embed.in", "embed.out"])
def test_replacing_an_end_leaves_the_original_alone(family: str, end: str) -> None:
    model = tiny(family)
    before, clean = model.fingerprint, logits(model, IDS).clone()
    edited = model.replace({end: 1.25 * model.matrix(end)}, change=EDIT)
    assert model.fingerprint == before and torch.equal(logits(model, IDS), clean)
    assert model.is_tied and edited.is_tied == (end == "embed")
    assert model.module.config.tie_word_embeddings and edited.config.tie_word_embeddings == (end == "embed")
    assert not torch.allclose(logits(edited, IDS), clean)
    one_table = model.matrices["embed.in"].bytes
    assert edited.stored_bytes == model.stored_bytes + (0 if end == "embed" else one_table)
    shared = {name for name, at in pointers(edited).items() if at == pointers(model)[name]}
    assert len(pointers(model)) - len(shared) == (2 if end == "embed" else 1)


def test_editing_one_end_keeps_the_other() -> None:
    model = tiny()
    E = model.matrix("embed")
    edited = model.replace({"embed.in": 2 * E}, change=EDIT)
    assert torch.equal(edited.matrix("embed.in"), 2 * E)
    assert torch.equal(edited.matrix("embed.out"), E)
    head_only = model.replace({"embed.out": 2 * E}, change=EDIT)
    assert torch.allclose(logits(head_only, IDS), 2 * logits(model, IDS), atol=1e-5)


def test_an_untied_fork_is_not_tied_again_by_transformers() -> None:
    model = tiny()
    edited = model.replace({"embed.in": 2 * model.matrix("embed")}, change=EDIT)
    clean = logits(edited, IDS).clone()
    edited.module.tie_weights()
    assert torch.equal(logits(edited, IDS), clean)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_factors_change_nothing(family: str) -> None:
    model = tiny(family)
    for name in (*model.find("embed"), "embed.in", "embed.out", *model.find("blocks.1.mlp")):
        edited = model.replace({name: factors(model.matrix(name), 32)}, change=EDIT)
        assert torch.allclose(logits(edited, IDS), logits(model, IDS), atol=1e-4), name
        assert torch.allclose(edited.matrix(name), model.matrix(name), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_used_as_their_product_and_stored_as_two(family: str) -> None:
    model = tiny(family)
    V, D, R = 300, 32, 8
    pair = factors(model.matrix("embed"), R)
    both = model.replace({"embed": pair}, change=EDIT)
    dense = model.replace({"embed": pair.dense()}, change=EDIT)
    assert torch.allclose(logits(both, IDS), logits(dense, IDS), atol=1e-4)
    assert both.is_tied and both.matrices["embed.in"].stored_as == "factors"
    assert both.stored_bytes == model.stored_bytes - 4 * V * D + 4 * R * (V + D)
    assert both.module.get_input_embeddings().A is both.module.get_output_embeddings().A
    one = model.replace({"embed.in": pair}, change=EDIT)
    assert one.stored_bytes == model.stored_bytes + 4 * R * (V + D) and not one.is_tied
    linear = model.find("blocks.0.mlp.down")[0]
    M, N = model.matrices[linear].shape
    thin = model.replace({linear: factors(model.matrix(linear), R)}, change=EDIT)
    assert thin.stored_bytes == model.stored_bytes - 4 * M * N + 4 * R * (M + N)
    assert thin.matrices[linear].shape == (M, N) and thin.matrices[linear].rank == R


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_a_factored_matrix_can_be_replaced_by_a_dense_one(family: str) -> None:
    model = tiny(family)
    name = model.find("blocks.0.mlp.down")[0]
    for key in ("embed", name):
        W = model.matrix(key).clone()
        back = model.replace({key: factors(W, 4)}, change=EDIT).replace({key: W}, change=EDIT)
        assert back.fingerprint == model.fingerprint and back.is_tied
        assert torch.equal(logits(back, IDS), logits(model, IDS))


def test_both_ends_given_as_one_object_stay_tied() -> None:
    model = tiny()
    new = 1.5 * model.matrix("embed")
    assert model.replace({"embed.in": new, "embed.out": new}, change=EDIT).is_tied
    assert not model.replace({"embed.in": new, "embed.out": new.clone()}, change=EDIT).is_tied


def test_parts_of_a_fused_matrix_are_replaced_alone() -> None:
    for family in ("gpt2", "gpt_neox", "phi3"):
        model = tiny(family)
        edited = model.replace({"blocks.0.attn.k": 0 * model.matrix("blocks.0.attn.k")}, change=EDIT)
        assert float(edited.matrix("blocks.0.attn.k").abs().max()) == 0
        for key in "qv":
            assert torch.equal(edited.matrix(f"blocks.0.attn.{key}"), model.matrix(f"blocks.0.attn.{key}"))


def test_two_parts_of_one_fused_matrix_can_be_replaced_together() -> None:
    model = tiny("gpt2")
    new = {f"blocks.0.attn.{key}": 0 * model.matrix(f"blocks.0.attn.{key}") for key in "qk"}
    edited = model.replace(new, change=EDIT)
    assert all(float(edited.matrix(name).abs().max()) == 0 for name in new)


def test_parts_of_a_factored_fused_matrix_can_be_replaced() -> None:
    model = tiny("gpt2")
    thin = model.replace({"blocks.0.attn.qkv": factors(model.matrix("blocks.0.attn.qkv"), 8)}, change=EDIT)
    new = {f"blocks.0.attn.{key}": 0 * model.matrix(f"blocks.0.attn.{key}") for key in "qk"}
    edited = thin.replace(new, change=EDIT)
    assert all(float(edited.matrix(name).abs().max()) == 0 for name in new)
    assert torch.equal(edited.matrix("blocks.0.attn.v"), thin.matrix("blocks.0.attn.v"))
    with pytest.raises(WrongTensors, match="32 x 32"):
        model.replace({"blocks.0.attn.q": torch.zeros(3, 32)}, change=EDIT)


def test_edits_add_up_and_chain() -> None:
    model = tiny()
    first, second = Change("a"), Change("b", seed=3, facts={"kept": 0.5})
    twice = model.fork(change=first).replace({"blocks.0.mlp.up": 0 * model.matrix("blocks.0.mlp.up")}, change=second)
    assert twice.changes == (first, second)
    assert Change.from_json(second.to_json()) == second


def test_values_of_a_wrong_shape_or_not_finite_are_refused() -> None:
    model = tiny()
    E = model.matrix("embed")
    with pytest.raises(WrongTensors, match="300 x 32.*299 x 32"):
        model.replace({"embed": E[1:]}, change=EDIT)
    bad = E.clone()
    bad[3, 3] = float("nan")
    with pytest.raises(NotFinite, match=r"embed\.in"):
        model.replace({"embed": bad}, change=EDIT)
    with pytest.raises(BadValue, match="both ends"):
        model.replace({"embed": E, "embed.in": E}, change=EDIT)
    with pytest.raises(NothingMatched):
        model.replace({"embd": E}, change=EDIT)
    with pytest.raises(BadValue, match="two factors"):
        tiny("opt").replace({"embed.positions": factors(tiny("opt").matrix("embed.positions"), 4)}, change=EDIT)


def test_tensors_made_in_inference_mode_can_be_put_in() -> None:
    model = tiny()
    with torch.inference_mode():
        new = 2 * model.matrix("embed")
    edited = model.replace({"embed": new}, change=EDIT)
    assert not edited.module.get_input_embeddings().weight.is_inference()


def test_the_fingerprint_follows_the_weights_alone() -> None:
    model = tiny()
    twin = copy.deepcopy(model.module)
    from kobza.models.digests import fingerprint

    assert fingerprint(twin) == model.fingerprint
    twin.model.norm.weight[0] += 1
    assert fingerprint(twin) != model.fingerprint


def test_a_fork_only_hashes_what_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from kobza.models import digests

    model = tiny()
    _ = model.fingerprint
    hashed: list[int] = []
    original = digests.raw_bytes
    monkeypatch.setattr(digests, "raw_bytes", lambda tensor: hashed.append(1) or original(tensor))
    _ = model.replace({"blocks.0.mlp.up": model.matrix("blocks.0.mlp.up") + 1}, change=EDIT).fingerprint
    assert len(hashed) == 1


def test_a_model_in_half_precision_keeps_its_type() -> None:
    model = tiny()
    half = tiny()
    replacing.cast(half.module, torch.bfloat16)
    assert half.matrix("blocks.0.mlp.up").dtype == torch.float32
    edited = half.replace({"blocks.0.mlp.up": 2 * half.matrix("blocks.0.mlp.up")}, change=EDIT)
    assert edited.matrices["blocks.0.mlp.up"].dtype == "bfloat16"
    assert edited.stored_bytes == half.stored_bytes == model.stored_bytes // 2
    assert torch.isfinite(token_bits(edited, [40, 50, 60])).all()


def test_a_model_shows_what_it_is() -> None:
    assert "llama" in repr(tiny()) and "test:strength=2" in repr(tiny().fork(change=EDIT))
