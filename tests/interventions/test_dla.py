"""Direct logit attribution: every sum is the model's own value, in families with biases, post-norms and scales."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.interventions import dla
from kobza.interventions.base import prompt_ids
from kobza.interventions.planner import Run
from kobza.models.model import Change
from kobza.models.tiny import tiny as make

PROMPT = "the banks of it"
FAMILIES = ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt", "olmo2", "granite", "cohere"]


@pytest.mark.parametrize("family", FAMILIES)
def test_embed_and_all_writes_sum_to_every_resid_post(family: str) -> None:
    trace = make(family).trace(PROMPT, ["embed", "attn_out", "mlp_out", "resid_post"])
    written = trace["embed"].double()
    for layer in range(2):
        written = written + trace["attn_out", layer] + trace["mlp_out", layer]
        torch.testing.assert_close(written, trace["resid_post", layer].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_sum_to_attn_out_less_its_bias(family: str) -> None:
    """The bias: what the attention puts out where the output matrix is zero."""
    model = make(family)
    ids = prompt_ids(model, PROMPT)
    silent = model.replace({"blocks.1.attn.o": torch.zeros_like(model.matrix("blocks.1.attn.o"))}, change=Change("off"))
    bias = 0 if "norm1_post" in model.family.block else Run(silent, ids).value("attn_out", 1)[-1]
    clean = Run(model, ids)
    found = dla.head_outs(clean, 1, len(ids) - 1).sum(0) + bias
    torch.testing.assert_close(found, clean.value("attn_out", 1)[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["layers", "heads", "neurons"])
def test_the_parts_sum_to_the_models_own_logit(family: str, split: Any) -> None:
    model = make(family)
    ids = torch.tensor([prompt_ids(model, PROMPT)])
    with torch.inference_mode():
        own = float(model.module(input_ids=ids).logits[0, -1, 40])
    token = model.tokenizer.bytes_of(40).decode()
    result = dla.run(model, prompt=PROMPT, metric=f"logit:{token}", split=split, exact=False)
    assert result.reading("metric").value == pytest.approx(own, rel=1e-5, abs=1e-6)
    if family in ("llama", "qwen2", "olmo2", "granite", "cohere"):  # neither biases nor a cap
        assert result.reading("sum").value == pytest.approx(own, rel=1e-4, abs=1e-5)


def test_the_direct_part_of_the_last_mlp_is_the_norm_frozen_difference(tiny: Any) -> None:
    """Authority: the logit without the last mlp_out, by hand, with the scale of the whole stream."""
    trace = tiny.trace(PROMPT, ["resid_post.1", "mlp_out.1"])
    x, part = trace["resid_post.1"][-1], trace["mlp_out.1"][-1]
    scale = (x.square().mean() + tiny.config.rms_norm_eps).sqrt()
    token = tiny.tokenizer.encode("k")[0]
    expected = tiny.matrix("embed.out")[token] @ (tiny.matrix("norm") * part / scale)
    rows = {row["part"]: row for row in dla.run(tiny, prompt=PROMPT, metric="logit:k").tables[0]}
    assert rows["mlp_out.1@10"]["direct"] == pytest.approx(float(expected), rel=1e-4)


def test_the_same_written_into_every_token_is_nothing_beyond_the_mean(tiny: Any) -> None:
    """A diff of two tokens has no mean to lose; a logit less the mean logit sums to just that."""
    rows = dla.run(tiny, prompt=PROMPT, metric="diff:k|a").tables[0]
    assert rows["direct"] == rows["over mean"]
    ids = torch.tensor([prompt_ids(tiny, PROMPT)])
    with torch.inference_mode():
        logits = tiny.module(input_ids=ids).logits[0, -1]
    rows = dla.run(tiny, prompt=PROMPT, metric="logit:k").tables[0]
    expected = float(logits[tiny.tokenizer.encode("k")[0]] - logits.mean())
    assert sum(rows["over mean"]) == pytest.approx(expected, rel=1e-4)


def test_an_earlier_position_is_that_of_the_shorter_prompt(tiny: Any) -> None:
    whole = dla.run(tiny, prompt=PROMPT, metric="logit:k", at="4").tables[0]
    short = [tiny.tokenizer.bytes_of(i).decode() for i in prompt_ids(tiny, PROMPT)[1:5]]
    cut = dla.run(tiny, prompt="".join(short), metric="logit:k").tables[0]
    assert whole["without it"] == pytest.approx(cut["without it"], abs=1e-6)


def test_without_the_exact_change_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in dla.run(tiny, prompt=PROMPT, exact=False).title
    assert "uncontrolled" not in dla.run(tiny, prompt=PROMPT).title


@pytest.mark.parametrize(
    ("options", "text"), [({"metric": "prob"}, "is not linear"), ({"at": "*"}, "not a single position")]
)
def test_what_has_no_single_sum_is_refused(tiny: Any, options: dict[str, str], text: str) -> None:
    with pytest.raises(BadValue, match=text):
        dla.run(tiny, prompt=PROMPT, **options)


@pytest.mark.real
def test_on_smollm2_the_parts_sum_to_the_logit(smollm2: Any) -> None:
    result = dla.run(smollm2, prompt="The capital of France is", metric="logit: Paris", exact=False)
    assert result.reading("rest").value == pytest.approx(0, abs=2e-3)
