"""DPO, hinge and IPO: TRL's values and slopes; the first loss is ln 2."""

import math
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.training import dpo


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_loss_and_slope_at_the_logits_equal_those_of_trl(kind: str, goldens: Any, sums: Any, counts: Any) -> None:
    given = goldens["preferences"]
    logits = torch.tensor(given["logits"], requires_grad=True)
    losses, _ = dpo.loss(sums(logits), sums(torch.tensor(given["reference"])), counts, beta=0.3, kind=kind)
    assert losses.mean().item() == pytest.approx(given[kind]["loss"], abs=1e-5)
    slope = torch.autograd.grad(losses.mean(), logits)[0]
    assert torch.allclose(slope, torch.tensor(given[kind]["slope"]), atol=1e-6)


@pytest.mark.parametrize("adapter", ["lora:rank=2", "none"])
def test_the_first_loss_is_ln_2_and_the_chosen_answers_rise_above_the_rejected(
    adapter: str, tiny: Any, pairs: Any
) -> None:
    run = dpo.train(tiny, pairs, adapter=adapter, steps=12, evaluate=1, rate=5e-3, precision="float32")
    losses = run.history["loss"]
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.6
    assert run.history["margin"][-1] > 0


def test_the_reference_is_computed_once_per_pair(tiny: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kobza.training.parts.tuning import Policy

    calls = []
    plain = Policy.reference_logps

    def counted(self: Policy, *rows: Any) -> Any:
        calls.append(1)
        return plain(self, *rows)

    monkeypatch.setattr(Policy, "reference_logps", counted)
    dpo.train(tiny, pairs[:4], steps=6, batch=4, held=0.0)
    assert len(calls) == 1


def test_pairs_that_lack_a_column_or_an_answer_are_refused(tiny: Any, pairs: Any) -> None:
    with pytest.raises(BadValue) as caught:
        dpo.train(tiny, [{"prompt": "a", "choosen": "b", "rejected": "c"}], steps=1)
    assert "row 0 has no text in the column 'chosen'" in str(caught.value)
    assert "'choosen'" in str(caught.value)
    with pytest.raises(EmptyText, match="answer of row 0"):
        dpo.train(tiny, [{"prompt": "a", "chosen": "", "rejected": "c"}], steps=1)
    with pytest.raises(BadValue, match="tokens"):
        dpo.train(tiny, [{"prompt": "long " * 50, "chosen": "b", "rejected": "c"}], steps=1, context=16)
    with pytest.raises(OutOfRange, match="beta"):
        dpo.train(tiny, pairs, beta=0.0)
