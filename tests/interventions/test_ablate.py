"""Ablation: a planted neuron is singled out, groups act together, controls are there or their absence is said."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched, OutOfRange, UnknownName
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
