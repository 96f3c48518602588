"""Names of matrices: the same in every family, found by patterns, read in one orientation."""

import pytest
import torch

from kobza.core.errors import NothingMatched
from kobza.models.families import known
from kobza.models.tiny import FAMILIES, tiny

PLAIN = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "smollm3", "granite", "cohere", "olmo2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_listed_once_and_bytes_add_up(family: str) -> None:
    model = tiny(family)
    stored = [m for m in model.matrices.values() if not m.shared]
    assert sum(m.bytes for m in stored) == model.stored_bytes == 4 * model.parameters
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    assert {m.parameter for m in model.matrices.values()} == parameters.keys()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "stablelm"])
def test_known_families_have_only_our_names(family: str) -> None:
    for name in tiny(family).matrices:
        assert name.split(".")[0] in ("embed", "blocks", "norm"), name
        assert not any(part in name for part in ("proj", "layernorm", "weight", "dense")), name


@pytest.mark.parametrize("family", PLAIN)
def test_a_product_with_the_named_matrix_is_what_the_module_computes(family: str) -> None:
    model = tiny(family)
    trace = model.trace("a lute", ["neuron.1", "z.0"])
    W = model.matrix("blocks.1.mlp.down")
    block = model.module.model.layers[1]
    assert torch.allclose(trace["neuron.1"] @ W.T, block.mlp.down_proj(trace["neuron.1"]), atol=1e-6)
    assert model.matrix("blocks.0.attn.o").shape == (model.width, trace["z.0"].flatten(-2).shape[-1])


def test_gpt2_is_read_and_replaced_as_outputs_by_inputs() -> None:
    model = tiny("gpt2")
    stored = model.module.transformer.h[0].mlp.c_fc.weight
    assert stored.shape == (32, 128)
    assert model.matrices["blocks.0.mlp.up"].shape == (128, 32)
    assert torch.equal(model.matrix("blocks.0.mlp.up"), stored.T)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_parts_of_fused_matrices_are_what_the_attention_sees(family: str) -> None:
    model = tiny(family)
    trace = model.trace("a lute", ["resid_pre.0", "q.0", "k.0", "v.0"])
    norm = model.module.get_submodule(f"{model.family.blocks}.0.{model.family.block['norm1']}")
    read = norm(trace["resid_pre.0"])
    for key in "qkv":
        W = model.matrix(f"blocks.0.attn.{key}")
        name = "blocks.0.attn.qkv.bias"
        bias = 0.0
        if name in model.matrices:
            from kobza.models.matrices import rows

            part = model.parts[f"blocks.0.attn.{key}"]
            bias = model.matrix(name)[rows(part, model.matrices["blocks.0.attn.qkv"].shape, model.config)]
        assert torch.allclose(read @ W.T + bias, trace[f"{key}.0"].flatten(-2), atol=1e-5)


def test_patterns_select_in_order() -> None:
    model = tiny()
    assert model.find("embed") == ["embed"]
    assert model.find("embed.in") == ["embed.in"]
    assert model.find("embed.in,embed.out") == ["embed"]
    assert model.find("blocks.0.mlp") == ["blocks.0.mlp.gate", "blocks.0.mlp.up", "blocks.0.mlp.down"]
    assert model.find("blocks.*.attn.[qk]") == [
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.1.attn.q",
        "blocks.1.attn.k",
    ]
    assert model.find("blocks.0.mlp.up, embed.out") == ["blocks.0.mlp.up", "embed.out"]
    assert model.find("*")[0] == "embed"


def test_both_ends_of_an_untied_model_are_two_matrices() -> None:
    assert tiny(tied=False).find("embed") == ["embed.in", "embed.out"]


def test_norms_and_biases_are_found_only_where_no_matrix_is() -> None:
    model = tiny("gpt2")
    assert model.find("blocks.0.attn") == ["blocks.0.attn.qkv", "blocks.0.attn.o"]
    assert model.find("blocks.0.attn.q") == ["blocks.0.attn.q"]
    assert model.find("blocks.*.norm1")[:2] == ["blocks.0.norm1", "blocks.0.norm1.bias"]


def test_no_match_names_the_nearest_patterns_and_their_counts() -> None:
    with pytest.raises(NothingMatched) as caught:
        tiny().find("block.*.mlp.dwn")
    assert "'block.*.mlp.dwn'" in str(caught.value)
    assert "'blocks.*.mlp.down' (2 matrices)" in str(caught.value)
    assert "kobza open" in str(caught.value)
    with pytest.raises(NothingMatched):
        tiny().find("embed,nothing")
    with pytest.raises(NothingMatched):
        tiny().matrix("blocks.9.mlp.up")


def test_an_unknown_family_is_explored_by_names() -> None:
    model = tiny("stablelm")
    assert "stablelm" not in known() and not model.family.is_known
    assert {"embed.in", "embed.out", "blocks.0.attn.q", "blocks.1.mlp.down"} <= model.matrices.keys()
