"""Fine-tuning: gradients of the answers alone, adapters and whole models, the real model from its GGUF."""

from typing import Any

import pytest
import torch
from torch import nn

import kobza
from kobza.core.errors import BadValue
from kobza.training import sft
from kobza.training.parts import answers

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20


def test_the_loss_falls_on_the_answers_alone_and_equals_cross_entropy(tiny: Any, pairs: Any) -> None:
    examples = answers.examples(pairs, tiny.tokenizer, "chosen", chat=False, most=64)
    made = answers.batch(examples[:3])
    found = sft.answer_loss(tiny.module, made.read, made.targets, made.mask).item()
    labels = torch.cat([made.read[:, :1], made.targets], 1)
    labels[:, 1:][~made.mask] = -100
    labels[:, 0] = -100
    ids = torch.cat([made.read[:, :1], made.targets], 1)
    logits = tiny.module(input_ids=ids).logits[:, :-1]
    wanted = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert found == pytest.approx(wanted.item(), abs=1e-5)
    assert found == pytest.approx(tiny.module(input_ids=ids, labels=labels).loss.item(), abs=1e-5)


def test_padding_changes_nothing(tiny: Any, pairs: Any) -> None:
    examples = answers.examples(pairs, tiny.tokenizer, "rejected", chat=False, most=64)
    long = answers.Example(examples[0].prompt, examples[0].answer * 4)
    alone, padded = answers.batch(examples[1:2]), answers.batch([examples[1], long])
    first = sft.answer_loss(tiny.module, alone.read, alone.targets, alone.mask)
    second = sft.answer_loss(tiny.module, padded.read[:1], padded.targets[:1], padded.mask[:1])
    assert first.item() == pytest.approx(second.item(), abs=1e-5)


def test_an_answer_ends_with_the_end_mark_unless_it_is_cut(tiny: Any) -> None:
    row = [{"prompt": "a", "chosen": "the waves that roar and moan"}]
    whole = answers.examples(row, tiny.tokenizer, "chosen", chat=False, most=64)[0]
    cut = answers.examples(row, tiny.tokenizer, "chosen", chat=False, most=6)[0]
    assert whole.answer[-1] == tiny.tokenizer.end_id
    assert len(cut.prompt) + len(cut.answer) == 6
    assert cut.answer[-1] != tiny.tokenizer.end_id


def test_held_out_prompts_are_never_trained_on(pairs: Any) -> None:
    train, held = answers.read_rows([*pairs, pairs[0]], ("prompt",), 0.25)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}


@pytest.mark.parametrize("adapter", ["lora:rank=4", "dora:rank=4", "ia3", "none"])
def test_answers_are_learned(adapter: str, tiny: Any, pairs: Any) -> None:
    before = tiny.fingerprint
    run = sft.train(tiny, pairs, answer="chosen", adapter=adapter, steps=12, rate=1e-2, held=0.25)
    assert run.history["held"][-1] < run.history["held"][0]
    assert tiny.fingerprint == before
    assert run.facts["trained_parameters"] == (run.adapter.parameters if run.adapter else tiny.parameters)


def test_the_ends_of_a_tied_model_stay_one_tensor(tiny: Any) -> None:
    run = sft.train(tiny, TEXT, adapter="none", steps=2, context=16)
    assert tiny.is_tied
    assert run.model.is_tied
    assert run.model.parameters == tiny.parameters


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "phi"])
def test_other_families_are_tuned_too(family: str) -> None:
    model = kobza.open(f"tiny:{family}")
    run = sft.train(model, TEXT, adapter="lora:rank=2", steps=6, rate=1e-2, context=16)
    assert run.history["held_all"][-1] < run.history["held_all"][0]


def test_a_missing_answer_column_is_named(tiny: Any) -> None:
    with pytest.raises(BadValue, match="'reply'"):
        sft.train(tiny, [{"prompt": "a", "answer": "b"}], answer="reply")


@pytest.mark.real
def test_smollm2_from_its_gguf_is_trained_where_transformers_refuses(smollm2: Any, pairs: Any) -> None:
    run = sft.train(smollm2, pairs, answer="chosen", adapter="lora:rank=4", steps=3, batch=8, rate=2e-3, held=0.0)
    assert run.history["loss"][3] < run.history["loss"][1]
    moved = run.model.matrix("blocks.0.attn.q") - smollm2.matrix("blocks.0.attn.q")
    assert 0 < moved.norm() < 1
