"""DoLa equals its formula, computed the slow way."""

from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from kobza.core.errors import OutOfRange
from kobza.decoding import dola
from kobza.models.tiny import tiny as make_tiny


@torch.inference_mode()
def slowly(model: Any, ids: list[int], tokens: int, layers: list[int], share: float) -> list[int]:
    """Equations 3 to 5 of the paper from the hidden states of whole runs."""
    text = list(ids)
    norm = model.module.get_submodule(model.family.modules["norm"])
    for _ in range(tokens):
        out = model.module(torch.tensor([text]), output_hidden_states=True)
        last = out.logits[0, -1].double().softmax(-1)
        early = {n: model.module.lm_head(norm(out.hidden_states[n][0, -1])).double().softmax(-1) for n in layers}
        chosen = max(layers, key=lambda n: jensenshannon(last.numpy(), early[n].numpy()))
        worth = torch.where(last >= share * last.max(), last.log() - early[chosen].log(), -torch.inf)
        text.append(int(worth.argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equals_the_formula(family: str, share: float) -> None:
    model = make_tiny(family, layers=6)
    found = dola.generate(model, "The kobza", tokens=15, layers=[1, 2, 4], share=share, repetition=1.0)
    assert found.ids == slowly(model, found.prompt_ids, 15, [1, 2, 4], share)
    assert len(found.events) == 30


def test_every_second_layer_of_the_lower_half_is_the_default() -> None:
    model = make_tiny(layers=6)
    assert dola.generate(model, "ab", tokens=8).ids == dola.generate(model, "ab", tokens=8, layers=[2]).ids


def test_what_is_unlikely_stays_out() -> None:
    mature, early = torch.tensor([3.0, 2.0, -5.0]), torch.tensor([3.0, 1.0, -20.0])
    assert dola.contrast(mature, early, 0.1)[2] == -torch.inf
    assert int(dola.contrast(mature, early, 0.1).argmax()) == 1


def test_layers_that_are_not_there_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="layers is 2; allowed is 1 to 1"):
        dola.generate(tiny, "a", layers=[2])
