"""lm-evaluation-harness gets from us what it gets from transformers, and what the yardstick says."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange, UnknownName
from kobza.models.forward import token_bits
from kobza.models.model import Model
from kobza.models.tiny import tiny as make_tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'evaluate')")
from kobza.cli.harness import Harness, evaluate

CONTEXTS = ["The kobza has", "The kobza has eight strings and", "", "A lute"]
ANSWERS = [" strings", " eight strings", " a neck that is long", "s"]


@pytest.fixture(scope="module")
def model() -> Model:
    return make_tiny()


def asked(*words: Any) -> SimpleNamespace:
    return SimpleNamespace(args=words)


def plainly(model: Model, harness: Harness, context: str, answer: str) -> tuple[float, bool]:
    """Score an answer by one pass over everything."""
    if context:
        whole, first = harness.tok_encode(context + answer), len(harness.tok_encode(context))
    else:
        whole, first = [harness.prefix_token_id, *harness.tok_encode(answer, False)], 1
    with torch.inference_mode():
        rows = model.module(torch.tensor([whole])).logits[0, first - 1 : -1].double().log_softmax(-1)
    targets = torch.tensor(whole[first:])
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(-1) == targets).all())


def test_answers_behind_shared_contexts_are_scored_as_if_alone(model: Model) -> None:
    harness = Harness(model)
    pairs = [(context, answer) for context in CONTEXTS for answer in ANSWERS] * 2
    random.Random(0).shuffle(pairs)
    found = harness.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for pair, (value, is_greedy) in zip(pairs, found, strict=True):
        right, is_right = plainly(model, harness, *pair)
        assert value == pytest.approx(right, abs=1e-4) and is_greedy == is_right


def test_the_likeliest_answer_is_greedy(model: Model) -> None:
    harness = Harness(model)
    said = harness.generate_until([asked("The kobza", {"max_gen_toks": 1})])[0]
    assert harness.loglikelihood([asked("The kobza", said)], disable_tqdm=True)[0][1]


def test_a_whole_text_costs_what_the_yardstick_says(model: Model) -> None:
    harness, text = Harness(model), "The kobza is a lute. " * 3
    found = harness.loglikelihood_rolling([asked(text), asked("A lute.")])[0]
    bits = token_bits(model, model.tokenizer.encode(text)).double().sum()
    assert harness.prefix_token_id == model.tokenizer.start_id
    assert -found / math.log(2) == pytest.approx(float(bits), rel=1e-5)


def test_a_text_beyond_the_context_is_cut_into_windows(model: Model) -> None:
    harness = Harness(model)
    text = "The kobza is a lute. " * 200
    assert len(model.tokenizer.encode(text)) > harness.longest
    assert -1e5 < harness.loglikelihood_rolling([asked(text)])[0] < 0


def test_answers_end_at_a_stop_text(model: Model) -> None:
    harness = Harness(model)
    whole = harness.generate_until([asked("The kobza", {"max_gen_toks": 12})])[0]
    cut = harness.generate_until([asked("The kobza", {"max_gen_toks": 12, "until": [whole[3:5]]})])[0]
    assert cut == whole[: whole.index(whole[3:5])]
    drawn = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 50}
    assert harness.generate_until([asked("The kobza", drawn)])[0] != whole


def test_too_long_an_answer_is_refused(model: Model) -> None:
    with pytest.raises(OutOfRange, match="leaves no room"):
        Harness(model).generate_until([asked("x", {"max_gen_toks": 10**6})])


def test_names_of_control_tokens_are_control_tokens(model: Model) -> None:
    name, token = next(iter(model.tokenizer.special.items()))
    assert Harness(model).tok_encode(f"A{name}", False) == [*model.tokenizer.encode("A"), token]


TASK = """task: lutes
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_task_of_the_harness_gives_what_transformers_gives(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the harness's own tasks need the extra 'evaluate'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [{"question": c or "It", "choices": ANSWERS[:3], "answer": i % 3} for i, c in enumerate(CONTEXTS * 5)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lutes.yaml").write_text(TASK.replace("DATA", str(tmp_path / "data.jsonl")))
    found = evaluate(model, ["lutes"], include=str(tmp_path))
    model.save(tmp_path / "saved")
    peer = HFLM(pretrained=str(tmp_path / "saved"), device="cpu", dtype="float32", add_bos_token=True)
    right = simple_evaluate(peer, tasks=["lutes"], task_manager=TaskManager(include_path=str(tmp_path)))
    reading = found.readings[0]
    assert reading.name == "lutes acc" and reading.low is not None
    assert reading.value == right["results"]["lutes"]["acc,none"]
    pairs = [asked(c, a) for c in CONTEXTS for a in ANSWERS]
    ours, theirs = Harness(model).loglikelihood(pairs), peer.loglikelihood(pairs)
    assert [v for v, _ in ours] == pytest.approx([v for v, _ in theirs], abs=1e-3)
    assert [g for _, g in ours] == [g for _, g in theirs]
    with pytest.raises(UnknownName, match="lutes"):
        evaluate(model, ["lute"], include=str(tmp_path))
