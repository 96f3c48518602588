"""Sites inside attention and beside modules: closed formulas, and the eager attention of transformers."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.models.forward import logits
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Change
from kobza.models.tiny import FAMILIES, tiny

IDS = torch.tensor([[0, 40, 50, 60, 70, 80]])
ROTATED = [family for family in FAMILIES if family not in ("gpt2", "opt")]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def has(model: Any, *sites: str) -> bool:
    return all(site in model.family.points for site in sites)


def test_patterns_are_those_of_transformers_and_rows_sum_to_1(model: Any) -> None:
    pattern = model.trace(IDS[0], "pattern").stack("pattern")  # (L, T, H, S)
    assert torch.allclose(pattern.sum(-1), torch.ones(2, 6, 4), atol=1e-6)
    assert not pattern.transpose(1, 2).triu(1).any(), "no query looks ahead"
    twin = model.fork()
    twin.config._attn_implementation = "eager"
    expected = twin.module(IDS, output_attentions=True).attentions
    torch.testing.assert_close(pattern.transpose(1, 2), torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_the_pattern_is_the_softmax_of_the_scores_and_mixes_the_values_into_z(model: Any) -> None:
    trace = model.trace(IDS[0], ["scores.1", "pattern.1", "v.1", "z.1"])
    assert torch.allclose(trace["scores.1"].softmax(-1), trace["pattern.1"], atol=1e-6)
    values = trace["v.1"].repeat_interleave(4 // trace["v.1"].shape[1], 1)  # (S, H, E)
    assert torch.allclose(torch.einsum("ths,she->the", trace["pattern.1"], values), trace["z.1"], atol=1e-5)


@pytest.mark.parametrize("family", ROTATED)
def test_rotated_queries_and_keys_meet_in_the_scores(family: str) -> None:
    model = tiny(family)
    trace = model.trace(IDS[0], ["q_rot.1", "k_rot.1", "scores.1", "q.1"])
    k = trace["k_rot.1"].repeat_interleave(4 // trace["k_rot.1"].shape[1], 1)
    dots = torch.einsum("the,she->ths", trace["q_rot.1"], k)
    cap = getattr(model.config, "attn_logit_softcapping", None)
    seen = cap * (trace["scores.1"] / cap).atanh() if cap else trace["scores.1"]
    looks = torch.isfinite(seen)
    factor = seen[looks] / dots[looks]
    assert torch.allclose(factor, factor[0].expand_as(factor), rtol=1e-3), "one factor for all"
    same_length = torch.allclose(trace["q_rot.1"].norm(dim=-1), trace["q.1"].norm(dim=-1), rtol=1e-4)
    assert same_length or family in ("qwen3", "gemma3", "olmo2"), "a rotation, or a head norm"


def test_what_the_heads_add_is_attn_out_but_for_bias_and_post_norm(model: Any) -> None:
    total = model.trace(IDS[0], "head_out.1")["head_out.1"].sum(1)  # of (T, H, D)
    bias = "blocks.1.attn.o.bias"
    total = total + model.matrix(bias) if bias in model.matrices else total
    if has(model, "attn_out") and not has(model, "norm1_post_scale"):
        assert torch.allclose(total, model.trace(IDS[0], "attn_out.1")["attn_out.1"], atol=1e-5)
    with hooked(model, [Hook("z.1", torch.zeros_like)]):
        assert not model.trace(IDS[0], "head_out.1")["head_out.1"].any()


def test_removing_a_head_by_what_it_adds_is_removing_its_z(model: Any) -> None:
    with hooked(model, [Hook("head_out.0.2", torch.zeros_like)]):
        by_output = logits(model, IDS)
    with hooked(model, [Hook("z.0.2", torch.zeros_like)]):
        assert torch.allclose(logits(model, IDS), by_output, atol=1e-5)


def test_gate_times_up_is_the_neuron(model: Any) -> None:
    if has(model, "gate"):
        trace = model.trace(IDS[0], ["gate.1", "up.1", "neuron.1"])
        assert torch.equal(trace["gate.1"] * trace["up.1"], trace["neuron.1"])
    if "blocks.1.mlp.up" in {*model.matrices, *model.parts} and has(model, "norm2_scale") and not has(model, "gate"):
        trace = model.trace(IDS[0], ["up.1", "neuron.1"])
        assert trace["up.1"].shape == trace["neuron.1"].shape


@pytest.mark.parametrize("scale", ["norm1_scale", "norm2_scale", "norm1_post_scale"])
def test_what_a_norm_divides_by_makes_its_output(model: Any, scale: str) -> None:
    if not has(model, scale):
        pytest.skip("no such norm in this family")
    part = model.module.get_submodule(f"{model.family.blocks}.1.{model.family.points[scale].split()[1]}")
    seen: dict[str, Any] = {}
    handle = part.register_forward_hook(lambda _, args, out: seen.update(given=args[0], out=out))
    value = model.trace(IDS[0], f"{scale}.1")[f"{scale}.1"]
    handle.remove()
    given, out = (seen[key].reshape(6, -1) for key in ("given", "out"))
    is_rms = "RMS" in type(part).__name__
    centered = given if is_rms else given - given.mean(-1, keepdim=True)
    weight = 1 + part.weight if type(part).__name__.startswith("Gemma") else part.weight
    bias = 0 if getattr(part, "bias", None) is None else part.bias
    assert torch.allclose(centered / value * weight + bias, out, atol=1e-5)


@pytest.mark.parametrize("side", ["eager", "sdpa"])
def test_tracing_inside_attention_changes_no_bit(model: Any, side: str) -> None:
    model = model.fork()
    if side == "sdpa" and getattr(model.config, "attn_logit_softcapping", None):
        pytest.skip("transformers refuses a soft cap with sdpa")
    model.config._attn_implementation = side
    clean = logits(model, IDS).clone()
    watched = [Hook(name, lambda value: None) for name in ("scores", "pattern", "head_out", "norm_scale")]
    with hooked(model, watched):
        assert torch.equal(logits(model, IDS), clean)
        assert not model.fork().config._attn_implementation.startswith("kobza")
    assert model.config._attn_implementation == side


def test_an_edited_pattern_is_the_mixture_asked_for_and_never_looks_ahead(model: Any) -> None:
    uniform = torch.full((6, 6), 1 / 6)
    with hooked(model, [Hook("pattern.1.2", lambda value: uniform)]):
        z = model.trace(IDS[0], ["z.1.2", "v.1"])
    values = z["v.1"].repeat_interleave(4 // z["v.1"].shape[1], 1)[:, 2]
    assert torch.allclose(z["z.1.2"], uniform.tril() @ values, atol=1e-5)
    with hooked(model, [Hook("scores.1", torch.zeros_like)]):
        even = model.trace(IDS[0], "pattern.1")["pattern.1"]
    assert torch.allclose(even[3], torch.tensor([0.25] * 4 + [0, 0]).expand(4, 6))


def test_rotated_keys_are_hooked_at_the_new_positions_while_a_cache_is_used() -> None:
    from kobza.models.forward import Stepper

    model, shapes = tiny(), []
    stepper = Stepper(model)
    with hooked(model, [Hook("k_rot.0", lambda value: shapes.append(tuple(value.shape)))]):
        stepper.feed(IDS[:, :4])
        stepper.feed(IDS[:, 4:])
    assert shapes == [(1, 4, 2, 8), (1, 2, 2, 8)]


def test_another_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny()
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def other(*args: Any, **rest: Any) -> Any:
        z, weights = own(*args, **rest)
        return 2 * z, weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", other)
    with pytest.raises(BadValue, match="attends by another formula"):
        model.trace(IDS[0], "pattern.0")
    assert torch.isfinite(model.trace(IDS[0], "q_rot.0")["q_rot.0"]).all()


def test_hooks_inside_attention_are_gone_after_an_error() -> None:
    model = tiny()
    clean = logits(model, IDS).clone()

    def fail(value: torch.Tensor) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), hooked(model, [Hook("pattern.1", fail)]):
        logits(model, IDS)
    assert torch.equal(logits(model, IDS), clean)
    assert model.config._attn_implementation == "sdpa"


def test_a_pattern_edit_can_be_undone_by_the_matrix_it_stands_for() -> None:
    """Authority: a head whose values are 0 is a head whose pattern is 0."""
    model = tiny("gpt2")
    W = model.matrix("blocks.0.attn.o").clone()
    W[:, 8:16] = 0
    without = model.replace({"blocks.0.attn.o": W}, change=Change("without"))
    with hooked(model, [Hook("pattern.0.1", torch.zeros_like)]):
        hooked_logits = logits(model, IDS)
    b = model.matrix("blocks.0.attn.qkv.bias")[64 + 8 : 64 + 16]
    assert float(b.abs().max()) > 0  # the bias of v belongs to the values, so it is gone as well
    assert torch.allclose(hooked_logits, logits(without, IDS), atol=1e-5)
