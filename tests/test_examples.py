"""Every example runs, on the tiny model."""

import runpy
from pathlib import Path

import pytest

from kobza.core import techniques
from kobza.recipes.recipe import Recipe

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(path), "tiny"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", sorted(EXAMPLES[0].parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipe_is_a_sweep_of_known_techniques(path: Path) -> None:
    recipe = Recipe.from_yaml(path.read_text(encoding="utf-8"))
    assert recipe.is_sweep
    assert len(list(recipe.points())) > 10
    for chain in recipe.compare:
        for step in chain:
            assert set(step.options) <= {option.name for option in techniques.described("edits", step.name)}


def test_the_example_of_the_readme_runs_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    for real, tiny in (('"smollm2"', '"tiny"'), ("rank=386", "rank=8"), ('" lava"', '" t"'), ("[:6000]", "[:600]")):
        assert real in code
        code = code.replace(real, tiny)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "bits_per_byte difference" in capsys.readouterr().out
    assert (tmp_path / "smaller" / "model.safetensors").is_file()
