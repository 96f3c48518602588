"""kobza train and kobza tune: from words to a folder that opens, and back to the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kobza
from kobza.cli.main import main
from kobza.core.result import Result
from kobza.training.parts import adapters

SMALL = "layers=1,width=32,heads=2,context=16,batch=2"


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_train_says_what_it_will_take_saves_and_goes_on(tmp_path: Path, capsys: Any) -> None:
    words = ["train", "topics[:6000]", "--vocabulary", "300", "--budget", "4steps", "--set", SMALL, "--quiet"]
    assert main([*words, "--save", str(tmp_path / "new")]) == 0
    out, err = told(capsys)
    assert "parameters are trained" in err
    assert "held out" in err
    assert "bit/B" in out
    assert "the budget of 4 steps is spent" in out
    assert kobza.open(tmp_path / "new" / "model").layers == 1
    assert main([*words, "--save", str(tmp_path / "new")]) == 0
    assert "stays as it is" in told(capsys)[1]


def test_tune_writes_the_merged_model_and_the_adapter(tmp_path: Path, capsys: Any, pairs: Any) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in pairs))
    words = ["tune", "tiny", "--objective", "dpo", "--data", str(data), "--budget", "2steps", "--set", "beta=0.2"]
    assert main([*words, "--save", str(tmp_path / "tuned"), "--json"]) == 0
    found = json.loads(told(capsys)[0])
    assert found["made_by"]["facts"]["steps"] == 2
    base = kobza.open("tiny")
    adapter = adapters.load(tmp_path / "tuned" / "adapter")
    merged = adapters.merged(base, adapter)
    tuned = kobza.open(tmp_path / "tuned" / "model")
    assert merged.matrix("blocks.0.attn.q").allclose(tuned.matrix("blocks.0.attn.q"), atol=1e-6)


def test_a_short_text_gets_the_vocabulary_it_allows(capsys: Any) -> None:
    words = ["train", "topics[:2000]", "--budget", "1steps", "--set", SMALL, "--quiet"]
    assert main(words) == 0
    assert "it allows a vocabulary of" in told(capsys)[1]


def test_a_run_that_goes_on_says_from_where(tmp_path: Path, capsys: Any) -> None:
    words = ["train", "topics[:6000]", "--vocabulary", "bytes", "--set", f"{SMALL},schedule=constant", "--quiet"]
    for steps in ("2steps", "4steps"):
        assert main([*words, "--budget", steps, "--save", str(tmp_path)]) == 0
    err = told(capsys)[1]
    assert f"goes on from '{tmp_path / 'run' / 'step-00000002'}'" in err
    assert f"kobza say '{tmp_path / 'model'}'" in err


@pytest.mark.slow
@pytest.mark.parametrize("flag", [[], ["--sharded"]])
def test_of_two_processes_one_speaks_and_saves(flag: list[str], tmp_path: Path, capsys: Any) -> None:
    words = ["train", "topics[:6000]", "--vocabulary", "bytes", "--budget", "4steps", "--set", SMALL, "--json"]
    assert main([*words, "--quiet", "--save", str(tmp_path / "one")]) == 0
    alone = json.loads(told(capsys)[0])
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "kobza"]
    found = subprocess.run(
        [*ranks, *words, *flag, "--save", str(tmp_path / "two")],
        capture_output=True, text=True, timeout=170, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stderr.count("saved ") == 1
    both = json.loads(found.stdout)  # one document
    held = [[row["held"] for row in rows(told)] for told in (alone, both)]
    assert held[1] == pytest.approx(held[0], abs=1e-3)
    assert both["made_by"]["facts"]["ranks"] == 2
    assert kobza.open(tmp_path / "two" / "model").layers == 1


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result's first table."""
    table = Result.from_json(found).tables[0]
    return table.rows


def test_several_texts_are_mixed(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "song.txt").write_text("the banks of the wide Dnipro, the steep cliffs. " * 60)
    text, sizes = f"topics[:3000];{tmp_path / 'song.txt'}", "width=32,heads=2,context=16,batch=4"
    words = ["train", text, "--mix", "doremi", "--vocabulary", "300", "--size", "1", "--set", sizes]
    assert main([*words, "--budget", "4steps", "--save", str(tmp_path / "mixed"), "--json", "--quiet"]) == 0
    found = json.loads(told(capsys)[0])
    assert found["made_by"]["facts"]["weights"].keys() == {"topics[:3000]", "song.txt"}
    assert kobza.open(tmp_path / "mixed" / "model").layers == 1
    assert main([*words, "--budget", "1.6bpb", "--quiet"]) == 2
    assert "by a number of steps" in told(capsys)[1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "nowhere.txt"], 2, "MissingFile"),
        (["train", "topics[:5000]", "--budget", "soon"], 2, "budget 'soon'"),
        (["train", "topics[:5000]", "--set", "layrs=2"], 2, "'layers'"),
        (["train", "topics[:5000]", "--set", "seed=2"], 2, "--seed"),
        (["train", "topics[:5000];source[:5000]"], 2, "--mix"),
        (["tune", "tiny", "--data", "topics[:2000]", "--objective", "dop"], 2, "'dpo'"),
        (["tune", "tiny", "--data", "topics[:2000]", "--adapter", "lra"], 2, "'lora'"),
    ],
)
def test_bad_words_are_answered_in_a_line(words: list[str], code: int, said: str, capsys: Any) -> None:
    assert main([*words, "--quiet"]) == code
    assert said in told(capsys)[1]
