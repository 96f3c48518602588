"""Names of models: what each leads to, and what is said where one leads nowhere."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import kobza
from kobza.core.errors import (
    BadValue,
    Corrupt,
    KobzaError,
    MissingFile,
    Offline,
    OutOfRange,
    UnknownName,
    UnknownOption,
)
from kobza.models.tiny import tiny

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        ("smolm2", UnknownName, "Nearest: 'smollm2'"),
        ("./nothing/here", MissingFile, "no file or folder './nothing/here'"),
        ("nothing.gguf", MissingFile, "no file or folder 'nothing.gguf'"),
        ("/nowhere/model.safetensors", MissingFile, "no file or folder"),
        ("tiny:lama", UnknownName, "'llama'"),
        ("tiny:llama?layer=2", UnknownOption, "'layers'"),
        ("tiny:llama?layers=0", OutOfRange, "layers"),
        ("tiny:llama?layers=two", BadValue, "two"),
        ("org/name", Offline, "hf download org/name"),
        ("org/name@v1.0", Offline, r"hf download org/name --revision v1\.0"),
        ("org/name:file.gguf", Offline, "org/name"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_names_that_lead_nowhere_say_what_is_near(spec: str, kind: type[KobzaError], says: str) -> None:
    with pytest.raises(kind, match=says):
        kobza.open(spec)


def test_a_missing_file_names_its_neighbors(folder: Path) -> None:
    with pytest.raises(MissingFile, match=r"Nearest: 'model.safetensors'"):
        kobza.open(folder / "modell.safetensors")


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(BadValue, match="is not a model"):
        kobza.open(folder / "config.json")


def test_an_unknown_type_of_weights_is_refused(folder: Path) -> None:
    with pytest.raises(BadValue, match="float32, float16, bfloat16, not 'int8'"):
        kobza.open(folder, dtype="int8")


def test_options_of_a_tiny_model_are_those_of_its_function() -> None:
    opened = kobza.open("tiny:qwen2?layers=3&seed=5")
    assert opened.fingerprint == tiny("qwen2", layers=3, seed=5).fingerprint
    assert kobza.open("tiny").fingerprint == tiny().fingerprint


def test_a_folder_with_one_gguf_opens_it_and_with_two_asks_which(tmp_path: Path, writer: Any) -> None:
    (tmp_path / "a.gguf").write_bytes(writer.small())
    with pytest.raises(Corrupt, match=r"a\.gguf"):
        kobza.open(tmp_path)
    (tmp_path / "b.gguf").write_bytes(writer.small())
    with pytest.raises(BadValue, match="has 2 GGUF files"):
        kobza.open(tmp_path)
    with pytest.raises(Corrupt, match=r"b\.gguf"):
        kobza.open(f"{tmp_path}:b.gguf")
    with pytest.raises(MissingFile, match=r"Nearest: 'a\.gguf'|Nearest: 'b\.gguf'"):
        kobza.open(f"{tmp_path}:c.gguf")
    with pytest.raises(MissingFile):
        kobza.open(f"{tmp_path}:../a.gguf")


@pytest.mark.usefixtures("no_network")
def test_a_hub_id_opens_from_the_hub_s_cache_without_network(folder: Path) -> None:
    hub = Path(os.environ["HF_HOME"]) / "hub" / "models--org--cached"
    commit = "c" * 40
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    shutil.copytree(folder, hub / "snapshots" / commit)
    opened = kobza.open("org/cached")
    assert opened.name == "cached"
    assert opened.fingerprint == kobza.open(folder).fingerprint
    (hub / "snapshots" / commit / WEIGHTS).unlink()
    with pytest.raises(Offline, match="not on this machine"):
        kobza.open("org/cached")


def test_the_licence_is_read_from_the_readme(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: 'apache-2.0'\n---\nlicense: no\n")
    assert kobza.open(folder).origin.licence == "apache-2.0"
