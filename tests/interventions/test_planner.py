"""The plan gives what one whole forward pass per cell gives, in every family; and it leaves no trace."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, UnknownName
from kobza.interventions.base import Edit, metrics, places, prompt_ids
from kobza.interventions.planner import Run
from kobza.models.tiny import tiny as make

PROMPT = "the banks of the wide river and the steep cliffs"
SIX = ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt"]
EVERYWHERE = (
    "embed@2; resid_pre.*@-2; resid_post.*; attn_out.*@-1; mlp_out.*; z.*.1; z.*.2@3; q.1.0; k.1.0@3; v.0.1; "
    "neuron.*.5; neuron.1.7@-1"
)


def cells(model: Any, ids: list[int], spec: str, value: float = 0.0) -> list[Any]:
    return [(Edit(p.site, p.positions, torch.tensor(value)),) for p in places(model, ids, spec)]


@pytest.fixture(params=[*SIX, "phi", "granite", "olmo2"])
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param, layers=3)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_planned_equals_naive_at_every_site_and_position(model: Any, value: float) -> None:
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    read = metrics(model, "prob,logit,top1,loss", run.top)
    asked = cells(model, ids, EVERYWHERE, value)
    asked += [(asked[0][0], asked[4][0]), (asked[-1][0], asked[-2][0]), (asked[-2][0], asked[-2][0])]
    planned, naive = run.outcome(asked, read), run.outcome(asked, read, how="naive")
    torch.testing.assert_close(planned.values, naive.values, rtol=1e-5, atol=3e-6)
    assert planned.tops.tolist() == naive.tops.tolist()
    assert float((naive.values - run.clean(read).values).abs().max()) > 0.01, "the edits did nothing"


@pytest.mark.parametrize("where", ["", "@-1"])
def test_every_neuron_of_every_layer_planned_equals_naive(tiny: Any, where: str) -> None:
    ids = prompt_ids(tiny, "the banks")
    run = Run(tiny, ids)
    read = metrics(tiny, "prob", run.top)
    asked = cells(tiny, ids, f"neuron.*.*{where}")
    planned, naive = run.outcome(asked, read), run.outcome(asked, read, how="naive")
    torch.testing.assert_close(planned.values, naive.values, rtol=0, atol=1e-6)


def test_the_batch_size_does_not_matter(tiny: Any) -> None:
    ids = prompt_ids(tiny, PROMPT)
    run = Run(tiny, ids)
    read = metrics(tiny, "logit", run.top)
    asked = cells(tiny, ids, "resid_pre.*@*")
    torch.testing.assert_close(
        run.outcome(asked, read, batch=3).values, run.outcome(asked, read).values, rtol=0, atol=1e-5
    )


def test_the_memory_option_bounds_the_rows_run_together(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt_ids(tiny, PROMPT)
    run = Run(tiny, ids)
    asked = cells(tiny, ids, "neuron.*.*")
    seen: list[int] = []
    block = run._block
    monkeypatch.setattr(
        run, "_block", lambda layer, stream, first: seen.append(len(stream)) or block(layer, stream, first)
    )
    small = run.outcome(asked, metrics(tiny, "logit", run.top), memory=1)
    assert max(seen) <= 2**20 // run.row_bytes() < len(asked)
    seen.clear()
    whole = run.outcome(asked, metrics(tiny, "logit", run.top))
    assert max(seen) > 2**20 // run.row_bytes()
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*SIX, "cohere", "granite", "phi"])
def test_logits_of_some_tokens_are_those_of_all(family: str) -> None:
    from kobza.models.states import final_states, head

    model = make(family)
    states = final_states(model, torch.tensor([[0, 40, 50]]))
    with torch.inference_mode():
        torch.testing.assert_close(head(model, states, tokens=[7, 3]), head(model, states)[..., [7, 3]])


INSIDE = (
    "q_rot.1.0@3; k_rot.0.1; scores.1.2@-1; pattern.*.0; head_out.0.1; gate.1.5; up.0.7@-2; norm1_scale.1; "
    "norm2_scale.0"
)


@pytest.mark.parametrize("family", [*SIX, "phi", "granite", "olmo2"])
def test_planned_equals_naive_inside_attention_and_at_norms(family: str) -> None:
    model = make(family, layers=3)
    ids = prompt_ids(model, "the banks of")
    run = Run(model, ids)
    names = {text.strip().split(".")[0] for text in INSIDE.split(";")} & set(model.family.points)
    asked = cells(model, ids, ";".join(t for t in INSIDE.split(";") if t.strip().split(".")[0] in names), 0.3)
    read = metrics(model, "logit", run.top)
    planned, naive = run.outcome(asked, read), run.outcome(asked, read, how="naive")
    torch.testing.assert_close(planned.values, naive.values, rtol=1e-5, atol=1e-5)
    assert int((naive.values != run.clean(read).values).sum()) > len(asked) // 2


def test_putting_in_what_is_there_changes_nothing_bit_for_bit(model: Any) -> None:
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    read = metrics(model, "logit,loss", run.top)
    own = [
        (Edit(p.site, p.positions, run.part(Edit(p.site, p.positions, torch.tensor(0.0)))),)
        for p in places(model, ids, "resid_pre.*@*; z.*.*; neuron.1.3; attn_out.*@2")
    ]
    clean = run.clean(read)
    assert torch.equal(run.outcome(own, read).values, clean.values.expand(len(own), -1))
    assert torch.equal(run.outcome(own[:9], read, how="naive").values[:, 0], clean.values.expand(9, -1)[:, 0])


def test_the_recorded_values_are_those_of_the_trace(model: Any) -> None:
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    names = ["resid_pre", "resid_post", "z", "neuron", "attn_out", "mlp_out", "v"]
    trace = model.trace(ids, [f"{name}.1" for name in names])
    for name in names:
        torch.testing.assert_close(run.value(name, 1), trace[name, 1], rtol=1e-5, atol=1e-6)


def test_the_clean_run_is_the_models_own(model: Any) -> None:
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    with torch.inference_mode():
        own = model.module(input_ids=torch.tensor([ids])).logits[0]
    assert torch.equal(run.last, own[-1].float())
    loss = run.clean(metrics(model, "loss", run.top)).values[0, 0]
    expected = torch.nn.functional.cross_entropy(own[:-1].double(), torch.tensor(ids[1:]))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_a_replaced_last_stream_decides_the_logits(tiny: Any) -> None:
    """resid_post of the last layer at the last position, taken from another run, gives that run's logits."""
    a, b = (Run(tiny, prompt_ids(tiny, text)) for text in ("the banks", "the tanks"))
    site = places(tiny, a.ids, "resid_post.1@-1")[0]
    cell = (Edit(site.site, site.positions, b.part(Edit(site.site, (len(b.ids) - 1,), torch.tensor(0.0)))),)
    read = metrics(tiny, "logit", b.top)
    assert float(a.outcome([cell], read).values) == pytest.approx(float(b.clean(read).values), abs=1e-5)


def test_what_cannot_be_started_in_the_middle_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny, prompt_ids(tiny, PROMPT))
    block = run.blocks[0].forward
    monkeypatch.setattr(run.blocks[0], "forward", lambda stream, **rest: block(stream, **rest) + 1)
    with pytest.raises(BadValue, match="other logits when it is started in the middle"):
        run.outcome(cells(tiny, run.ids, "resid_pre.1"), metrics(tiny, "logit", run.top))


def test_a_site_behind_all_layers_is_refused_by_the_plan(tiny: Any) -> None:
    run = Run(tiny, prompt_ids(tiny, PROMPT))
    with pytest.raises(BadValue, match="lies behind all layers"):
        run.outcome(cells(tiny, run.ids, "final"), metrics(tiny, "logit", run.top))


@pytest.mark.parametrize("how", ["planned", "naive"])
def test_hooks_are_gone_after_an_error(tiny: Any, how: Any) -> None:
    run = Run(tiny, prompt_ids(tiny, PROMPT))
    bad = Edit(places(tiny, run.ids, "z.1.0")[0].site, (2,), torch.zeros(5))
    with pytest.raises(RuntimeError):
        run.outcome([(bad,)], metrics(tiny, "logit", run.top), how=how)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.module.modules())


def test_a_site_the_model_lacks_is_named(tiny: Any) -> None:
    with pytest.raises(UnknownName, match="resid_pre"):
        places(tiny, [1, 2], "resid_pr.1")


def test_a_run_keeps_the_logits_of_its_last_position_only(tiny: Any) -> None:
    last = Run(tiny, prompt_ids(tiny, PROMPT)).last
    assert last.untyped_storage().nbytes() == 4 * tiny.vocabulary
