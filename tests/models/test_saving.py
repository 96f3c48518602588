"""Saved folders: plain transformers opens them with equal logits; factors, ties and history come back."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kobza.core.errors import CannotWrite, CheckFailed, Corrupt, Unsafe, WrongTensors
from kobza.models import record, replacing, saving
from kobza.models.building import quiet
from kobza.models.forward import logits
from kobza.models.model import Change, Factors, Model, Origin
from kobza.models.tiny import FAMILIES, tiny

IDS = torch.tensor([[0, 40, 50, 60, 70, 80]])
EDIT = Change("scaling", {"factor": 1.25}, ["embed.in"], seed=7)


def factors(W: torch.Tensor, rank: int) -> Factors:
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return Factors((U * S)[:, :rank].contiguous(), Vt[:rank].contiguous())


def plain(folder: Path) -> torch.Tensor:
    """Logits of the folder opened by transformers alone."""
    with quiet():
        module = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        out: torch.Tensor = module(IDS).logits
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ["", "embed", "embed.in", "embed.out"])
def test_plain_transformers_gives_equal_logits(family: str, end: str, tmp_path: Path) -> None:
    model = tiny(family)
    if end:
        model = model.replace({end: 1.25 * model.matrix(end)}, change=EDIT)
    saved = model.save(tmp_path / "saved")
    assert torch.equal(plain(saved.path), logits(model, IDS))
    config = json.loads((saved.path / "config.json").read_text())
    assert config["tie_word_embeddings"] == model.is_tied == (end in ("", "embed"))
    assert saved.opens_in_transformers and saved.largest_difference == 0
    weights = (saved.path / "model.safetensors").stat().st_size
    assert saved.stored_bytes == model.stored_bytes < weights < saved.stored_bytes + 10_000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_factors_come_back_and_transformers_refuses_them(family: str, is_tied: bool, tmp_path: Path) -> None:
    model = tiny(family)
    linear = model.find("blocks.1.mlp.down")[0]
    key = "embed" if is_tied else "embed.in"
    new = {key: factors(model.matrix("embed"), 8), linear: factors(model.matrix(linear), 4)}
    thin = model.replace(new, change=Change("lowrank", kind="factor"))
    saved = thin.save(tmp_path / "thin")
    assert not saved.opens_in_transformers and "dense=True" in saved.statement
    assert saved.stored_bytes == thin.stored_bytes < model.stored_bytes or not is_tied
    with pytest.raises(OSError, match=r"model\.safetensors"):
        plain(saved.path)
    module = saving._reopened(thin, saved.path)
    with torch.no_grad():
        assert torch.equal(module(IDS).logits, logits(thin, IDS))
    about = record.read(saved.path)
    assert about is not None and about.fingerprint == thin.fingerprint and about.is_tied == is_tied
    dense = thin.save(tmp_path / "dense", dense=True)
    assert torch.allclose(plain(dense.path), logits(thin, IDS), atol=1e-4)
    assert dense.opens_in_transformers and "as big as" in dense.statement


def test_a_saved_model_opens_again_with_its_history(tmp_path: Path) -> None:
    import kobza

    model = tiny().replace({"embed.in": factors(tiny().matrix("embed"), 8)}, change=EDIT)
    again = kobza.open(str(model.save(tmp_path / "saved").path))
    assert again.fingerprint == model.fingerprint and again.changes == model.changes
    assert again.matrices["embed.in"].rank == 8 and again.stored_bytes == model.stored_bytes
    assert again.origin.spec == model.origin.spec
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_the_tokenizer_is_saved_with_the_model(tmp_path: Path) -> None:
    model = tiny()
    theirs = AutoTokenizer.from_pretrained(model.save(tmp_path / "saved").path)
    assert theirs("The kobza.", add_special_tokens=False)["input_ids"] == model.tokenizer.encode("The kobza.")


def test_card_and_record_state_origin_licence_and_changes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "LICENSE").write_text("do what you like")
    base = tiny()
    origin = Origin("org/name", str(source), "apache-2.0", "ab" * 32, "safetensors", ("a note",))
    model = Model("name", base.module, base.tokenizer, origin=origin)
    model = model.replace({"embed.in": 1.25 * model.matrix("embed")}, change=EDIT)
    folder = model.save(tmp_path / "saved").path
    card = (folder / "README.md").read_text()
    for words in ("license: apache-2.0", "org/name", "ab" * 32, "scaling", "seed 7", "a note", model.fingerprint):
        assert words in card
    assert (folder / "LICENSE").read_text() == "do what you like"
    about = record.read(folder)
    assert about is not None
    assert (about.origin, about.changes, about.fingerprint) == (origin, (EDIT,), model.fingerprint)


def test_a_quantisation_left_by_a_gguf_is_not_written(tmp_path: Path) -> None:
    model = tiny()
    model.module.config.quantization_config = {"quant_method": "gguf"}
    folder = model.save(tmp_path / "saved").path
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert torch.equal(plain(folder), logits(model, IDS))


def test_half_precision_stays_half(tmp_path: Path) -> None:
    half = tiny()
    replacing.cast(half.module, torch.bfloat16)
    saved = half.save(tmp_path / "saved")
    assert saved.stored_bytes == tiny().stored_bytes // 2
    assert json.loads((saved.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SHARD", 50_000)
    model = tiny()
    folder = model.save(tmp_path / "saved").path
    assert len(list(folder.glob("model-*-of-00003.safetensors"))) == 3
    assert torch.equal(plain(folder), logits(model, IDS))


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        folder = tiny().save(tmp_path / "saved").path
    finally:
        os.umask(old)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}


def test_our_writer_equals_the_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.randn(4, 4).bfloat16().T,
        "d": torch.empty(0, 3),
    }
    saving.write_safetensors(tmp_path / "x.safetensors", tensors)
    again = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors.items())


def test_nothing_is_left_where_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CannotWrite, match="file is in its place"):
        model.save(tmp_path / "file")
    with pytest.raises(CannotWrite, match="no folder"):
        model.save(tmp_path / "no" / "such")
    other = model.replace({"norm": 2 * model.matrix("norm")}, change=EDIT)
    monkeypatch.setattr(saving, "_reopened", lambda *_: other.module)
    with pytest.raises(CheckFailed, match="different weights"):
        model.save(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "other"}', '{"schema": "kobza.model/1"}', "null", "1" * 9999]
)
def test_a_broken_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(Corrupt, match="not a record"):
        record.read(tmp_path)


def test_factors_that_do_not_fit_are_refused() -> None:
    about = record.Record("m", Origin("m"), (), "", 0, True, (), {"embed": {"A": "a", "B": "b", "weight": "w"}})
    with pytest.raises(WrongTensors, match="embed"):
        about.unfactored({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)})
    with pytest.raises(WrongTensors, match="embed"):
        about.unfactored({"a": torch.zeros(3, 2)})


def test_no_record_is_no_record(tmp_path: Path) -> None:
    assert record.read(tmp_path) is None


def test_code_that_came_with_a_model_is_not_passed_on(tmp_path: Path) -> None:
    model = tiny()
    model.module.__class__ = type("Foreign", (type(model.module),), {"__module__": "transformers_modules.x.y"})
    with pytest.raises(Unsafe, match="does not pass such code on"):
        model.save(tmp_path / "saved")


@pytest.mark.real
def test_the_real_model_is_saved_and_opened_by_plain_transformers(smollm2: Model, tmp_path: Path) -> None:
    edited = smollm2.replace({"embed.in": 1.25 * smollm2.matrix("embed")}, change=EDIT)
    saved = edited.save(tmp_path / "saved")
    assert torch.equal(plain(saved.path), logits(edited, IDS))
    assert not edited.is_tied and saved.stored_bytes == smollm2.stored_bytes + 4 * 49152 * 576
