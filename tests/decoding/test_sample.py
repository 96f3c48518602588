"""Sampling draws from exactly the distribution that transformers' logits processors make."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    EtaLogitsWarper,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from kobza.core.errors import OutOfRange
from kobza.decoding import greedy, sample
from kobza.decoding.shaping import Shape

SHARES = st.floats(0.01, 0.99)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 3), st.integers(1, 60), SHARES, SHARES)
def test_the_distribution_is_that_of_transformers(
    seed: int, temperature: float, k: int, p: float, least: float
) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    ours = Shape(temperature, k, p, least)(logits)
    theirs = logits[None]
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(k),
        TopPLogitsWarper(p),
        MinPLogitsWarper(least),
    ):
        theirs = warper(torch.zeros(1, 1, dtype=torch.long), theirs)
    assert torch.equal(ours.softmax(-1), theirs[0].softmax(-1))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), SHARES, st.floats(1e-4, 0.3), st.floats(0.5, 2.0))
def test_typical_eta_and_repetition_are_those_of_transformers(
    seed: int, mass: float, epsilon: float, factor: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator) * 3
    seen = torch.randint(0, 50, (1, 12), generator=generator)
    for ours, theirs in (
        (Shape(typical=mass), TypicalLogitsWarper(mass)),
        (Shape(eta=epsilon), EtaLogitsWarper(epsilon, device="cpu")),
        (Shape(repetition=factor), RepetitionPenaltyLogitsProcessor(factor)),
    ):
        assert torch.equal(ours(logits, seen[0].tolist()), theirs(seen, logits[None].clone())[0])


def test_frequency_and_presence_count_what_was_said_and_not_the_prompt() -> None:
    shaped = Shape(frequency=0.5, presence=0.25)(torch.zeros(4), [0, 3, 1, 1, 2], 2)
    assert shaped.tolist() == [0.0, -1.25, -0.75, 0.0]


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 0.0}])
def test_the_strictest_rules_are_greedy(tiny: Any, rule: dict[str, Any]) -> None:
    assert (
        sample.generate(tiny, "The kobza", tokens=15, **rule).ids == greedy.generate(tiny, "The kobza", tokens=15).ids
    )


def test_neutral_rules_change_nothing() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Shape()(logits), logits)
    assert torch.equal(Shape(top_k=50)(logits), logits)


def test_equal_seeds_give_equal_tokens_and_unequal_ones_differ(tiny: Any) -> None:
    a, b, c = (sample.generate(tiny, "The kobza", tokens=20, seed=seed).ids for seed in (1, 1, 2))
    assert a == b != c


def test_first_tokens_are_drawn_in_proportion(tiny: Any) -> None:
    ids = torch.tensor([tiny.tokenizer.encode("The kobza", start=True)])
    with torch.inference_mode():
        logits = tiny.module(input_ids=ids).logits[0, -1]
    kept = Shape(top_k=5)(logits).softmax(-1)
    drawn = Counter(sample.generate(tiny, "The kobza", tokens=1, top_k=5, seed=s).ids[0] for s in range(400))
    expected = [float(kept[token]) * 400 for token in kept.nonzero()[:, 0].tolist()]
    observed = [drawn[token] for token in kept.nonzero()[:, 0].tolist()]
    assert sum(observed) == 400
    assert chisquare(observed, expected, sum_check=False).pvalue > 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; allowed is 0 or more"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed is more than 0, 1 at most"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 2.0}, "min_p is 2.0; allowed is 0 to 1"),
        ({"typical": 0.0}, "typical is 0.0"),
        ({"eta": 1.0}, "eta is 1.0"),
        ({"repetition": 0.0}, "repetition is 0.0; allowed is more than 0"),
    ],
)
def test_options_out_of_range_name_the_range(tiny: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OutOfRange, match=message):
        sample.generate(tiny, "the", **options)
