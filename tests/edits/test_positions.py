"""Scaled rotations equal transformers' own, and the papers' formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, OutOfRange
from kobza.edits import positions
from kobza.models.stepping import steps
from kobza.models.tiny import tiny

IDS = torch.randint(0, 300, (1, 120), generator=torch.Generator().manual_seed(0))


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(IDS).logits
    return found


@pytest.mark.parametrize("method", ["linear", "yarn"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_equal_those_of_a_transformers_model_so_configured(method: Any, family: str) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny(family, context=64)
    rope = {"rope_type": method, "factor": 4.0, "rope_theta": model.config.rope_parameters["rope_theta"]}
    rope |= {"original_max_position_embeddings": 64} if method == "yarn" else {}
    values = model.config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": 256}
    theirs = AutoModelForCausalLM.from_config(type(model.config)(**values))
    theirs.load_state_dict(model.module.state_dict())
    ours = positions.apply(model, method=method, stretch=4)
    assert torch.equal(logits(ours.module), logits(theirs))
    assert torch.allclose(steps(ours, backend="bare").feed(IDS, keep=120), logits(theirs), atol=2e-5)
    assert ours.context == 256 and model.context == 64


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_ntk_divides_the_slowest_rotation_and_leaves_the_fastest(factor: float) -> None:
    before = tiny(width=128)
    plain = before.module.base_model.rotary_emb.inv_freq
    found = positions.apply(before, method="ntk", stretch=factor).module.base_model.rotary_emb.inv_freq
    E = 2 * len(plain)
    theta = before.config.rope_parameters["rope_theta"] * factor ** (E / (E - 2))
    assert torch.allclose(found, theta ** (-torch.arange(0, E, 2) / E))
    assert found[0] == plain[0] and torch.allclose(found[-1], plain[-1] / factor)


def test_ntk_equals_the_dynamic_rotation_of_transformers_at_the_length_where_their_bases_meet() -> None:
    model = tiny(context=64)
    ours = positions.apply(model, method="ntk", stretch=2).module.base_model.rotary_emb.inv_freq
    values = model.config.to_dict()
    values["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    dynamic = type(model.module.base_model.rotary_emb)(type(model.config)(**values))
    dynamic(torch.zeros(1), torch.arange(96)[None])  # 2 x 96 / 64 - (2 - 1) = 2
    assert torch.allclose(ours, dynamic.inv_freq)


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_factor_one_changes_nothing_and_saving_keeps_the_scaling(method: Any, tmp_path: Path) -> None:
    model = tiny()
    assert torch.equal(logits(positions.apply(model, method=method, stretch=1).module), logits(model.module))
    ours = positions.apply(model, method=method, stretch=2)
    assert ours.fingerprint == model.fingerprint and ours.changes[-1].technique == "positions"
    ours.save(tmp_path / "scaled")
    again = kobza.open(tmp_path / "scaled")
    assert torch.equal(logits(again.module), logits(ours.module)) and again.context == 4096


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(BadValue, match="no plain one"):
        positions.apply(tiny("gpt2"))
    with pytest.raises(BadValue, match="yarn"):
        positions.apply(positions.apply(tiny()))
    with pytest.raises(OutOfRange, match="stretch=0.5; allowed is 1 .. 64"):
        positions.apply(tiny(), stretch=0.5)
