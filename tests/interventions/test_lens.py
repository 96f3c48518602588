"""The logit lens: the last stream is the model itself, and ranks are counted right."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched, OutOfRange
from kobza.interventions import lens
from kobza.models.tiny import tiny as make

PROMPT = "the banks of it"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "opt", "cohere"])
def test_the_last_stream_gives_the_models_own_probabilities(family: str) -> None:
    model = make(family)
    ids = model.tokenizer.encode(PROMPT, start=True)
    with torch.inference_mode():
        logs = model.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    rows = [row for row in lens.run(model, prompt=PROMPT).tables[0] if row["stream"] == model.layers]
    assert [row["rank"] for row in rows] == [0] * len(ids)
    assert [row["prob"] for row in rows] == pytest.approx(logs.max(-1).values.exp().tolist(), rel=1e-5)
    entropies = (-(logs.exp() * logs).sum(-1) / torch.log(torch.tensor(2.0))).tolist()
    assert [row["entropy"] for row in rows] == pytest.approx(entropies, rel=1e-5)


def test_the_first_stream_is_the_embedding_through_norm_and_head(tiny: Any) -> None:
    ids = tiny.tokenizer.encode(PROMPT, start=True)
    state = tiny.matrix("embed.in")[ids[-1]]
    normed = state / (state.square().mean() + tiny.config.rms_norm_eps).sqrt() * tiny.matrix("norm")
    expected = (tiny.matrix("embed.out") @ normed).softmax(0)
    row = lens.run(tiny, prompt=PROMPT, token="k", at="-1").tables[0][0]
    token = tiny.tokenizer.encode("k")[0]
    assert row["prob"] == pytest.approx(float(expected[token]), rel=1e-5)
    assert row["rank"] == int((expected > expected[token]).sum())


def test_regression_onto_a_linear_image_recovers_it() -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    true = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / 3
    weights, bias = lens._regression(x, x + x @ true + 2)
    torch.testing.assert_close(weights, true / (1 + lens.RIDGE), rtol=0.2, atol=0.05)
    torch.testing.assert_close(bias, torch.full((8,), 2.0), rtol=0.1, atol=0.1)


def test_the_tuned_lens_is_nearer_to_the_model_on_unread_tokens(tiny: Any) -> None:
    result = lens.run(tiny, prompt=PROMPT, kind="tuned", sample=1500, steps=60, rate=1e-3)
    for row in result.tables[1]:
        assert row["tuned"] < row["logit"]
        assert row["tuned"] < row["regression"] * 1.02


def test_the_last_stream_of_the_tuned_lens_is_the_model_itself(tiny: Any) -> None:
    plain, tuned = (
        lens.run(tiny, prompt=PROMPT, kind=kind, sample=200, steps=2).tables[0] for kind in ("logit", "tuned")
    )
    last = [[row["prob"] for row in table if row["stream"] == 2] for table in (plain, tuned)]
    first = [[row["prob"] for row in table if row["stream"] == 0] for table in (plain, tuned)]
    assert last[0] == last[1]
    assert first[0] != first[1]


def test_positions_may_be_named_by_their_token(tiny: Any) -> None:
    rows = lens.run(tiny, prompt=PROMPT, at="'an'").tables[0]
    assert {row["token"] for row in rows} == {"an"}
    assert len(rows) == tiny.layers + 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"token": "the banks"}, BadValue, "is no single token"),
        ({"at": "40"}, OutOfRange, "positions 0 .. 10"),
        ({"at": "'zebra'"}, NothingMatched, "no token of the prompt"),
        ({"top": 0}, OutOfRange, "top=0"),
    ],
)
def test_what_is_not_there_is_refused(tiny: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        lens.run(tiny, prompt=PROMPT, **options)


@pytest.mark.real
def test_on_smollm2_paris_comes_up_in_the_last_layers(smollm2: Any) -> None:
    rows = lens.run(smollm2, prompt="The capital of France is", token=" Paris", at="last").tables[0]
    ranks = [row["rank"] for row in rows]
    assert ranks[-1] == 0
    assert min(ranks[:15]) > 100
