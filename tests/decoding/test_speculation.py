"""Speculation changes the time, not the text: what every drafter is held to, good or bad."""

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from kobza.decoding import greedy
from kobza.decoding.base import Session, speak
from kobza.decoding.hydra import Heads
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import LONGEST, Plain, Watch, judge, speculate
from kobza.models.stepping import using
from kobza.models.tiny import tiny as make_tiny


class Guess(Plain):
    """Proposes the greedy text, with every n-th token wrong."""

    def __init__(self, right: list[int], wrong_every: int) -> None:
        self.right, self.wrong_every = right, wrong_every

    def propose(self, session: Session, most: int) -> tuple[list[int], Tensor | None]:
        ids = list(self.right[session.made : session.made + min(5, most)])
        for place in range(len(ids)):
            if (session.made + place) % self.wrong_every == 0:
                ids[place] = (ids[place] + 1) % 300
        return ids, None


@pytest.mark.parametrize("backend", ["bare", "transformers"])
@pytest.mark.parametrize("wrong_every", [1, 3, 10**6])
def test_the_greedy_text_stays_whatever_is_proposed(backend: str, wrong_every: int) -> None:
    model = make_tiny(layers=3)
    with using(backend):
        right = greedy.generate(model, "The kobza", tokens=40)
        drafted = speak(model, "The kobza", speculate(Guess(right.ids, wrong_every), Shape(0.0), 0), tokens=40)
        assert drafted.ids == right.ids
        assert drafted.stopped_by == right.stopped_by
        assert drafted.logprobs == pytest.approx(right.logprobs, abs=1e-5)
    assert right.passes == 40
    if wrong_every == 1:
        assert drafted.acceptance == 0 and drafted.passes == 40
    if wrong_every == 10**6:
        assert drafted.acceptance > 0.9 and drafted.passes <= 10
    assert sum(step.is_drafted for step in drafted.steps) == sum(draft.accepted for draft in drafted.drafts)


@pytest.mark.parametrize("is_certain", [True, False])
def test_a_judged_token_has_the_distribution_of_the_model(is_certain: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    q = torch.tensor([0.1, 0.2, 0.3, 0.4])
    counts: Counter[int] = Counter()
    for _ in range(4000):
        proposed = 2 if is_certain else int(torch.multinomial(q, 1, generator=generator))
        counts[judge(p.log(), proposed, None if is_certain else q[None], Shape(1.0), generator)] += 1
    assert chisquare([counts[i] for i in range(4)], p * 4000, sum_check=False).pvalue > 0.001


def test_a_judge_that_ignores_the_draft_distribution_would_be_noticed() -> None:
    """The test above can fail: acceptance by p alone gives another distribution."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    counts: Counter[int] = Counter()
    for _ in range(4000):
        proposed = int(torch.multinomial(q, 1, generator=generator))
        kept = float(torch.rand((), generator=generator)) < float(p[proposed])
        counts[proposed if kept else int(torch.multinomial(p, 1, generator=generator))] += 1
    assert chisquare([counts[i] for i in range(4)], p * 4000, sum_check=False).pvalue < 1e-4


@pytest.mark.parametrize("kind", ["lookup", "assisted", "early_exit"])
def test_the_text_is_that_of_transformers_own_speculation(kind: str) -> None:
    from kobza.core import techniques

    model, other = make_tiny(layers=3), make_tiny(layers=1, seed=1)
    theirs: dict[str, dict[str, Any]] = {
        "lookup": {"prompt_lookup_num_tokens": 4}, "assisted": {"assistant_model": other.module},
        "early_exit": {"assistant_early_exit": 1},
    }  # fmt: skip
    ours: dict[str, dict[str, Any]] = {
        "lookup": {"price": 0.0}, "assisted": {"assistant": "tiny:llama?layers=1&seed=1"}, "early_exit": {"layer": 1},
    }  # fmt: skip
    said = techniques.verb("decoding", kind)(model, "one two one two one", tokens=24, **ours[kind])
    fed = torch.tensor([said.prompt_ids])
    with torch.inference_mode():
        made = model.module.generate(
            fed, attention_mask=torch.ones_like(fed), max_new_tokens=24, do_sample=False, pad_token_id=0, **theirs[kind]
        )
    assert made[0, fed.shape[1] :].tolist() == said.ids


def draws(technique: Any, model: Any, count: int, **options: Any) -> Counter[tuple[int, ...]]:
    """Count the pairs of tokens a technique says: the whole output of a model small enough to enumerate."""
    return Counter(
        tuple(technique.generate(model, "ab", tokens=2, temperature=1.0, seed=seed, **options).ids)
        for seed in range(count)
    )


def exact(model: Any, ids: list[int]) -> dict[tuple[int, ...], float]:
    """The model's probability of every pair of the 20 likeliest tokens, by plain forward passes."""
    first = model.module(torch.tensor([ids])).logits[0, -1].softmax(-1)
    found = {}
    for a in first.topk(20).indices.tolist():
        second = model.module(torch.tensor([[*ids, a]])).logits[0, -1].softmax(-1)
        found |= {(a, b): float(first[a] * second[b]) for b in second.topk(20).indices.tolist()}
    return found


@pytest.mark.parametrize("name", ["lookup", "ngram", "assisted", "early_exit", "tree", "hydra"])
def test_drawn_text_has_the_exact_distribution_of_an_enumerable_model(name: str, tmp_path: Any) -> None:
    from kobza.core import techniques

    model = sharpened()
    heads = str(Heads.fit(model, "topics[:1000]", tokens=200, steps=5).save(tmp_path / "heads.safetensors"))
    options: dict[str, dict[str, Any]] = {
        "lookup": {"price": 0.0}, "ngram": {"price": 0.0}, "assisted": {"assistant": "tiny:llama?layers=1&seed=0"},
        "early_exit": {"layer": 1}, "tree": {"price": 0.0}, "hydra": {"price": 0.0, "heads": heads},
    }  # fmt: skip
    with torch.inference_mode():
        table = exact(model, model.tokenizer.encode("ab", start=True))
    common = {pair: p for pair, p in table.items() if p > 0.01}
    assert sum(common.values()) > 0.3, "the model is not peaked enough for the test to see anything"
    runs = 600
    seen = draws(techniques.load("decoding", name), model, runs, **options[name])
    expected = [*(p * runs for p in common.values()), (1 - sum(common.values())) * runs]
    observed = [*(seen[pair] for pair in common), runs - sum(seen[pair] for pair in common)]
    assert chisquare(observed, expected, sum_check=False).pvalue > 0.001


def sharpened() -> Any:
    """A tiny model whose distributions have a few likely tokens."""
    from kobza.models.model import Change

    model = make_tiny(tied=False)
    return model.replace({"embed.out": model.matrix("embed.out") * 6}, change=Change("x"))


def test_a_watch_stops_proposing_what_does_not_come_true_and_begins_again() -> None:
    watch = Watch()
    for match in range(1, 4):
        for _ in range(60):
            watch.note(match, False)
    assert watch.worth(3, 10) == 0
    for match in range(1, LONGEST + 1):
        for _ in range(60):
            watch.note(match, True)
    assert watch.worth(3, 10) == 10
    assert Watch().worth(1, 10, price=0.5) == 0, "a single token that stood there before is no evidence yet"


def test_what_was_not_proposed_is_watched() -> None:
    watch = Watch()
    before = watch.rate(2)
    watch.expect(2, 7)
    watch.learn([7], [], 2)
    assert watch.rate(2) > before
    watch.expect(2, None)
    watch.learn([7], [], 2)
    assert watch.seen[1] == pytest.approx(0.97 + 1)
