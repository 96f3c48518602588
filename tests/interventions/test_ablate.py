"""Ablation: a planted neuron is singled out, groups act together, controls are there or their absence is said."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched, OutOfRange, UnknownName
from kobza.core.table import Table
from kobza.interventions import ablate
from kobza.models.model import Change

PROMPT = "the banks of it"


def wired(model: Any, neurons: list[int], strength: float) -> Any:
    """A fork in which only the given neurons of the last layer write, all of them toward one token."""
    down = torch.zeros_like(model.matrix("blocks.1.mlp.down"))
    token = model.tokenizer.encode("k")[0]
    for neuron in neurons:
        down[:, neuron] = strength * model.matrix("embed.out")[token]
    return model.replace({"blocks.1.mlp.down": down}, change=Change("wired"))


def test_a_single_wired_neuron_is_singled_out(tiny: Any) -> None:
    model = wired(tiny, [17], 3.0)
    table = ablate.run(model, prompt=PROMPT, over="neuron.1.*", metric="logit:k", top=1).tables[0]
    assert table[0]["short"] == "N17@L1"
    assert abs(table[0]["logit:k change"]) > 0.01
    assert all(change == 0 for change in table["logit:k change"][1:])


def test_the_control_of_a_wired_neuron_is_nothing(tiny: Any) -> None:
    result = ablate.run(wired(tiny, [17], 3.0), prompt=PROMPT, over="neuron.1.*", metric="logit:k", top=1)
    assert abs(result.reading("together").value) > 0.01
    assert result.reading("control").value == 0


@pytest.mark.parametrize("metric", ["prob", "logit", "top1", "loss", "diff:k|a"])
@pytest.mark.parametrize("over", ["z.*.*", "neuron.1.*@-1", "mlp_out.*", "attn_out.*@*"])
def test_planned_equals_naive(tiny: Any, metric: str, over: str) -> None:
    tables = [
        ablate.run(tiny, prompt=PROMPT, over=over, metric=metric, how=how).tables[0] for how in ("planned", "naive")
    ]
    planned, naive = ({row["place"]: row[metric] for row in table} for table in tables)
    assert planned.keys() == naive.keys()
    assert [planned[k] for k in planned] == pytest.approx([naive[k] for k in planned], abs=2e-6, rel=1e-5)


def test_zero_equals_removing_the_column(tiny: Any) -> None:
    """Authority: the model whose down projection lacks the neuron's column."""
    down = tiny.matrix("blocks.0.mlp.down").clone()
    down[:, 9] = 0
    without = tiny.replace({"blocks.0.mlp.down": down}, change=Change("without"))
    ids = torch.tensor([tiny.tokenizer.encode(PROMPT, start=True)])
    with torch.inference_mode():
        expected = without.module(input_ids=ids).logits[0, -1].softmax(-1)
        top = int(tiny.module(input_ids=ids).logits[0, -1].argmax())
    row = ablate.run(tiny, prompt=PROMPT, over="neuron.0.9", controls=0).tables[0][0]
    assert row["prob"] == pytest.approx(float(expected[top]), abs=1e-6)


def test_value_puts_in_the_number_and_zero_is_value_0(tiny: Any) -> None:
    zero = ablate.run(tiny, prompt=PROMPT, over="neuron.1.*", kind="zero").tables[0]
    value = ablate.run(tiny, prompt=PROMPT, over="neuron.1.*", kind="value", value=0.0).tables[0]
    other = ablate.run(tiny, prompt=PROMPT, over="neuron.1.*", kind="value", value=2.0).tables[0]
    assert zero["prob"] == value["prob"]
    assert zero["prob"] != other["prob"]


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_mean_and_resample_take_their_values_from_the_text(tiny: Any, kind: Any) -> None:
    a, b = (ablate.run(tiny, prompt=PROMPT, kind=kind, text=text).tables[0] for text in ("topics", "ukrainian"))
    assert sorted(a["prob"]) != sorted(b["prob"])


def test_without_controls_the_result_says_so(tiny: Any) -> None:
    result = ablate.run(tiny, prompt=PROMPT, controls=0)
    assert "uncontrolled" in result.title
    assert "uncontrolled" in result.tables[0].title
    assert "uncontrolled" not in ablate.run(tiny, prompt=PROMPT).title
    assert "uncontrolled" in ablate.run(tiny, prompt=PROMPT, over="z.0.1").title, "one place leaves no other to draw"


def test_the_picture_has_named_axes_and_a_caption_that_can_be_run_again(tiny: Any) -> None:
    result = ablate.run(tiny, prompt=PROMPT, over="z.*.*")
    (figure,) = result.tables[0].figures
    assert (figure.kind, figure.x, figure.y) == ("image", "head", "layer")
    assert repr(PROMPT) in figure.caption
    how = result.made_by["how"]
    names = ("prompt", "over", "kind", "value", "text", "metric", "top", "controls", "how", "batch", "seed")
    assert ablate.run(tiny, **{name: how[name] for name in names}).tables[0] == result.tables[0]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"over": "neurn.1.*"}, UnknownName, "neuron"),
        ({"over": "neuron.9.*"}, OutOfRange, "layers 0 .. 1"),
        ({"over": "neuron.1.96"}, OutOfRange, "0 to 95"),
        ({"over": "z.1.1@99"}, OutOfRange, "positions 0 .. 10"),
        ({"over": "z.1.1@' am'"}, NothingMatched, "no token of the prompt is ' am'"),
        ({"over": "z 1"}, BadValue, "is no place in a run"),
        ({"metric": "probb"}, BadValue, "is no metric"),
        ({"metric": "prob:the banks"}, BadValue, "is no single token"),
        ({"metric": "diff:k"}, BadValue, "names 1 tokens"),
        ({"prompt": ""}, ValueError, "prompt is empty"),
    ],
)
def test_what_is_not_there_is_refused(tiny: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ablate.run(tiny, **{"prompt": PROMPT, **options})


@pytest.mark.real
@pytest.mark.parametrize("over", ["neuron.0.700", "neuron.20.1189@-1", "neuron.29.378", "z.18.6", "mlp_out.11@-1"])
@pytest.mark.parametrize("kind", ["zero", "mean", "value"])
def test_planned_equals_naive_on_smollm2(smollm2: Any, over: str, kind: Any) -> None:
    options = {"prompt": "she sells sea shells by the", "over": over, "kind": kind, "value": 0.5, "controls": 0}
    planned, naive = (ablate.run(smollm2, **options, how=how).tables[0][0]["prob"] for how in ("planned", "naive"))
    assert planned == pytest.approx(naive, abs=2e-6)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["zero", "mean", "value"])
@pytest.mark.parametrize("at", ["", "@-1"])
def test_planned_equals_naive_in_every_layer_of_smollm2(smollm2: Any, kind: Any, at: str) -> None:
    over = f"mlp_out.*{at}; z.*.4{at}; neuron.*.700{at}"
    options = {"prompt": "she sells sea shells", "over": over, "kind": kind, "value": 0.5, "controls": 0}
    planned, naive = (ablate.run(smollm2, **options, how=how, top=1).tables[0] for how in ("planned", "naive"))
    assert len(planned) == 90
    order = {row["place"]: row["prob"] for row in naive}
    assert max(abs(row["prob"] - order[row["place"]]) for row in planned) < 2e-6


def test_places_joined_by_a_plus_are_removed_together_and_products_are_all_pairs(tiny: Any) -> None:
    pairs = ablate.run(tiny, prompt=PROMPT, over="z.0.*+z.1.*", metric="logit:k").tables[0]
    assert len(pairs) == 16
    assert pairs.figures[0].data["rows"] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    same = ablate.run(tiny, prompt=PROMPT, over="z.0.2+z.0.2; z.0.2", metric="logit:k", controls=0).tables[0]
    assert same["place"] == ["z.0.2", "z.0.2"]
    assert same["logit:k"][0] == same["logit:k"][1]


def test_a_block_is_its_attention_and_its_mlp(tiny: Any) -> None:
    table = ablate.run(tiny, prompt=PROMPT, over="block.*; attn_out.1+mlp_out.1", metric="logit:k", controls=0).tables[
        0
    ]
    found = {row["short"]: row["logit:k"] for row in table}
    assert found["block.1"] == found["attn_out.1+mlp_out.1"]
    stream = tiny.trace(PROMPT, ["resid_pre.1", "resid_post.1"])
    assert found.keys() == {"block.0", "block.1", "attn_out.1+mlp_out.1"}
    with torch.inference_mode():  # authority: a model of one block
        short = tiny.module.model.norm(stream["resid_pre.1"]) @ tiny.matrix("embed.out").T
    assert found["block.1"] == pytest.approx(float(short[-1, tiny.tokenizer.encode("k")[0]]), abs=1e-5)


def test_two_backup_neurons_show_nothing_alone_and_all_together(tiny: Any) -> None:
    """Planted: each of two neurons alone keeps one token far on top; only without both does it fall."""
    model = wired(tiny, [17, 18], 0.0)
    down = torch.zeros_like(model.matrix("blocks.1.mlp.down"))
    values = model.trace(PROMPT, "neuron.1")["neuron.1"][-1, 17:19]
    token = model.tokenizer.encode("k")[0]
    down[:, 17:19] = 1000 * model.matrix("embed.out")[token][:, None] / values
    model = model.replace({"blocks.1.mlp.down": down}, change=Change("two backups"))
    options: Any = {"prompt": PROMPT, "metric": "prob:k", "controls": 0}
    alone = ablate.run(model, over="neuron.1.17; neuron.1.18", **options).tables[0]
    both = ablate.run(model, over="neuron.1.17+neuron.1.18", **options).tables[0]
    assert alone["prob:k change"] == pytest.approx([0, 0], abs=1e-3)
    assert both[0]["prob:k change"] < -0.5


def test_without_crosses_logits_are_the_same_and_no_top_token_is_claimed(tiny: Any) -> None:
    options = {"prompt": PROMPT, "over": "z.*.*; mlp_out.*@-1", "metric": "logit:k,diff:k|a"}
    whole, few = (ablate.run(tiny, **options, crosses=crosses).tables[0] for crosses in (True, False))
    assert few["logit:k"] == pytest.approx(whole["logit:k"], abs=1e-5)
    assert few["diff:k|a"] == pytest.approx(whole["diff:k|a"], abs=1e-5)
    assert "top" in whole.columns
    assert "top" not in few.columns


def test_several_prompts_give_the_mean_and_an_interval_around_it(tiny: Any) -> None:
    prompts = ["the banks of it", "a wide river", "and the cliffs"]
    single = [ablate.run(tiny, prompt=p, metric="logit:k", controls=0).tables[0] for p in prompts]
    table = ablate.run(tiny, prompt="||".join(prompts), metric="logit:k").tables[0]
    for row in table:
        changes = [next(r["logit:k change"] for r in one if r["place"] == row["place"]) for one in single]
        assert row["logit:k change"] == pytest.approx(sum(changes) / 3)
        assert min(changes) - 1e-9 <= row["low"] <= row["logit:k change"] <= row["high"] <= max(changes) + 1e-9
    assert "||" in table.note


def test_prompts_of_unequal_length_need_positions_that_all_have(tiny: Any) -> None:
    with pytest.raises(BadValue, match="do not have the same positions"):
        ablate.run(tiny, prompt="the banks of it||a wide", over="mlp_out.*@*")
    table = ablate.run(tiny, prompt="the banks of it||a wide", over="mlp_out.*@-1", controls=0).tables[0]
    assert sorted(table["place"]) == ["mlp_out.0@-1", "mlp_out.1@-1"]


def test_noise_of_no_strength_changes_nothing_and_equal_seeds_add_equal_noise(tiny: Any) -> None:
    options: Any = {"prompt": PROMPT, "kind": "noise", "controls": 0}
    assert not any(ablate.run(tiny, **options, strength=0).tables[0]["prob change"])
    a, b, c = (ablate.run(tiny, **options, seed=seed).tables[0] for seed in (0, 0, 1))
    assert a["prob"] == b["prob"]
    assert a["prob"] != c["prob"]


def test_the_caption_is_a_command_that_gives_the_same_table(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import json
    import shlex

    from kobza.cli.main import main

    result = ablate.run(tiny, prompt=PROMPT, over="z.*.*@-1", kind="value", value=0.5, metric="diff:k|a", seed=3)
    assert main([*shlex.split(result.tables[0].note)[1:], "--json"]) == 0
    assert Table.from_json(json.loads(capsys.readouterr().out)["tables"][0]) == result.tables[0]


def test_a_pattern_has_no_mean_of_another_text(tiny: Any) -> None:
    with pytest.raises(BadValue, match="as many columns as the run"):
        ablate.run(tiny, prompt=PROMPT, over="pattern.1.0", kind="mean")
