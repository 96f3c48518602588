"""Steering: the direction is the mean difference, its hooks act alike in one pass, in decoding and in measures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core import techniques
from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.interventions import steer
from kobza.models.hooks import hooked
from kobza.models.model import Change
from kobza.models.tiny import tiny as make

SIDES = {"positive": ["the banks{ of| in}"], "negative": ["the winds{ of| in}"]}


def logits(model: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=torch.tensor([model.tokenizer.encode(text, start=True)])).logits
    return found


def test_choices_in_braces_are_spelled_out() -> None:
    assert steer.spelled_out(["{a|b}{c|d}"]) == ["ac", "ad", "bc", "bd"]
    assert steer.spelled_out(["{a}"]) == ["{a}"], "braces without a choice are text"


def test_the_direction_is_the_difference_of_means(tiny: Any) -> None:
    plus, minus = (
        torch.stack([tiny.trace(text, "resid_post.0")["resid_post", 0][-1] for text in texts]).mean(0)
        for texts in (["the banks of", "the banks in"], ["the winds of", "the winds in"])
    )
    found = steer.direction(tiny, **SIDES, layer=0)
    torch.testing.assert_close(found.values, plus - minus, rtol=1e-5, atol=1e-6)


def test_adding_it_equals_a_bias_of_the_layer() -> None:
    """Authority: a GPT-2 whose down projection carries the direction in its bias."""
    model = make("gpt2")
    vector = steer.direction(model, **SIDES, layer=0)
    name = next(n for n in model.matrices if "0.mlp.down" in n and "bias" in n)
    biased = model.replace({name: model.matrix(name) + 3 * vector.values}, change=Change("biased"))
    with hooked(model, vector.hooks(3.0)):
        found = logits(model, "the cliffs")
    torch.testing.assert_close(found, logits(biased, "the cliffs"), rtol=1e-4, atol=1e-5)


def test_strength_0_changes_no_bit_and_nothing_is_left_behind(tiny: Any) -> None:
    vector, before = steer.direction(tiny, **SIDES), logits(tiny, "the cliffs")
    with hooked(tiny, vector.hooks(0.0)):
        assert torch.equal(logits(tiny, "the cliffs"), before)
    with pytest.raises(RuntimeError, match="stop"), hooked(tiny, vector.hooks(9.0)):
        logits(tiny, "the cliffs")
        raise RuntimeError("stop")
    assert torch.equal(logits(tiny, "the cliffs"), before)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_decoding_with_a_cache_is_steered_like_whole_passes(tiny: Any, strategy: str) -> None:
    vector = steer.direction(tiny, **SIDES, layer=1)
    generate = techniques.verb("decoding", strategy)
    with hooked(tiny, vector.hooks(4.0)):
        spoken = generate(tiny, "the cliffs", tokens=6)
        ids, logprobs = [*spoken.prompt_ids, *spoken.ids], spoken.logprobs
        with torch.inference_mode():
            whole = tiny.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    first = len(ids) - len(logprobs)
    expected = [float(whole[first + i - 1, ids[first + i]]) for i in range(len(logprobs))]
    assert logprobs == pytest.approx(expected, abs=1e-4)


def test_the_yardstick_sees_it(tiny: Any) -> None:
    options = {**SIDES, "held_out": ["the cliffs"], "text": "topics", "limit": 300, "controls": 1}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    rows = steer.run(tiny, **options, strengths=(0.0, 8.0)).tables[0]
    plain = techniques.verb("measures", "bits_per_byte")(tiny, "topics", limit=300).value
    assert rows[0]["bits_per_byte"] == pytest.approx(plain, rel=1e-6)
    assert rows[1]["bits_per_byte"] != pytest.approx(plain, rel=1e-3)


def test_the_table_is_what_hooks_give(tiny: Any) -> None:
    vector = steer.direction(tiny, **SIDES, layer=1)
    table = steer.run(
        tiny, positive=("the banks{ of| in}",), negative=("the winds{ of| in}",), held_out=("the cliffs", "the waves"),
        layer=1, metric="logit:k", strengths=(-1.0, 2.0),
    ).tables[0]  # fmt: skip
    token = tiny.tokenizer.encode("k")[0]
    for row in table:
        with hooked(tiny, vector.hooks(row["strength"])):
            found = [float(logits(tiny, text)[0, -1, token]) for text in ("the cliffs", "the waves")]
        assert row["logit:k"] == pytest.approx(sum(found) / 2, abs=1e-5)


def test_a_kept_direction_is_read_back(tiny: Any, tmp_path: Path) -> None:
    vector = steer.direction(tiny, **SIDES)
    again = steer.Vector.load(vector.save(tmp_path / "v.safetensors"))
    assert torch.equal(again.values, vector.values)
    assert (again.layer, again.made_from) == (vector.layer, vector.made_from)


def test_without_controls_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in steer.run(tiny, controls=0).title
    assert "uncontrolled" not in steer.run(tiny).title


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"held_out": ("This song is lovely, I",)}, BadValue, "is not held out"),
        ({"negative": steer.POSITIVE}, BadValue, "are the same"),
        ({"layer": 2}, OutOfRange, "layers 0 .. 1"),
        ({"strengths": (1.0,)}, OutOfRange, "at least two"),
        ({"metric": "loss"}, BadValue, "says nothing"),
        ({"where": "first"}, BadValue, "'last' or 'all'"),
        ({"held_out": ("",)}, EmptyText, "empty"),
    ],
)
def test_what_cannot_be_steered_is_refused(tiny: Any, options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        steer.run(tiny, **options)


@pytest.mark.real
def test_on_smollm2_am_and_pm_steer_held_out_times_monotonically(smollm2: Any) -> None:
    prompt = "the time displayed is {{{}}}:00 {}. therefore, it is currently the"
    result = steer.run(
        smollm2, positive=(prompt.format("1|3|5", "am"),), negative=(prompt.format("1|3|5", "pm"),),
        held_out=(prompt.format("8|9", "am"), prompt.format("8|9", "pm")), metric="diff: morning| evening", layer=24,
    )  # fmt: skip
    assert result.reading("monotone").value == 1
    assert result.reading("slope").value > 1.5 * result.reading("control").high
