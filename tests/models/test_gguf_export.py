"""GGUF: written, opened again, and run by llama.cpp with our logits; codes are taken over to the bit."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import kobza
from kobza.core.errors import BadValue, CannotWrite, CheckFailed, Unavailable
from kobza.edits import _grids as grids
from kobza.edits import rounding
from kobza.models import forward, gguf_export, gguf_vocabulary
from kobza.models.gguf_header import read_header

IDS = list(range(3, 40))


def llama_logits(path: Path) -> np.ndarray:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra 'llama' (llama-cpp-python) is not installed")
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    model.eval(IDS)
    found = np.array(model.scores[: len(IDS)])
    model.close()
    return found


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_the_blocks_of_our_codes_are_the_gguf_packages_bytes(form: str) -> None:
    W = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) ** 3
    kind, rows = gguf_export.blocks(grids.rounded(W, grids.PRESETS[form])) or ("", np.zeros(0))
    assert kind == form
    assert np.array_equal(rows, gguf.quantize(W.numpy(), gguf.GGMLQuantizationType[form.upper()]))


@pytest.mark.parametrize(
    "given",
    [
        grids.Grid("signed", 3, 32), grids.Grid("signed", 2, 64), grids.Grid("signed", 6, 0),
        grids.Grid("unsigned", 2, 32), grids.Grid("unsigned", 5, 96), grids.Grid("unsigned", 4, -1),
    ],
)  # fmt: skip
def test_other_grids_fit_into_blocks_without_a_change(given: grids.Grid) -> None:
    value = grids.rounded(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), given)
    kind, rows = gguf_export.blocks(value) or ("", np.zeros(0))
    read = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(read, value.dense().numpy())


def test_what_no_block_can_say_is_not_forced_into_one() -> None:
    W = torch.randn(64, 96)
    assert gguf_export.blocks(grids.rounded(W, grids.Grid("unsigned", 4, 16))) is None
    assert gguf_export.blocks(grids.rounded(W, grids.Grid("nf4", 4, 32))) is None
    assert gguf_export.blocks(grids.rounded(W, grids.Grid("unsigned", 8, 32))) is None
    assert gguf_export.blocks(grids.rounded(W[:, :48], grids.PRESETS["q4_0"])) is None


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_llama_cpp_gives_our_logits(family: str, kind: str, tmp_path: Path) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    found = gguf_export.export(model, tmp_path / "m.gguf", type=kind)
    assert found.file_bytes == (tmp_path / "m.gguf").stat().st_size
    again = kobza.open(tmp_path / "m.gguf")
    ours = forward.logits(again, torch.tensor([IDS]))[0].numpy()
    if kind == "f32":
        assert again.fingerprint == model.fingerprint
        assert found.largest_difference == 0
    theirs = llama_logits(tmp_path / "m.gguf")
    # llama.cpp keeps keys and values in float16, and multiplies blocks with inputs rounded to 8 bits
    assert np.abs(theirs - ours).max() < (0.01 if kind == "f32" else 0.05) * np.abs(ours).max()
    if kind == "f32":
        assert (theirs.argmax(1) == ours.argmax(1)).all()


def test_codes_are_kept_and_the_rest_is_converted(tiny: Any, tmp_path: Path) -> None:
    edited = rounding.apply(tiny, format="q4_0")
    found = gguf_export.export(edited, tmp_path / "m.gguf", type="f16")
    assert found.kept_codes == 14
    assert found.types == {"f16": 1, "f32": 5, "q4_0": 14}
    assert found.tensor_bytes == edited.stored_bytes - tiny.matrices["embed.in"].bytes // 2
    again = kobza.open(tmp_path / "m.gguf")
    for name in edited.changes[-1].matrices:
        assert torch.equal(again.matrix(name), edited.matrix(name))


def test_an_untied_model_keeps_both_ends(tiny: Any, tmp_path: Path) -> None:
    edited = rounding.apply(tiny, where="embed.in", format="q8_0")
    gguf_export.export(edited, tmp_path / "m.gguf", type="f32")
    again = kobza.open(tmp_path / "m.gguf")
    assert not again.is_tied
    assert torch.equal(again.matrix("embed.out"), tiny.matrix("embed.out"))
    assert torch.equal(again.matrix("embed.in"), edited.matrix("embed.in"))


def test_what_cannot_be_written_leaves_nothing_behind(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadValue, match="q2_k"):
        gguf_export.export(tiny, tmp_path / "m.gguf", type="q2_k")
    with pytest.raises(Unavailable, match="gpt2"):
        gguf_export.export(kobza.open("tiny:gpt2?layers=1"), tmp_path / "m.gguf")
    with pytest.raises(CannotWrite, match="no folder"):
        gguf_export.export(tiny, tmp_path / "none" / "m.gguf")

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(CannotWrite, match="no space left"):
        gguf_export.export(tiny, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_reads_back_otherwise_is_not_left_there(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "_permuted", lambda rows, name, model: rows)
    with pytest.raises(CheckFailed, match="attn_q"):
        gguf_export.export(tiny, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_splitting_rules_have_llama_cpps_names(tiny: Any) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert gguf_vocabulary.splitting(byte_level) == "gpt-2"
    assert gguf_vocabulary.splitting({"type": "Sequence", "pretokenizers": [digits, byte_level]}) == "smollm"
    with pytest.raises(Unavailable, match="no name"):
        gguf_vocabulary.splitting({"type": "Whitespace"})


@pytest.mark.real
def test_the_real_model_comes_back_as_it_was_read(smollm2: Any, tmp_path: Path) -> None:
    edited = rounding.apply(smollm2, where="blocks", format="q4_1")
    found = gguf_export.export(edited, tmp_path / "m.gguf", type="q8_0")
    original, copy = read_header(Path(smollm2.origin.path)), read_header(tmp_path / "m.gguf")
    for key in ("tokens", "merges", "token_type", "bos_token_id", "eos_token_id"):
        assert copy.fields[f"tokenizer.ggml.{key}"] == original.fields[f"tokenizer.ggml.{key}"]
    for key, value in original.fields.items():
        if key.startswith("llama."):
            assert copy.fields[key] == pytest.approx(value), key
    assert found.types == {"q8_0": 1, "q4_1": 210, "f32": 61}
    assert copy.tensors.keys() == original.tensors.keys()
    assert found.largest_difference < 0.02  # both grids are those it was read from; scales round once more
    llama_cpp = pytest.importorskip("llama_cpp", reason="the extra 'llama' (llama-cpp-python) is not installed")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    ids = smollm2.tokenizer.encode(b"The three states of matter are solid, liquid and gas. In 1969, 12 men")
    assert theirs.tokenize(b"The three states of matter are solid, liquid and gas. In 1969, 12 men", False) == ids
    theirs.eval(ids)
    ours = forward.logits(smollm2, torch.tensor([ids]))[0]
    read = torch.tensor(np.array(theirs.scores[: len(ids)]))
    assert (read.argmax(1) == ours.argmax(1)).float().mean() > 0.8
    gap = torch.nn.functional.kl_div(read.log_softmax(1), ours.log_softmax(1), log_target=True, reduction="batchmean")
    assert float(gap) < 0.02  # nats a token


def test_k_quants_are_refused_with_the_reason(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="blocks of 256 columns; the narrowest matrix of 'tiny:llama' has 32"):
        gguf_export.export(tiny, tmp_path / "x.gguf", type="q4_k")


def test_plain_transformers_opens_the_file_with_equal_logits(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers wants accelerate for GGUF files")
    from transformers import AutoModelForCausalLM

    edited = rounding.apply(tiny, format="q4_0")
    gguf_export.export(edited, tmp_path / "m.gguf", type="f32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        theirs = plain(input_ids=ids).logits
    assert torch.allclose(theirs, forward.logits(edited, ids), atol=1e-5)


def test_a_card_stands_beside_the_file(tiny: Any, tmp_path: Path) -> None:
    edited = rounding.apply(tiny, format="q4_0")
    gguf_export.export(edited, tmp_path / "m.gguf", readings=["1.234 bits per byte"], texts={"yaml": "open: tiny\n"})
    words = (tmp_path / "m.gguf.md").read_text()
    assert "- 1.234 bits per byte" in words and "**rounding**" in words and edited.fingerprint in words
    assert (tmp_path / "m.gguf.yaml").read_text() == "open: tiny\n"
