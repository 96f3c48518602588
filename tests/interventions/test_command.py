"""The command line: one command per technique, made from its signature, with its own words in every error."""

import json
from pathlib import Path

import pytest

from kobza.cli.main import main
from kobza.core import techniques
from kobza.core.result import Result

PROMPT = "the banks of it"


@pytest.mark.parametrize("name", techniques.names("interventions"))
def test_help_names_every_option_with_its_range(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([techniques.COMMANDS.get(name, name), "--help"]) == 0
    shown = capsys.readouterr().out
    for option in techniques.described("interventions", name):
        assert f"--{option.name.replace('_', '-')}" in shown


def test_ablate_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "tiny", "--over", "neuron.1.*", "--prompt", PROMPT, "--metric", "prob,top1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tables"][0]["rows"]) == 96


def test_patch_saves_a_folder_with_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["patch", "tiny", "--clean", "the winds of it", "--corrupt", "the winks of it", "--metric", "logit: t"]
    assert main([*words, "--save", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert Result.load(tmp_path / "run").made_by["how"]["metric"] == "logit: t"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ablate", "tiny"], "needs the option 'prompt'"),
        (["ablate", "tiny", "--prompt", PROMPT, "--kind", "zerro"], "'zero'"),
        (["ablate", "tiny", "--prompt", PROMPT, "--over", "neurn.1.*"], "neuron"),
        (["patch", "tiny", "--clean", "the banks", "--corrupt", "the ta"], "positions do not correspond"),
        (["heads", "tiny", "--length", "2"], "length=2"),
    ],
)
def test_bad_words_end_with_2_and_say_what_is_allowed(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err
