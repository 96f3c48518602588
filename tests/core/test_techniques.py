import importlib.metadata
import subprocess
import sys

import pytest

from kobza.core import techniques
from kobza.core.errors import BadValue, UnknownName


@pytest.fixture
def outside(monkeypatch):
    """An outside package that adds an edit named `mine`, whose module stands in the standard library."""
    entry = importlib.metadata.EntryPoint("mine", "textwrap", "kobza.edits")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "kobza.edits" else [])
    techniques.names.cache_clear()
    techniques._outside.cache_clear()
    yield
    techniques.names.cache_clear()
    techniques._outside.cache_clear()


def test_the_folder_is_the_registry():
    assert {"lowrank", "noise", "scaling", "random_projection"} <= set(techniques.names("edits"))
    assert "base" not in techniques.names("edits") and "edits" in techniques.rooms()


def test_a_technique_is_loaded_by_its_file_name():
    assert techniques.verb("edits", "noise").__name__ == "apply"
    assert techniques.source("edits", "noise").name == "noise.py"


def test_listing_and_describing_import_nothing_heavy():
    code = (
        "import sys; from kobza.core import techniques as t\n"
        "for room in t.rooms():\n    for name in t.names(room): t.described(room, name)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", techniques.rooms())
def test_options_read_from_source_equal_those_of_the_function(room):
    from kobza.core.options import options

    for name in techniques.names(room):
        assert techniques.described(room, name) == options(techniques.verb(room, name)), name


def test_unknown_names_list_the_nearest():
    with pytest.raises(UnknownName, match="no edit is named 'lowrnk'. Nearest: 'lowrank'"):
        techniques.load("edits", "lowrnk")
    with pytest.raises(UnknownName, match="no room is named 'edit'. Nearest: 'edits'"):
        techniques.names("edit")


def test_an_entry_point_adds_a_technique(outside):
    assert "mine" in techniques.names("edits") and techniques.load("edits", "mine").__name__ == "textwrap"
    assert techniques.source("edits", "mine").name == "textwrap.py"
    with pytest.raises(BadValue, match="has no function 'apply'"):
        techniques.verb("edits", "mine")
