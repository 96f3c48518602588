"""Every backend steps alike: what is read together, piece by piece, after a rollback, in a fork or in another row."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.models import bare
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Factors
from kobza.models.stepping import Steps, steps, using
from kobza.models.tiny import tiny

KINDS = [("llama", "bare"), ("mistral", "bare"), ("qwen2", "bare"), ("qwen3", "bare"), ("llama", "transformers"),
         ("gpt2", "transformers"), ("gemma2", "transformers")]  # fmt: skip
every_kind = pytest.mark.parametrize(("family", "backend"), KINDS)
IDS = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(0))


def whole(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.module(ids).logits
    return logits


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=2e-5)


@every_kind
def test_pieces_equal_the_whole_run(family: str, backend: str) -> None:
    model = tiny(family)
    expected = whole(model, IDS)
    run = steps(model, backend=backend)
    assert near(run.feed(IDS[:, :30], keep=30), expected[:, :30])  # a prompt
    assert near(run.feed(IDS[:, 30:35], keep=5), expected[:, 30:35])  # a draft
    assert near(run.feed(IDS[:, 35:36]), expected[:, 35])  # a token
    assert near(run.feed(IDS[:, 36:60], keep=24), expected[:, 36:])  # a long piece behind others
    assert run.length == 60


@every_kind
def test_a_rollback_forgets_and_a_fork_goes_its_own_way(family: str, backend: str) -> None:
    model = tiny(family)
    expected = whole(model, IDS)
    run = steps(model, backend=backend)
    run.feed(IDS[:, :20])
    twin = run.fork()
    twin.feed(torch.zeros(1, 7, dtype=torch.long))
    run.feed(IDS[:, 30:40])
    run.rollback(10)
    assert near(run.feed(IDS[:, 20:25]), expected[:, 24])
    twin.rollback(7)
    assert near(twin.feed(IDS[:, 20:22]), expected[:, 21])
    assert (run.length, twin.length) == (25, 22)


@every_kind
def test_rows_are_chosen_and_multiplied(family: str, backend: str) -> None:
    model = tiny(family)
    run = steps(model, backend=backend)
    run.feed(IDS[:, :10])
    run.select([0, 0])
    two = torch.stack([IDS[0, 10:14], IDS[0, 20:24]])
    run.feed(two)
    run.select([1, 1, 0])
    assert run.batch == 3
    found = run.feed(torch.tensor([[5], [6], [5]]))
    rows = torch.cat([IDS[:, :10].expand(3, -1), two[[1, 1, 0]], torch.tensor([[5], [6], [5]])], dim=1)
    assert near(found, whole(model, rows)[:, -1])


@every_kind
def test_depths_are_read_out_as_norm_and_head_do(family: str, backend: str) -> None:
    model = tiny(family, layers=3)
    run = steps(model, backend=backend)
    run.feed(IDS[:, :9])
    found = run.feed_layers(IDS[:, 9:10], [1, 2])
    assert sorted(found) == [1, 2, 3]
    assert near(found[3], whole(model, IDS[:, :10])[:, -1])
    with torch.inference_mode():
        states = model.module(IDS[:, :10], output_hidden_states=True).hidden_states[2][:, -1]
        norm = model.module.get_submodule(model.family.modules["norm"])
        early = model.module.get_output_embeddings()(norm(states))
    if family != "gemma2":  # whose head caps the logits
        assert near(found[2], early)
    with pytest.raises(OutOfRange, match="has 1 .. 3"):
        run.feed_layers(IDS[:, 10:11], [4])


def test_the_loops_in_c_and_their_plain_twin_agree_beyond_the_room_set_aside() -> None:
    model = tiny("qwen3", tied=False)
    ids = torch.randint(0, 300, (2, 300), generator=torch.Generator().manual_seed(1))
    native, plain = bare.BareStepper(model, 2), bare.BareStepper(model, 2, is_native=False)
    for begin in range(0, 300, 4):
        piece = ids[:, begin : begin + 4]
        one, other = native.feed(piece, keep=4), plain.feed(piece, keep=4)
        assert near(one, other)
    assert near(one, whole(model, ids)[:, -4:])


@pytest.mark.parametrize("width", [24, 40, 72])
def test_widths_that_fill_no_vector_are_summed_to_the_end(width: int) -> None:
    model = tiny(width=width, heads=2, kv_heads=1)
    run = steps(model, backend="bare")
    assert near(run.feed(IDS[:, :7], keep=7), whole(model, IDS[:, :7]))


def test_early_tokens_are_finished_without_computing_twice() -> None:
    model = tiny(layers=3)
    run = bare.BareStepper(model)
    run.feed(IDS[:, :5])
    early = run.feed_early(IDS[:, 5:6], 2)
    run.feed_early(IDS[:, 6:7], 2)
    twin = steps(model, backend="transformers")
    twin.feed(IDS[:, :5])
    assert near(early, twin.feed_layers(IDS[:, 5:6], [2])[2])
    assert run.length == 5
    assert near(run.finish(2), whole(model, IDS[:, :7])[:, 5:])
    assert run.length == 7


@every_kind
def test_states_are_those_behind_the_final_norm(family: str, backend: str) -> None:
    model = tiny(family)
    run = steps(model, backend=backend)
    run.feed(IDS[:, :9])
    logits, states = run.feed_states(IDS[:, 9:12])
    assert near(logits, whole(model, IDS[:, :12])[:, -1])
    with torch.inference_mode():
        assert near(states, model.module(IDS[:, :12], output_hidden_states=True).hidden_states[-1][:, 9:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("fed", [1, 20])
def test_scores_of_the_last_attention_are_those_of_the_module(family: str, fed: int) -> None:
    model = tiny(family)
    model.module.set_attn_implementation("eager")
    run = bare.BareStepper(model)
    run.feed(IDS[:, :9])
    logits, scores = run.feed_scores(IDS[:, 9 : 9 + fed])
    with torch.inference_mode():
        out = model.module(IDS[:, : 9 + fed], output_attentions=True)
    assert near(logits, out.logits[:, -1])
    assert torch.allclose(scores.softmax(-1), out.attentions[-1][:, :, -1], atol=1e-5)


def test_what_is_dropped_is_not_seen_and_what_is_kept_stays_in_its_place() -> None:
    model = tiny()
    run = bare.BareStepper(model)
    run.feed(IDS[:, :20])
    kept = [0, 1, *range(12, 20)]
    run.keep(kept)
    assert (run.length, run.dropped) == (20, 10)
    found = run.feed(IDS[:, 20:23], keep=3)
    mask = torch.ones(23, 23, dtype=torch.bool).tril()
    mask[20:, 2:12] = False  # the later tokens see only what was kept
    with torch.inference_mode():
        expected = model.module(IDS[:, :23], attention_mask=mask[None, None]).logits[:, 20:]
    assert near(found, expected)
    run.rollback(13)
    with pytest.raises(OutOfRange, match="10 of 10 were dropped"):
        run.rollback(1)
    with pytest.raises(OutOfRange, match="must rise"):
        bare.BareStepper(model).keep([0])


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 1), ("llama", 2), ("qwen3", 4)])
def test_the_bytes_of_the_cache_are_those_of_the_formula(family: str, kv_heads: int) -> None:
    from transformers.cache_utils import DynamicCache

    model = tiny(family, layers=3, kv_heads=kv_heads)
    run, theirs = bare.BareStepper(model, 2), DynamicCache()
    run.feed(IDS[:, :12].expand(2, -1))
    with torch.inference_mode():
        model.module(IDS[:, :12].expand(2, -1), past_key_values=theirs, use_cache=True)
    formula = 2 * 3 * kv_heads * (32 // 4) * 12 * 2 * 4  # keys and values, L, K, E, positions, rows, bytes
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in theirs.layers) == formula
    room = run.keys.shape[3]
    assert run.keys.nbytes + run.values.nbytes == formula // 12 * room


def test_bfloat16_is_as_near_to_float32_as_transformers_is() -> None:
    import copy

    model = tiny()
    half = model.with_module(copy.deepcopy(model.module).to(torch.bfloat16))
    exact, theirs = whole(model, IDS), whole(half, IDS).float()
    ours = torch.stack(
        [r for run in [steps(half, backend="bare")] for r in (run.feed(IDS[:, t : t + 1]) for t in range(60))], 1
    )
    assert float((ours - exact).square().mean()) < float((theirs - exact).square().mean())


def test_what_does_not_fit_falls_back_or_is_refused() -> None:
    model = tiny()
    U, S, Vt = torch.linalg.svd(model.matrix("blocks.0.mlp.up"), full_matrices=False)
    from kobza.models.model import Change

    factored = model.replace({"blocks.0.mlp.up": Factors(U * S, Vt)}, change=Change("x"))
    assert type(steps(factored)).__name__ == "Stepper"
    with pytest.raises(BadValue, match="not plain linear layers"):
        steps(factored, backend="bare")
    with hooked(model, [Hook("resid_post.1", torch.zeros_like)]):
        run = steps(model)
        assert type(run).__name__ == "Stepper"
        run.feed(IDS)
    assert type(steps(model)).__name__ == "BareStepper"
    assert "family 'gpt2'" in bare.misfit(tiny("gpt2"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_that_computes_something_else_is_found_by_trying_it(dtype: torch.dtype) -> None:
    model = tiny()
    model.module.to(dtype)
    assert bare.misfit(model) == ""
    other = tiny()
    other.module.to(dtype)
    plain = other.module.model.norm.forward
    other.module.model.norm.forward = lambda states: 1.3 * plain(states)
    assert bare.misfit(other) == "its logits differ from the module's"


def test_a_scaled_rotation_is_honored() -> None:
    from transformers import AutoModelForCausalLM

    model = tiny()
    config = model.config.to_dict() | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
                                                           "original_max_position_embeddings": 512}}  # fmt: skip
    twin = AutoModelForCausalLM.from_config(type(model.config)(**config))
    twin.load_state_dict(model.module.state_dict())
    scaled = model.with_module(twin)
    assert not near(whole(scaled, IDS), whole(model, IDS))
    assert near(steps(scaled, backend="bare").feed(IDS, keep=60), whole(scaled, IDS))


def test_backends_are_chosen_by_name_and_given_back() -> None:
    model = tiny()
    with using("transformers"):
        assert type(steps(model)).__name__ == "Stepper"
    assert type(steps(model)).__name__ == "BareStepper"
    with pytest.raises(UnknownName, match="no backend is named 'bear'. Nearest: 'bare'"):
        steps(model, backend="bear")
    with pytest.raises(UnknownName), using("nothing"):
        pass


@every_kind
def test_what_does_not_fit_the_run_is_refused_with_both_values(family: str, backend: str) -> None:
    model = tiny(family, context=16)
    run = steps(model, backend=backend)
    run.feed(IDS[:, :10])
    with pytest.raises(OutOfRange, match="17 positions exceed the 16"):
        run.feed(IDS[:, :7])
    with pytest.raises(OutOfRange, match="11 of 10"):
        run.rollback(11)
    with pytest.raises(OutOfRange, match="rows \\[1\\] of a run of 1"):
        run.select([1])
    with pytest.raises(OutOfRange, match="batch 0"):
        steps(model, 0, backend=backend)
    assert isinstance(run.fork().length, int)


def test_buffers_that_contradict_each_other_are_refused_by_the_loops() -> None:
    if not bare.native.compiled:
        pytest.skip("no compiler: the loops are not there")
    import numpy as np

    with pytest.raises(ValueError, match="do not fit"):
        bare.native.kernels.times(0, False, np.zeros(5, np.float32), np.zeros(8, np.float32), 2)
    empty = np.zeros(0, np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        bare.native.kernels.blocks(np.zeros(15, np.int64), np.ones(11, np.int64), empty, empty, empty, empty, empty,
                                   np.zeros(1, np.int64), None, None, 1, 0, 0, 1, 1e-5, 1.0)  # fmt: skip


@pytest.mark.real
def test_the_real_model_steps_within_a_ten_thousandth(smollm2: Any) -> None:
    ids = torch.tensor([smollm2.tokenizer.encode("The kobza is a plucked instrument of the lute family, and ")])
    expected = whole(smollm2, ids)
    for is_native in (True, False):
        run = bare.BareStepper(smollm2, is_native=is_native)
        assert float((run.feed(ids[:, :-6], keep=1) - expected[:, -7]).abs().max()) < 1e-4
        assert float((run.feed(ids[:, -6:], keep=6) - expected[:, -6:]).abs().max()) < 1e-4


@pytest.mark.real
def test_the_real_model_in_bfloat16_fits_the_bare_step(smollm2: Any) -> None:
    import copy

    assert bare.misfit(smollm2.with_module(copy.deepcopy(smollm2.module).to(torch.bfloat16))) == ""


@pytest.mark.real
def test_llama_cpp_steps_as_its_own_whole_run(smollm2: Any) -> None:
    pytest.importorskip("llama_cpp", reason="the extra 'llama' is not installed")
    ids = smollm2.tokenizer.encode("The kobza is a plucked instrument of the lute family, and it is")
    run: Steps = steps(smollm2, backend="llama")
    first = run.feed([ids])
    twin = run.fork()
    run.feed([[5, 6, 7]])
    run.rollback(3 + 4)
    assert float((run.feed([ids[-4:]]) - first).abs().max()) < 0.5  # 8-bit activations, other batches
    assert torch.equal(twin.feed([[9]]).argmax(-1), run.feed([[9]]).argmax(-1))
    run.select([0, 0])
    rows = run.feed([[11], [12]])
    assert not torch.equal(rows[0], rows[1])
    exact = whole(smollm2, torch.tensor([ids]))[:, -1]
    assert int(first.argmax()) == int(exact.argmax())
    with pytest.raises(BadValue, match="reads out no layer"):
        run.feed_layers([[1], [1]], [3])
    held: Any = twin._context  # type: ignore[attr-defined]
    del twin
    assert held.ctx is None  # its cache went with the run
    edited = smollm2.fork(change=__import__("kobza.models.model", fromlist=["Change"]).Change("x"))
    with pytest.raises(BadValue, match="was edited"):
        steps(edited, backend="llama")
