"""Shrink: three budgets on a tiny model; what the report says is on the disk, and its recipe makes it again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kobza
from kobza.cli.main import main
from kobza.core.errors import BadValue, CannotWrite, CheckFailed, NotComparable, OutOfRange
from kobza.core.files import sha256_file
from kobza.recipes import compositions, shrink
from kobza.recipes.journal import Journal
from kobza.recipes.recipe import Recipe, chain

MODEL = "tiny:llama?layers=4&width=64&seed=0"
TEXTS: dict[str, Any] = {"text": ["topics[:900]"], "search": ["topics[200000:200900]"], "calibration_tokens": 256}


@pytest.fixture(autouse=True)
def _own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def made_again(recipe: Path, path: Path) -> str:
    assert main(["export", str(recipe), str(path), "--to", "gguf:f16", "-q"]) == 0
    return sha256_file(path)


def test_a_budget_of_bytes_is_kept_and_the_recipe_makes_the_same_file(tmp_path: Path) -> None:
    result = kobza.shrink(MODEL, to="33%", out=tmp_path / "m.gguf", **TEXTS)
    made = result.made_by
    assert result.reading("stored_bytes").value <= 0.33 * made["bases"]["16"]
    again = kobza.open(tmp_path / "m.gguf")
    from kobza.models.gguf_header import read_header

    on_disk = sum(tensor.nbytes for tensor in read_header(tmp_path / "m.gguf").tensors.values())
    assert on_disk == result.reading("stored_bytes").value
    assert made["files"]["m.gguf"]["sha256"] == sha256_file(tmp_path / "m.gguf")
    assert made["reopened_difference"] < 1e-4
    assert again.layers == 4
    assert made_again(tmp_path / "m.gguf.yaml", tmp_path / "again.gguf") == sha256_file(tmp_path / "m.gguf")
    card = (tmp_path / "m.gguf.md").read_text()
    assert "bits per byte on topics[0:900]" in card and "gptq" in card and "kobza edit" in card


def test_a_budget_of_loss_is_kept_on_the_held_out_text(tmp_path: Path) -> None:
    result = kobza.shrink(MODEL, lose=0.02, out=tmp_path / "m.gguf", **TEXTS)
    assert result.made_by["held_out_loss"] <= 0.02
    assert result.reading("stored_bytes").value < 0.5 * result.made_by["bases"]["16"]


def test_the_smallest_forms_are_tried_where_bytes_alone_promise_too_little_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter((1.1, 2.2))  # small forms may have faster kernels than their bytes say
    monkeypatch.setattr(compositions, "rates", lambda *_: {"base": 1.0, "other": 1.0, "ratio": next(ratios)})
    result = kobza.shrink(MODEL, speed="2x", out=tmp_path / "m.gguf", **TEXTS)
    assert "layer_drop" not in result.made_by["winner"]
    assert [trial["speed"] for trial in result.made_by["trials"]] == [1.1, 2.2]


def test_a_budget_of_speed_is_measured_in_one_run_with_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def rates(base: Any, other: Any, backend: str) -> dict[str, float]:
        seen.append(backend)
        ratio = (base.stored_bytes / other.stored_bytes) ** 0.5  # as if a token cost more than its bytes
        return {"base": 1.0, "other": ratio, "ratio": ratio}

    monkeypatch.setattr(compositions, "rates", rates)
    result = kobza.shrink(MODEL, speed="1.4x", form="hf", out=tmp_path / "m", **TEXTS)
    winner = next(t for t in result.made_by["trials"] if t["line"] == result.made_by["winner"])
    assert winner["speed"] >= 1.4
    assert set(seen) == {""}
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert str(plain.dtype) == "torch.bfloat16"
    assert (tmp_path / "m" / "recipe.yaml").is_file()


def test_layers_go_where_forms_alone_do_not_reach_the_budget() -> None:
    model = kobza.open(MODEL)
    least = kobza.shrink(MODEL, to="100%", **TEXTS).made_by["bases"]["16"]
    result = kobza.shrink(MODEL, to="26%", **TEXTS)
    assert "layer_drop" in result.made_by["winner"]
    assert result.reading("stored_bytes").value <= 0.26 * least
    assert kobza.open(MODEL).fingerprint == model.fingerprint


def test_a_budget_that_cannot_be_met_says_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckFailed, match=r"within 2,163 bytes. The best reached: .* bytes .* layer_drop:layers="):
        kobza.shrink(MODEL, to="0.5%", out=tmp_path / "m.gguf", **TEXTS)
    monkeypatch.setattr(compositions, "rates", lambda *given: {"base": 1.0, "other": 1.2, "ratio": 1.2})
    with pytest.raises(
        CheckFailed, match=r"within 9 times as fast. The best reached: [\d,]+ bytes .* bit/B, 1.20 times"
    ):
        kobza.shrink(MODEL, speed="9x", form="hf", out=tmp_path / "m", **TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_same_command_measures_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = kobza.shrink(MODEL, to="33%", **TEXTS)
    monkeypatch.setattr(compositions.running, "read", lambda *given: pytest.fail("measured again"))
    monkeypatch.setattr(compositions.running, "apply", lambda *given: pytest.fail("edited again"))
    again = kobza.shrink(MODEL, to="33%", **TEXTS)
    assert str(again) == str(first)
    assert again.made_by == first.made_by


def test_killed_it_goes_on_where_it_was_and_ends_in_the_same_file(tmp_path: Path) -> None:
    whole = kobza.shrink(MODEL, to="26%", out=tmp_path / "whole.gguf", folder=tmp_path / "whole", **TEXTS)
    code = (
        "import sys, kobza; kobza.shrink(sys.argv[1], to='26%', out=sys.argv[2], folder=sys.argv[3], "
        "text=['topics[:900]'], search=['topics[200000:200900]'], calibration_tokens=256)"
    )
    words = [sys.executable, "-c", code, MODEL, str(tmp_path / "m.gguf"), str(tmp_path / "killed")]
    for least in (2, 4):  # killed twice, at different places
        process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while process.poll() is None and _finished(tmp_path / "killed") < least:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    assert not (tmp_path / "m.gguf").exists()
    again = kobza.shrink(MODEL, to="26%", out=tmp_path / "m.gguf", folder=tmp_path / "killed", **TEXTS)
    assert again.made_by["winner"] == whole.made_by["winner"]
    assert sha256_file(tmp_path / "m.gguf") == sha256_file(tmp_path / "whole.gguf")
    assert str(again) == str(whole)


def _finished(folder: Path) -> int:
    try:
        with Journal(folder / "journal.sqlite", create=False) as journal:
            return len(journal.entries())
    except kobza.KobzaError:
        return 0


def test_texts_that_choose_are_refused_as_test_texts() -> None:
    with pytest.raises(NotComparable, match="the search text 'topics.*holds 100%"):
        kobza.shrink(MODEL, to="50%", text=["topics[:900]"], search=["topics[:900]"])
    with pytest.raises(NotComparable, match="the calibration text .*holds 9.%"):
        kobza.shrink(MODEL, to="50%", text=["topics[330000:331000]"], search=["topics[200000:200900]"])
    with pytest.raises(NotComparable, match="calibration text 'topics"):
        tried = ["narrowing:share=0.9,calibration=topics[:5000]"]
        kobza.shrink(MODEL, to="50%", attempts=tried, **TEXTS)


def test_words_that_are_no_budget_are_refused() -> None:
    for given in ({}, {"to": "a lot"}, {"to": "1.2.3%"}, {"speed": "fast"}):
        with pytest.raises(BadValue):
            kobza.shrink(MODEL, **given, **TEXTS)
    for given in ({"to": "0%"}, {"lose": -1.0}, {"speed": "0x"}, {"lose": float("nan")}):
        with pytest.raises(OutOfRange, match="above 0"):
            kobza.shrink(MODEL, **given, **TEXTS)
    with pytest.raises(BadValue, match="no base 'file'"):
        kobza.shrink(MODEL, to="50%", of="file", **TEXTS)
    assert shrink.read_budget("80M", 0.5, "2x", 1) == shrink.Budget(80_000_000, 0.5, 2.0)


def test_a_full_disk_leaves_no_part_of_the_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(CannotWrite, match="no space left"):
        kobza.shrink(MODEL, to="50%", out=tmp_path / "m.gguf", **TEXTS)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    from kobza.models import saving

    monkeypatch.setattr(saving, "write_safetensors", full)
    with pytest.raises(CannotWrite, match="no space left"):
        kobza.shrink(MODEL, to="50%", form="codes", out=tmp_path / "m", **TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_codes_hold_three_bits_and_open_again(tmp_path: Path) -> None:
    result = kobza.shrink(MODEL, to="22%", form="codes", out=tmp_path / "m", **TEXTS)
    assert "bits=3" in result.made_by["winner"] or "bits=2" in result.made_by["winner"]
    again = kobza.open(tmp_path / "m")
    assert again.stored_bytes == result.reading("stored_bytes").value
    recipe = Recipe.load(tmp_path / "m" / "recipe.yaml")
    assert recipe.steps == Recipe(steps=chain(result.made_by["winner"])).check().steps
    with pytest.raises(BadValue, match="dense"):
        kobza.shrink(MODEL, speed="2x", form="codes", **TEXTS)


def test_the_command_prints_the_frontier_and_refuses_with_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--text", "topics[:900]", "--search", "topics[200000:200900]", "--calibration-tokens", "256", "-q"]
    assert main(["shrink", MODEL, "--to", "60%", "--json", *words]) == 0
    assert '"winner"' in capsys.readouterr().out
    assert main(["shrink", MODEL, "--to", "60%", "-o", str(tmp_path / "page.html"), *words]) == 0
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert main(["shrink", MODEL, *words]) == 2
    assert "no budget is given" in capsys.readouterr().err
    assert main(["shrink", MODEL, "--to", "0.5%", *words]) == 1
    assert "The best reached" in capsys.readouterr().err
