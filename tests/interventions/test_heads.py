"""Heads: a hand-written induction head is found exactly, together with the previous-token head it stands on."""

from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.interventions import heads
from kobza.models.tiny import tiny as make


def test_the_written_induction_head_is_found_exactly(written_induction: Any) -> None:
    table = heads.run(written_induction, length=16, count=1).tables[0]
    assert table[0]["head"] == "L1H2"
    assert table[0]["induction"] > 0.9
    assert all(value < 0.2 for value in table["induction"][1:])


def test_the_written_previous_token_head_is_found_exactly(written_induction: Any) -> None:
    table = heads.run(written_induction, length=16, count=1).tables[0].sorted("previous", reverse=True)
    assert table[0]["head"] == "L0H1"
    assert table[0]["previous"] > 0.9
    assert all(value < 0.2 for value in table["previous"][1:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt", "phi"])
def test_rows_of_the_pattern_sum_to_1_and_look_only_back(family: str) -> None:
    model = make(family)
    before = model.config._attn_implementation
    found = heads.patterns(model, list(range(3, 20)))
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-5)
    assert float(found.triu(1).abs().max()) == 0
    assert model.config._attn_implementation == before


def test_the_way_of_attending_is_set_back_after_an_error(tiny: Any) -> None:
    before = tiny.config._attn_implementation
    with pytest.raises(IndexError):
        heads.patterns(tiny, [10**6])
    assert tiny.config._attn_implementation == before


def test_the_pattern_is_the_softmax_of_queries_and_keys() -> None:
    """Authority: computed from q and k by hand, where no rotation stands between (GPT-2)."""
    model = make("gpt2")
    ids = model.tokenizer.encode("the banks of it", start=True)
    trace = model.trace(ids, ["q.1", "k.1"])
    q, k = (trace[name, 1].transpose(0, 1) for name in ("q", "k"))
    weights = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    masked = weights.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(heads.patterns(model, ids)[1], masked.softmax(-1), rtol=1e-4, atol=1e-6)


def test_without_controls_the_result_says_so(tiny: Any) -> None:
    assert "uncontrolled" in heads.run(tiny, controls=0).title
    assert "uncontrolled" not in heads.run(tiny).title


@pytest.mark.parametrize("options", [{"length": 3}, {"repeats": 0}, {"length": 400}])
def test_texts_that_cannot_be_made_are_refused(tiny: Any, options: dict[str, int]) -> None:
    with pytest.raises(OutOfRange, match=r"length"):
        heads.run(tiny, **options)


def test_zero_and_mean_are_what_their_names_say(written_induction: Any) -> None:
    """The written head's output differs from token to token: its mean carries no copy, so both cost the copying."""
    zero, mean = (
        heads.run(written_induction, length=16, count=1, kind=kind).reading("without").value
        for kind in ("zero", "mean")
    )
    assert zero > 0.003
    assert mean > 0.003
    assert zero != mean


def test_each_head_alone_is_the_set_of_one(written_induction: Any) -> None:
    result = heads.run(written_induction, length=16, count=1, alone=True)
    assert result.tables[0][0]["alone"] == result.reading("without").value
    silent = [row["alone"] for row in result.tables[0] if row["head"] not in ("L0H1", "L1H2")]
    assert silent == pytest.approx([0] * 4, abs=1e-6)


def test_bystanders_look_at_none_of_the_three(written_induction: Any) -> None:
    """L0H1 looks back one: it may be drawn as any other head, not as a bystander."""
    result = heads.run(written_induction, length=16, count=1, controls=30)
    assert result.reading("control").high == pytest.approx(0, abs=1e-6)
    assert result.reading("control_any").high > 0.003


@pytest.mark.real
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_on_smollm2_the_heads_found_carry_the_copying(smollm2: Any, kind: Any) -> None:
    result = heads.run(smollm2, kind=kind, controls=6)
    assert result.tables[0][0]["head"] == "L18H6"
    assert result.reading("without").value > 4
    assert result.reading("control").value < 1
