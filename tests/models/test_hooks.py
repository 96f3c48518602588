"""Hooks and traces: the residual stream adds up, changes act where they should, nothing stays behind."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from kobza.core.errors import BadValue, EmptyText, NothingMatched, OutOfRange, UnknownName
from kobza.models.forward import Stepper, logits
from kobza.models.hooks import Hook, hooked
from kobza.models.sites import GLOBAL, names
from kobza.models.tiny import FAMILIES, tiny
from kobza.models.trace import Trace

KNOWN = [f for f in FAMILIES if f != "stablelm"]
IDS = torch.tensor([[0, 40, 50, 60, 70, 80]])


@pytest.mark.parametrize("family", KNOWN)
def test_what_enters_and_what_is_added_make_the_stream(family: str) -> None:
    model = tiny(family, layers=3)
    trace = model.trace("The kobza is a lute.", ["embed", "attn_out", "mlp_out", "resid_pre", "resid_post"])
    total = trace["embed"] + trace.stack("attn_out").sum(0) + trace.stack("mlp_out").sum(0)
    assert torch.allclose(total, trace["resid_post.2"], atol=1e-5)
    assert torch.equal(trace["embed"], trace["resid_pre.0"])
    assert torch.equal(trace["resid_post.0"], trace["resid_pre.1"])


@pytest.mark.parametrize("family", [f for f in KNOWN if f not in ("phi", "gpt_neox", "cohere")])
def test_the_middle_of_a_block_is_what_its_mlp_reads(family: str) -> None:
    model = tiny(family)
    path = model.family.points["resid_mid"].split()[1]
    part = model.module.get_submodule(f"{model.family.blocks}.1.{path}")
    seen: list[torch.Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(6, -1)))
    trace = model.trace(IDS[0], ["resid_mid.1", "resid_post.1", "mlp_out.1"])
    handle.remove()
    assert torch.equal(trace["resid_mid.1"], seen[0])
    assert torch.allclose(trace["resid_mid.1"] + trace["mlp_out.1"], trace["resid_post.1"], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_named_values_are_what_transformers_returns(family: str) -> None:
    model = tiny(family)
    trace = model.trace(IDS[0], ["resid_pre", "final", "logits"])
    out = model.module(IDS, output_hidden_states=True)
    for layer in range(2):
        assert torch.equal(trace["resid_pre", layer], out.hidden_states[layer][0])
    assert torch.equal(trace["final"], out.hidden_states[2][0])
    assert torch.equal(trace["logits"], out.logits[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_can_be_written_and_the_model_is_as_before(family: str) -> None:
    model = tiny(family)
    clean = logits(model, IDS).clone()
    for name in names(model):
        site = name if name in GLOBAL else f"{name}.1"
        with hooked(model, [Hook(site, lambda value: value.clone())]):
            assert torch.allclose(logits(model, IDS), clean, atol=1e-5), site
        with hooked(model, [Hook(f"{site}@-1", lambda value: value + value.roll(1, -1))]):
            changed = logits(model, IDS)
        assert torch.allclose(changed[:, :-1], clean[:, :-1], atol=1e-6), site
        assert float((changed[:, -1] - clean[:, -1]).abs().max()) > 1e-4, site
        assert torch.equal(logits(model, IDS), clean), site


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_zeroing_a_neuron_takes_its_direction_out_of_the_stream(family: str) -> None:
    model = tiny(family)
    trace = model.trace(IDS[0], ["neuron.1", "resid_post.1"])
    with hooked(model, [Hook("neuron.1.7", torch.zeros_like)]):
        ablated = model.trace(IDS[0], ["resid_post.1"])
    direction = model.matrix("blocks.1.mlp.down")[:, 7]
    expected = trace["resid_post.1"] - trace["neuron.1"][:, 7:8] * direction
    assert torch.allclose(ablated["resid_post.1"], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_zeroing_a_head_is_zeroing_its_slice_of_the_output_projection(family: str) -> None:
    from kobza.models.model import Change

    model = tiny(family)
    with hooked(model, [Hook("z.0.2", torch.zeros_like)]):
        hooked_logits = logits(model, IDS)
    W = model.matrix("blocks.0.attn.o").clone()
    W[:, 16:24] = 0
    edited = model.replace({"blocks.0.attn.o": W}, change=Change("x"))
    assert torch.allclose(hooked_logits, logits(edited, IDS), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_q_k_v_of_a_head_are_written_where_the_weights_say(family: str) -> None:
    from kobza.models.model import Change

    model = tiny(family)
    for key in "qkv":
        if f"blocks.0.attn.{key}.bias" in model.matrices or "blocks.0.attn.qkv.bias" in model.matrices:
            continue
        with hooked(model, [Hook(f"{key}.0.1", torch.zeros_like)]):
            hooked_logits = logits(model, IDS)
        W = model.matrix(f"blocks.0.attn.{key}").clone()
        W[8:16] = 0
        edited = model.replace({f"blocks.0.attn.{key}": W}, change=Change("x"))
        assert torch.allclose(hooked_logits, logits(edited, IDS), atol=1e-5)


def test_hooks_at_one_site_act_in_order_and_the_middle_sees_the_attention() -> None:
    model = tiny()
    order: list[float] = []

    def note(value: torch.Tensor) -> torch.Tensor:
        order.append(float(value.abs().max()))
        return torch.zeros_like(value)

    with hooked(model, [Hook("resid_mid.0", note), Hook("attn_out.0", note), Hook("attn_out.0", note)]):
        logits(model, IDS)
    embed = float(model.trace(IDS[0], "embed")["embed"].abs().max())
    assert order[0] > 0 and order[1] == 0 and order[2] == pytest.approx(embed)


def test_hooks_are_gone_after_an_error() -> None:
    model = tiny()
    clean = logits(model, IDS).clone()

    def fail(value: torch.Tensor) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), hooked(model, [Hook("neuron", fail)]):
        logits(model, IDS)
    with pytest.raises(UnknownName), hooked(model, [Hook("neuron.0", torch.zeros_like), Hook("nerve.0", fail)]):
        pass
    assert torch.equal(logits(model, IDS), clean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_a_hook_that_never_fires_is_an_error() -> None:
    model = tiny()
    with (
        pytest.raises(NothingMatched, match=r"never fired: neuron\.1"),
        hooked(model, [Hook("neuron.1", lambda v: None)]),
    ):
        pass


def test_positions_indices_and_shapes_that_do_not_fit_are_errors() -> None:
    model = tiny()
    for site, words in (("resid_pre.0@6", "0 .. 5"), ("resid_pre.0@8:9", "0 .. 5"), ("z.0.4", "0 to 3")):
        with pytest.raises(OutOfRange, match=words), hooked(model, [Hook(site, lambda v: None)]):
            logits(model, IDS)
    with pytest.raises(BadValue, match="returned"), hooked(model, [Hook("resid_pre.0", lambda v: v[..., :3])]):
        logits(model, IDS)


def test_a_fork_leaves_hooks_behind() -> None:
    model = tiny()
    clean = logits(model, IDS).clone()
    with hooked(model, [Hook("neuron", torch.zeros_like)]):
        twin = model.fork()
        assert not torch.equal(logits(model, IDS), clean)
        assert torch.equal(logits(twin, IDS), clean)


def test_hooks_act_while_stepping() -> None:
    model = tiny()
    stepper = Stepper(model)
    with hooked(model, [Hook("resid_post.1@-1", torch.zeros_like)]):
        first = stepper.feed(IDS[:, :3])
        second = stepper.feed(IDS[:, 3:])
    assert torch.equal(first, second)  # a stream of zeros looks the same everywhere


def test_a_trace_selects_positions_and_indices() -> None:
    model = tiny()
    trace = model.trace(IDS[0], ["resid_pre.1", "resid_pre.1@-1", "neuron.0.5", "z@1:3.0.2", "logits.7"])
    assert torch.equal(trace["resid_pre.1@-1"], trace["resid_pre.1"][-1])
    assert trace["neuron.0.5"].shape == (6,) and trace["z.0.2@1:3"].shape == (2, 8) and trace["logits.7"].shape == (6,)
    assert trace.positions == 6 and len(trace) == 5 and "resid_pre.1: (6, 32)" in repr(trace)
    with pytest.raises(UnknownName, match="neuron"):
        _ = trace["neuron.0"]


def test_a_text_is_begun_by_the_start_token_and_ids_are_taken_as_they_are() -> None:
    model = tiny()
    trace = model.trace("lute", "embed")
    assert int(trace.ids[0]) == 0 and trace.tokens[0] == "<s>"
    assert model.trace([40, 50], "embed").ids.tolist() == [40, 50]
    batch = model.trace(IDS.repeat(2, 1), "embed")
    assert batch["embed"].shape == (2, 6, 32) and batch.tokens == []


def test_a_trace_returns_from_its_file(tmp_path: Path) -> None:
    trace = tiny().trace("a lute", ["resid_post", "logits"])
    again = Trace.load(trace.save(tmp_path / "trace.safetensors"))
    assert list(again) == list(trace) and all(torch.equal(again[site], trace[site]) for site in trace)
    assert again.tokens == trace.tokens and again.model == trace.model and torch.equal(again.ids, trace.ids)


def test_traces_of_nothing_or_too_much_are_refused() -> None:
    model = tiny(context=8)
    with pytest.raises(EmptyText):
        model.trace("", "embed")
    with pytest.raises(OutOfRange, match="9 tokens exceed the 8"):
        model.trace([1] * 9, "embed")
    with pytest.raises(OutOfRange, match="300"):
        model.trace([300], "embed")


@pytest.mark.parametrize("site", ["pattern.1", "resid_mid.1", "neuron.1", "head_out.1", "norm1_scale.1"])
def test_what_a_hook_held_goes_with_it(site: str) -> None:
    """Without the collector of cycles: patterns of a long text, a layer after the other, would stay until it comes."""
    model = tiny("llama")

    def keep(value: torch.Tensor) -> None:
        assert value.numel()

    held = weakref.ref(keep)
    gc.disable()
    try:
        with hooked(model, [Hook(site, keep)]):
            logits(model, IDS)
        del keep
        assert held() is None
    finally:
        gc.enable()
