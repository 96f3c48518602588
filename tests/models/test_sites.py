"""Sites: the grammar, and what is refused."""

import pytest

from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.models.sites import Site, expand, heads, names
from kobza.models.tiny import FAMILIES, tiny


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("embed", Site("embed")),
        ("resid_pre.3", Site("resid_pre", 3)),
        ("neuron.29.1123", Site("neuron", 29, 1123)),
        ("z.18.6", Site("z", 18, 6)),
        ("resid_pre.22@-1", Site("resid_pre", 22, None, -1)),
        ("resid_pre@-1.22", Site("resid_pre", 22, None, -1)),
        ("z@2:5.18.6", Site("z", 18, 6, (2, 5))),
        ("z.18.6@2:", Site("z", 18, 6, (2, None))),
        ("neuron", Site("neuron")),
        ("neuron.*", Site("neuron")),
        ("neuron.*.7", Site("neuron", None, 7)),
        ("logits.42", Site("logits", None, 42)),
        ("block_output.1", Site("resid_post", 1)),
        ("norm1_scale.3@-1", Site("norm1_scale", 3, None, -1)),
        ("norm1.scale.3", Site("norm1_scale", 3)),
        ("attn_weights.3.2", Site("pattern", 3, 2)),
    ],
)
def test_the_grammar_reads_and_writes(text: str, site: Site) -> None:
    assert Site.parse(text) == site
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["", "resid pre.3", "neuron.1.2.3", "z.1@a", "z@1.2@3", "z.1@1:2:3", "Z.1"])
def test_what_is_not_a_site_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadValue):
        Site.parse(text)


def test_a_site_without_a_layer_stands_for_every_layer() -> None:
    model = tiny(layers=3)
    assert list(map(str, expand(model, "neuron@-1"))) == ["neuron.0@-1", "neuron.1@-1", "neuron.2@-1"]
    assert list(map(str, expand(model, "embed"))) == ["embed"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "stablelm"])
def test_known_families_have_all_sites_and_parallel_ones_no_middle(family: str) -> None:
    every = {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out", "z", "q", "k", "v"}
    every |= {"q_rot", "k_rot", "scores", "pattern", "gate", "up", "neuron", "norm1_scale", "norm2_scale", "norm_scale"}
    lacks = {
        "phi": {"resid_mid", "gate", "norm2_scale"},
        "gpt_neox": {"resid_mid", "gate"},
        "cohere": {"resid_mid", "norm2_scale"},
        "gpt2": {"gate", "q_rot", "k_rot"},
        "opt": {"gate", "q_rot", "k_rot"},
        "olmo2": {"norm1_scale", "norm2_scale"},
    }
    behind = {"norm1_post_scale", "norm2_post_scale"} if family in ("gemma2", "gemma3", "olmo2") else set()
    assert set(names(tiny(family))) == (every | behind | {"final", "logits"}) - lacks.get(family, set())


def test_key_and_value_heads_keep_their_own_count() -> None:
    model = tiny(heads=4, kv_heads=2)
    assert [heads(model, name) for name in ("q", "q_rot", "z", "k", "k_rot", "v")] == [4, 4, 4, 2, 2, 2]


def test_unknown_sites_and_layers_are_refused_with_what_there_is() -> None:
    with pytest.raises(UnknownName, match="resid_post"):
        expand(tiny(), "resid_pst.1")
    with pytest.raises(UnknownName, match="resid_mid"):
        expand(tiny("phi"), "resid_mid.1")
    with pytest.raises(OutOfRange, match="layers 0 .. 1"):
        expand(tiny(), "neuron.2")
