"""Merge recipes: mergekit's words become the options of the edit; what cannot be merged is refused with a reason."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kobza
from kobza.cli.main import main
from kobza.core.errors import BadValue, MissingFile, UnknownName, UnknownOption, WrongTensors
from kobza.recipes import merge_recipe

A, B = "tiny:llama?layers=2&seed=0", "tiny:llama?layers=2&seed=1"
TIES = f"""
merge_method: ties
base_model: {A}
models:
  - model: {A}
  - model: {B}
    parameters: {{weight: 0.5, density: 0.5}}
"""
STACK = f"""
merge_method: passthrough
slices:
  - sources: [{{model: "{A}", layer_range: [0, 2]}}]
  - sources: [{{model: "{B}", layer_range: [1, 2]}}]
"""


def loaded(tmp_path: Path, words: str) -> merge_recipe.Merge:
    (tmp_path / "m.yaml").write_text(words)
    return merge_recipe.load(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"models": [{"model": A}, {"model": B, "parameters": {"weight": 3}}]},
         {"method": "linear", "others": [B], "weights": [1.0, 3.0]}),
        ({"merge_method": "slerp", "base_model": A, "models": [{"model": A}, {"model": B}], "parameters": {"t": 0.3}},
         {"method": "slerp", "others": [B], "t": 0.3}),
        ({"merge_method": "task_arithmetic", "base_model": A, "models": [{"model": B, "parameters": {"weight": 0.4}}]},
         {"method": "task", "others": [B], "weights": [0.4]}),
        ({"merge_method": "dare_ties", "base_model": A, "models": [{"model": B}], "parameters": {"density": 0.3}},
         {"method": "dare_ties", "others": [B], "weights": [1.0], "density": 0.3, "random": 1}),
    ],
)  # fmt: skip
def test_mergekits_words_become_options_of_the_edit(data: Any, options: Any) -> None:
    found = merge_recipe.read(data)
    assert found.first == A
    assert found.options == options
    found.recipe.check()


def test_a_file_is_merged_as_the_edit_merges(tmp_path: Path) -> None:
    assert loaded(tmp_path, TIES).options["weights"] == [0.5]
    assert (
        main(["merge", str(tmp_path / "m.yaml"), "--save", str(tmp_path / "out"), "--text", "topics[:400]", "-q"]) == 0
    )
    from kobza.edits import merging

    wanted = merging.apply(kobza.open(A), others=[B], method="ties", weights=[0.5], density=0.5)
    again = kobza.open(tmp_path / "out")
    assert again.fingerprint == wanted.fingerprint
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert "bits per byte: merged" in (tmp_path / "out" / "README.md").read_text()


def test_passthrough_stacks_slices(tmp_path: Path) -> None:
    merged = merge_recipe.run(loaded(tmp_path, STACK), save=tmp_path / "out")
    again = kobza.open(tmp_path / "out")
    assert again.layers == 3
    assert torch.equal(again.matrix("blocks.2.mlp.up"), kobza.open(B).matrix("blocks.1.mlp.up"))
    assert merged.made_by["recipe"]["steps"]


def test_the_line_shows_the_barrier_and_its_ends(tmp_path: Path) -> None:
    result = merge_recipe.run(loaded(tmp_path, TIES), line=3, text=["topics[:400]"])
    table = result.tables[0]
    assert [row["t"] for row in table] == [0.0, 0.5, 1.0]
    assert "barrier" in table.note
    assert table.figures[0].data["series"][0]["y"] == [row["bits_per_byte"] for row in table]


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ("merge_method: magic", UnknownName, "magic"),
        ("merge_methods: ties", UnknownOption, "merge_method"),
        ("merge_method: ties\nmodels: [{model: a}]", BadValue, "base_model"),
        ("models: []", BadValue, "no list of models"),
        ("models: [{model: a}, {model: b, parameters: {weight: [1, 2]}}]", BadValue, "not a number"),
        ("models: [{model: a}]\nparameters: {normalize: false}", BadValue, "normalize"),
        ("merge_method: passthrough", BadValue, "slices"),
        ("merge_method: dare_ties\nbase_model: a\nmodels: [{model: b, parameters: {density: 0.1}},"
         " {model: c, parameters: {density: 0.2}}]", BadValue, "densities"),
        ("models: [{model: a}]\ntokenizer_source: other", BadValue, "line 2"),
        ("- a", BadValue, "list of fields"),
    ],
)  # fmt: skip
def test_words_that_say_nothing_here_are_refused(words: str, error: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        loaded(tmp_path, words)


def test_two_families_and_a_missing_file_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "tiny:qwen2?layers=2"
    with pytest.raises(WrongTensors, match="families 'llama' and 'qwen2'"):
        merge_recipe.run(loaded(tmp_path, f"models: [{{model: '{A}'}}, {{model: '{other}'}}]"), save=tmp_path / "out")
    with pytest.raises(BadValue, match="between two models"):
        merge_recipe.run(loaded(tmp_path, f"models: [{{model: '{A}'}}]"), line=3)
    with pytest.raises(MissingFile, match=r"no recipe 'none\.yaml'"):
        merge_recipe.load("none.yaml")
    assert not (tmp_path / "out").exists()
