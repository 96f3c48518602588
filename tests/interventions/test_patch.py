"""Patching: nothing before the first difference, everything at the end, and the same as one forward pass per cell."""

from typing import Any

import pytest

from kobza.core.errors import BadValue, OutOfRange
from kobza.interventions import patch
from kobza.models.tiny import tiny as make

CLEAN, CORRUPT = "the winds of it", "the winks of it"  # one token differs: d, k


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def differing(model: Any) -> list[int]:
    a, b = (model.tokenizer.encode(text, start=True) for text in (CLEAN, CORRUPT))
    assert len(a) == len(b)
    return [at for at, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]


def by_place(result: Any, metric: str) -> dict[str, float]:
    return {row["place"]: row[f"{metric} change"] for row in result.tables[0]}


@pytest.mark.parametrize("how", ["planned", "naive"])
def test_cells_before_the_first_difference_are_exactly_0(model: Any, how: Any) -> None:
    first = differing(model)[0]
    changes = by_place(patch.run(model, clean=CLEAN, corrupt=CORRUPT, how=how, controls=0), "logit")
    early = [v for place, v in changes.items() if int(place.split("@")[1]) < first]
    assert early and all(value == 0 for value in early)
    assert any(value != 0 for value in changes.values())


@pytest.mark.parametrize("over", ["resid_pre.*@*", "z.*.*", "mlp_out.*@*", "neuron.1.*", "resid_post.*@-1"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_planned_equals_naive(model: Any, over: str, direction: Any) -> None:
    options = {"clean": CLEAN, "corrupt": CORRUPT, "over": over, "direction": direction, "controls": 0}
    planned, naive = (by_place(patch.run(model, **options, how=how), "logit") for how in ("planned", "naive"))
    assert [planned[k] for k in planned] == pytest.approx([naive[k] for k in planned], abs=1e-5)


def test_patching_the_whole_input_gives_the_clean_answer(model: Any) -> None:
    result = patch.run(model, clean=CLEAN, corrupt=CORRUPT, over="resid_pre.0; resid_post.1@-1", controls=0)
    span = result.reading("clean").value - result.reading("corrupt").value
    assert result.tables[0]["logit change"] == pytest.approx([span, span], abs=1e-5)


def test_noising_is_denoising_with_the_prompts_exchanged(model: Any) -> None:
    token = "logit:k"
    a = patch.run(model, clean=CLEAN, corrupt=CORRUPT, metric=token, direction="noise")
    b = patch.run(model, clean=CORRUPT, corrupt=CLEAN, metric=token)
    assert by_place(a, token) == by_place(b, token)


def test_prompts_of_unequal_length_are_refused_with_their_tokens(tiny: Any) -> None:
    with pytest.raises(BadValue, match=r"11 and 10 tokens(.|\n)*'b' 'an' 'k'"):
        patch.run(tiny, clean="the banks of it", corrupt="the tanks of it")


def test_equal_prompts_are_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="are the same"):
        patch.run(tiny, clean=CLEAN, corrupt=CLEAN)


def test_the_control_puts_random_vectors_of_equal_norm(tiny: Any) -> None:
    options = {"clean": CLEAN, "corrupt": CORRUPT}
    result = patch.run(tiny, **options)
    assert "places do no more than theirs" in result.reading("control").note
    assert result.reading("control").value != patch.run(tiny, **options, seed=1).reading("control").value
    assert "uncontrolled" in patch.run(tiny, **options, controls=0).title


def test_the_picture_names_positions_by_their_tokens(tiny: Any) -> None:
    (figure,) = patch.run(tiny, clean=CLEAN, corrupt=CORRUPT).tables[0].figures
    assert (figure.x, figure.y) == ("position", "layer")
    assert figure.data["columns"][0] == "0 <s>"


def test_prompts_of_unequal_length_are_aligned_at_their_ends_when_asked(tiny: Any) -> None:
    options: Any = {"clean": "the banks of it", "corrupt": "the tanks of it", "align": "end", "metric": "logit:k"}
    result = patch.run(tiny, **options, over="resid_pre.*@*; resid_post.1@-1", controls=0)
    span = result.reading("clean").value - result.reading("corrupt").value
    changes = by_place(result, "logit:k")
    assert changes["resid_post.1@9"] == pytest.approx(span, abs=1e-5), "the last position stands for the last"
    assert len(changes) == 2 * 10 + 1
    naive = patch.run(tiny, **options, over="z.*.*@-1", controls=0, how="naive").tables[0]
    planned = patch.run(tiny, **options, over="z.*.*@-1", controls=0).tables[0]
    assert planned["logit:k"] == pytest.approx(naive["logit:k"], abs=1e-5)


def test_a_place_that_the_shorter_prompt_lacks_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="shorter prompt"):
        patch.run(tiny, clean="the tanks of it", corrupt="the banks of it", align="end", over="resid_pre.0@0")


def test_pairs_patch_two_places_at_once(model: Any) -> None:
    options: Any = {"clean": CLEAN, "corrupt": CORRUPT, "over": "z.0.*+z.1.*", "metric": "logit:k", "controls": 0}
    planned, naive = (by_place(patch.run(model, **options, how=how), "logit:k") for how in ("planned", "naive"))
    assert len(planned) == 16
    assert [planned[k] for k in planned] == pytest.approx([naive[k] for k in planned], abs=1e-5)


def test_several_pairs_give_the_mean_and_bounds(tiny: Any) -> None:
    pairs = [(CLEAN, CORRUPT), (CORRUPT, CLEAN)]
    single = [by_place(patch.run(tiny, clean=a, corrupt=b, metric="logit:k"), "logit:k") for a, b in pairs]
    both = patch.run(tiny, clean=f"{CLEAN}||{CORRUPT}", corrupt=f"{CORRUPT}||{CLEAN}", metric="logit:k")
    for row in both.tables[0]:
        values = [one[row["place"]] for one in single]
        assert row["logit:k change"] == pytest.approx(sum(values) / 2)
        assert row["low"] == pytest.approx(min(values))
        assert row["high"] == pytest.approx(max(values))
    with pytest.raises(BadValue, match="2 clean prompts and 1 corrupt"):
        patch.run(tiny, clean=f"{CLEAN}||{CORRUPT}", corrupt=CORRUPT)


@pytest.mark.real
def test_on_smollm2_am_carries_the_time_of_day_up_to_layer_21(smollm2: Any) -> None:
    prompt = "the time displayed is 9:00 {}. therefore, it is currently the"
    result = patch.run(
        smollm2, clean=prompt.format("am"), corrupt=prompt.format("pm"), over="resid_pre.*@' am'; resid_pre.*@-1",
        metric="diff: morning| evening", controls=0,
    )  # fmt: skip
    changes = by_place(result, "diff: morning| evening")
    span = result.reading("clean").value - result.reading("corrupt").value
    am, last = sorted({int(place.split("@")[1]) for place in changes})
    assert changes[f"resid_pre.0@{am}"] / span == pytest.approx(1.0, abs=0.01)
    assert changes[f"resid_pre.21@{am}"] / span > 0.9
    assert changes[f"resid_pre.24@{am}"] / span < 0.1
    assert changes[f"resid_pre.21@{last}"] / span < 0.2
    assert changes[f"resid_pre.24@{last}"] / span > 0.9
