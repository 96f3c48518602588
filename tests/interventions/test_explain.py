"""Explaining a neuron: a planted rule is found with correlation 1, and nonsense stays near 0."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched, OutOfRange
from kobza.interventions import explain
from kobza.models.model import Change


@pytest.fixture
def planted(tiny: Any) -> Any:
    """Coordinate 5 of the embedding is 1 for three tokens and 0 for all others."""
    table = tiny.matrix("embed.in").clone()
    table[:, 5] = 0
    for letter in "aeo":
        table[tiny.tokenizer.id_of(letter.encode()), 5] = 1.0
    return tiny.replace({"embed.in": table}, change=Change("planted"))


OPTIONS: dict[str, Any] = {"neuron": "resid_pre.0.5", "sample": 4000, "text": "topics"}


def test_the_right_rule_agrees_fully_and_no_other_neuron_does(planted: Any) -> None:
    result = explain.run(planted, **OPTIONS, rule="tokens:a|e|o")
    assert result.reading("agreement").value == pytest.approx(1, abs=1e-6)
    assert result.reading("control").high < 0.5


def test_a_rule_made_from_one_half_holds_on_the_other(planted: Any) -> None:
    result = explain.run(planted, **OPTIONS)
    assert set(result.reading("agreement").note.partition("tokens:")[2].split("|")) == set("aeo")
    assert result.reading("agreement").value == pytest.approx(1, abs=1e-6)


def test_a_wrong_rule_is_near_0(planted: Any) -> None:
    assert abs(explain.run(planted, **OPTIONS, rule="tokens:t").reading("agreement").value) < 0.15


def test_agreement_is_pearsons_correlation_with_the_trace(tiny: Any) -> None:
    found = explain.run(tiny, neuron="neuron.1.7", rule="tokens:e", sample=200).reading("agreement").value
    from kobza.interventions._collecting import tokens_of

    ids = tokens_of(tiny, "topics", 200)
    trace = tiny.trace(torch.cat([torch.tensor([tiny.tokenizer.start_id]), ids]), "neuron.1")["neuron", 1][1:, 7]
    holds = (ids == tiny.tokenizer.id_of(b"e")).double()
    assert found == pytest.approx(float(torch.corrcoef(torch.stack([trace.double(), holds]))[0, 1]), rel=1e-5)


def test_without_controls_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in explain.run(tiny, sample=200, controls=0).title
    assert "uncontrolled" not in explain.run(tiny, sample=200).title


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"neuron": "neuron.1"}, BadValue, "no single neuron"),
        ({"neuron": "z.1.1"}, BadValue, "no single neuron"),
        ({"neuron": "neuron.1.96"}, OutOfRange, "0 to 95"),
        ({"rule": "tokens:the banks"}, BadValue, "no single token"),
        ({"rule": "regex:ЖЖЖ"}, NothingMatched, "holds for none"),
    ],
)
def test_what_is_no_neuron_or_rule_is_refused(tiny: Any, options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        explain.run(tiny, **{"sample": 200, **options})
