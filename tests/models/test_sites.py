"""Sites: the grammar, and what is refused."""

import pytest

from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.models.sites import Site, expand, names
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
    every = {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "neuron", "z", "q", "k", "v"}
    missing = {"resid_mid"} if family in ("phi", "gpt_neox", "cohere") else set()
    assert set(names(tiny(family))) == (every | {"final", "logits"}) - missing


def test_unknown_sites_and_layers_are_refused_with_what_there_is() -> None:
    with pytest.raises(UnknownName, match="resid_post"):
        expand(tiny(), "resid_pst.1")
    with pytest.raises(UnknownName, match="resid_mid"):
        expand(tiny("phi"), "resid_mid.1")
    with pytest.raises(OutOfRange, match="layers 0 .. 1"):
        expand(tiny(), "neuron.2")
