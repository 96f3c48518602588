"""Several adapters together: a search finds the one that helps, a gate finds whom to ask for what."""

from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.training import sft
from kobza.training.parts import adapters, answers, blending
from kobza.training.parts.adapters import Adapter

SEA = [{"prompt": f"sea {n}", "answer": " waves roar"} for n in range(4)]
ICE = [{"prompt": f"ice {n}", "answer": " stands mute"} for n in range(4)]


@pytest.fixture(scope="module")
def pair() -> list[Adapter]:
    """A LoRA for the sea and one for ice."""
    how: dict[str, Any] = {"adapter": "lora:rank=4", "steps": 25, "rate": 3e-2, "batch": 4, "context": 32, "held": 0.0}
    return [sft.train(kobza.open("tiny"), rows, answer="answer", **how).adapter for rows in (SEA, ICE)]


def cost(model: Any, rows: list[dict[str, str]]) -> float:
    batch = answers.batch(answers.examples(rows, model.tokenizer, "answer", chat=True, most=64))
    with torch.no_grad():
        return float(blending.answer_loss(model, batch))


def test_a_search_finds_the_adapter_that_helps(tiny: Any, pair: list[Adapter]) -> None:
    weights, made = blending.searched(tiny, pair, SEA, steps=40)
    assert weights[0] > 0.5 and all(abs(w) <= blending.MOST for w in weights)
    found = cost(adapters.attach(tiny, made), SEA)
    assert found < 0.5 * cost(tiny, SEA)
    assert found <= 1.05 * cost(adapters.attach(tiny, pair[0]), SEA) + 0.05
    assert blending.searched(tiny, pair, SEA, steps=3)[0] == blending.searched(tiny, pair, SEA, steps=3)[0]


def test_gates_begin_as_the_mean_and_end_better_than_any_weights(tiny: Any, pair: list[Adapter]) -> None:
    mean = adapters.attach(tiny, adapters.combined(pair, [0.5, 0.5]))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        first = blending.gated(tiny, pair).module(ids).logits
        assert torch.allclose(first, mean.module(ids).logits, atol=1e-5)
    both = SEA + ICE
    tuned = blending.tuned_gates(tiny, pair, both, steps=60, rate=0.1)
    single = min(cost(adapters.attach(tiny, adapter), both) for adapter in pair)
    assert cost(tuned, both) < min(single, cost(mean, both))
    assert not any(p.requires_grad for p in tuned.module.parameters())


def test_what_does_not_go_together_is_refused(tiny: Any, pair: list[Adapter]) -> None:
    other = adapters.fresh(tiny, adapters.Spec("ia3", where="blocks.*.attn.v"))
    with pytest.raises(BadValue):
        blending.gated(tiny, [pair[0], other])
    with pytest.raises(OutOfRange):
        blending.searched(tiny, pair, SEA, steps=0)
    with pytest.raises(BadValue, match="already has an adapter"):
        blending.gated(adapters.attach(tiny, pair[0]), pair)
