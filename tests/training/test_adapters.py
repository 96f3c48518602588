"""Adapters: PEFT's files and outputs, and bases that come back bit for bit."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kobza
from kobza.core.errors import BadValue, Corrupt, MissingFile, NothingMatched, OutOfRange, UnknownName, WrongTensors
from kobza.edits import rounding
from kobza.training import dpo, sft
from kobza.training.parts import adapters
from kobza.training.parts.adapters import Spec

PEFT = Path(__file__).resolve().parent / "peft"
BASES = {"lora": "llama", "dora": "llama", "lora_gpt2": "gpt2", "ia3": "phi"}
TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.module(input_ids=ids).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "family"), BASES.items())
def test_an_adapter_that_peft_wrote_gives_the_logits_that_peft_computed(name: str, family: str) -> None:
    base = kobza.open(f"tiny:{family}")
    seen = load_file(PEFT / name / "seen.safetensors")
    adapter = adapters.load(PEFT / name)
    assert not torch.allclose(logits(base, seen["ids"]), seen["logits"], atol=1e-2), "the adapter does something"
    assert torch.allclose(logits(adapters.attach(base, adapter), seen["ids"]), seen["logits"], atol=1e-5)
    assert torch.allclose(logits(adapters.merged(base, adapter), seen["ids"]), seen["logits"], atol=1e-4)


@pytest.mark.parametrize(("name", "family"), BASES.items())
def test_what_is_written_equals_what_peft_wrote(name: str, family: str, tmp_path: Path) -> None:
    adapters.load(PEFT / name).save(tmp_path / name)
    ours, theirs = (load_file(folder / name / adapters.WEIGHTS) for folder in (tmp_path, PEFT))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    again = adapters.load(tmp_path / name)
    ids = torch.arange(9)[None]
    base = kobza.open(f"tiny:{family}")
    first, second = (adapters.attach(base, a) for a in (again, adapters.load(PEFT / name)))
    assert torch.equal(logits(first, ids), logits(second, ids))


@pytest.mark.parametrize(("name", "family"), BASES.items())
def test_peft_opens_what_was_written_here(name: str, family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = kobza.open(f"tiny:{family}")
    base.save(tmp_path / "base")
    adapters.load(PEFT / name).save(tmp_path / "adapter")
    seen = load_file(PEFT / name / "seen.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=seen["ids"]).logits, seen["logits"], atol=1e-5)


@pytest.mark.parametrize("words", ["lora:rank=3", "dora:rank=3", "ia3"])
def test_a_fresh_adapter_changes_nothing_and_removal_restores_the_base_bit_for_bit(words: str, tiny: Any) -> None:
    spec = adapters.spec(words)
    assert spec is not None
    ids = torch.arange(9)[None]
    with_it = adapters.attach(tiny, adapters.fresh(tiny, spec))
    assert torch.allclose(logits(with_it, ids), logits(tiny, ids), atol=1e-5)
    without = adapters.detach(with_it)
    assert without.fingerprint == tiny.fingerprint
    assert torch.equal(logits(without, ids), logits(tiny, ids))
    with adapters.off(with_it.module):
        assert torch.equal(logits(with_it, ids), logits(tiny, ids))


@pytest.mark.parametrize(
    "words", ["lora:rank=3", "dora:rank=3,where=blocks.*.mlp.up", "ia3", "lora:rank=2,merge_every=3"]
)
def test_a_trained_adapter_goes_through_its_files_and_equals_the_merged_model(
    words: str, tiny: Any, tmp_path: Path
) -> None:
    before = tiny.fingerprint
    run = sft.train(tiny, TEXT, adapter=words, steps=8, rate=1e-2, context=16, precision="float32")
    assert tiny.fingerprint == before
    assert run.history["held_all"][-1] < run.history["held_all"][0]
    run.model.save(tmp_path / "model")  # plain transformers opens it with equal logits
    if "merge_every" in words:
        assert run.adapter is None, "the sum of several products is no LoRA"
        return
    run.adapter.save(tmp_path / "adapter")
    again = adapters.attach(tiny, adapters.load(tmp_path / "adapter"))
    ids = torch.arange(9)[None]
    assert torch.allclose(logits(again, ids), logits(run.model, ids), atol=1e-5)
    swapped = adapters.attach(adapters.detach(again), run.adapter)
    assert torch.equal(logits(swapped, ids), logits(again, ids))


def test_relora_exceeds_the_rank_of_one_product(tiny: Any) -> None:
    ranks = {}
    for words in ("lora:rank=1,where=blocks.0.mlp.up", "lora:rank=1,where=blocks.0.mlp.up,merge_every=4"):
        run = sft.train(tiny, TEXT, adapter=words, steps=11, rate=1e-2, context=16)
        moved = run.model.matrix("blocks.0.mlp.up") - tiny.matrix("blocks.0.mlp.up")
        ranks[words] = int(torch.linalg.matrix_rank(moved, rtol=1e-3))
    assert list(ranks.values()) == [1, 3]


def test_relora_resumes_to_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    how = {"adapter": "lora:rank=1,merge_every=2", "context": 16, "schedule": "constant", "evaluate": 3}
    whole = sft.train(tiny, TEXT, steps=6, folder=str(tmp_path / "whole"), **how)
    sft.train(tiny, TEXT, steps=3, folder=str(tmp_path / "cut"), **how)
    again = sft.train(tiny, TEXT, steps=6, folder=str(tmp_path / "cut"), **how)
    assert again.model.fingerprint == whole.model.fingerprint


def test_a_weighted_sum_of_adapters_is_the_sum_of_their_changes(tiny: Any) -> None:
    made = [adapters.fresh(tiny, Spec("lora", rank, 5.0), seed=rank) for rank in (2, 3)]
    g = torch.Generator().manual_seed(0)
    for adapter in made:
        for numbers in adapter.numbers.values():
            numbers["lora_B"].normal_(generator=g)
    both = adapters.merged(tiny, adapters.combined(made, [0.5, -2.0]))
    name = "blocks.1.mlp.down"
    moved = [adapters.merged(tiny, adapter).matrix(name) - tiny.matrix(name) for adapter in made]
    wanted = tiny.matrix(name) + 0.5 * moved[0] - 2 * moved[1]
    assert torch.allclose(both.matrix(name), wanted, atol=1e-4)


def test_an_adapter_for_another_model_is_refused(tiny: Any) -> None:
    adapter = adapters.fresh(tiny, Spec())
    with pytest.raises(WrongTensors, match="made for other weights"):
        adapters.attach(kobza.open("tiny:llama?seed=1"), adapter)
    assert adapters.attach(kobza.open("tiny:llama?seed=1"), adapter, any_base=True)
    with pytest.raises(WrongTensors, match="shape"):
        adapters.attach(kobza.open("tiny:llama?width=64"), adapter, any_base=True)
    with pytest.raises(WrongTensors, match="no part"):
        adapters.attach(kobza.open("tiny:gpt2"), adapter, any_base=True)
    with pytest.raises(BadValue, match="already"):
        adapters.attach(adapters.attach(tiny, adapter), adapter, any_base=True)


def test_a_specification_that_is_wrong_is_refused_with_the_nearest(tiny: Any) -> None:
    with pytest.raises(UnknownName, match="lora"):
        adapters.spec("lra")
    with pytest.raises(UnknownName, match="rank"):
        adapters.spec("lora:rnk=3")
    with pytest.raises(BadValue, match="int"):
        adapters.spec("lora:rank=many")
    with pytest.raises(OutOfRange, match="rank"):
        adapters.spec("lora:rank=0")
    with pytest.raises(NothingMatched):
        adapters.fresh(tiny, Spec(where="layers.*"))
    with pytest.raises(NothingMatched, match="not a matrix"):
        adapters.fresh(tiny, Spec(where="embed.in"))


def test_files_that_are_no_adapter_or_a_stranger_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="adapter_config"):
        adapters.load(tmp_path)
    shutil.copytree(PEFT / "lora", tmp_path / "a")
    config = json.loads((tmp_path / "a" / adapters.CONFIG).read_text())
    (tmp_path / "a" / adapters.CONFIG).write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    with pytest.raises(BadValue, match="PROMPT_TUNING"):
        adapters.load(tmp_path / "a")
    (tmp_path / "a" / adapters.CONFIG).write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    with pytest.raises(BadValue, match="modules_to_save"):
        adapters.load(tmp_path / "a")
    shutil.copyfile(PEFT / "lora" / "seen.safetensors", tmp_path / "a" / adapters.WEIGHTS)
    (tmp_path / "a" / adapters.CONFIG).write_text(json.dumps(config))
    with pytest.raises(Corrupt, match="'ids'"):
        adapters.load(tmp_path / "a")


@pytest.mark.parametrize("kind", ["lora:rank=4", "dora:rank=4"])
def test_an_adapter_on_four_bit_codes_learns_what_it_learns_on_the_numbers_they_stand_for(
    kind: str, tmp_path: Path
) -> None:
    """QLoRA, Dettmers et al. (2023), arXiv:2305.14314: NF4 base, adapter in full precision."""
    base = rounding.apply(kobza.open("tiny"), format="nf4", where="blocks.*.attn.*,blocks.*.mlp.*")
    base.save(tmp_path / "base", dense=True)
    dense = kobza.open(tmp_path / "base")
    rows = [{"prompt": f"sea {n}", "answer": " waves roar"} for n in range(4)]
    how: dict[str, Any] = {"adapter": kind, "steps": 4, "rate": 3e-2, "batch": 4, "context": 32, "held": 0.0}
    before = base.fingerprint
    on_codes, on_numbers = (
        sft.train(model, rows, answer="answer", precision="float32", **how) for model in (base, dense)
    )
    losses = [[row["loss"] for row in run.history][1:] for run in (on_codes, on_numbers)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and losses[0][-1] < losses[0][0]
    assert base.fingerprint == before, "the codes are what they were"
    assert on_codes.facts["trained_parameters"] == on_numbers.facts["trained_parameters"]
    ids = torch.arange(9)[None]
    on = [logits(adapters.attach(base, run.adapter, any_base=True), ids) for run in (on_codes, on_numbers)]
    assert torch.allclose(on[0], on[1], atol=1e-3)


def test_training_goes_on_with_the_adapter_of_a_folder(tmp_path: Path, tiny: Any, pairs: Any) -> None:
    """The reference is the model as it was with that adapter, so the first loss of DPO is ln 2 again."""
    first = sft.train(tiny, pairs, answer="chosen", steps=3, rate=1e-2, adapter="lora:rank=2")
    folder = first.adapter.save(tmp_path / "first")
    second = dpo.train(tiny, pairs, adapter=str(folder), steps=2, rate=1e-2, held=0.0, evaluate=1)
    assert second.history["loss"][1] == pytest.approx(math.log(2), abs=1e-6)
    assert second.history["loss"][2] < math.log(2)
    path = next(iter(first.adapter.numbers))
    before, after = (run.adapter.numbers[path]["lora_B"] for run in (first, second))
    assert not torch.equal(before, after)
    assert after.allclose(before, atol=5e-2)


def test_an_adapter_for_another_model_is_refused_before_training(tmp_path: Path, tiny: Any) -> None:
    folder = sft.train(tiny, TEXT, steps=1).adapter.save(tmp_path / "made")
    with pytest.raises(WrongTensors, match="other weights"):
        sft.train(kobza.open("kobzar"), TEXT, adapter=str(folder), steps=1)
    with pytest.raises(MissingFile, match=r"adapter_config\.json"):
        sft.train(tiny, TEXT, adapter=f"{tmp_path}/nowhere", steps=1)
