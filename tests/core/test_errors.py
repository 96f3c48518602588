import inspect
import pickle

import pytest

from kobza.core import errors
from kobza.core.errors import KobzaError, MissingExtra, MissingFile, UnknownName, guess, nearest

EVERY = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, KobzaError)]


@pytest.mark.parametrize("kind", EVERY, ids=lambda c: c.__name__)
def test_every_error_prints_message_then_hint_and_survives_pickling(kind):
    error = kind("rank=0 is out of range.", "Give 1 or more.")
    assert str(error) == "rank=0 is out of range.\nGive 1 or more."
    copy = pickle.loads(pickle.dumps(error))  # errors travel from worker processes
    assert type(copy) is kind and str(copy) == str(error)


def test_exit_codes_are_those_of_the_design():
    codes = {"CheckFailed": 1, "UsageError": 2, "InputRefused": 3, "OutOfResources": 4, "Unavailable": 5}
    for name, code in codes.items():
        parent = getattr(errors, name)
        assert {c.exit_code for c in EVERY if issubclass(c, parent)} == {code}


def test_an_error_is_the_builtin_as_well():
    assert issubclass(errors.OutOfRange, ValueError) and issubclass(MissingFile, FileNotFoundError)
    assert issubclass(errors.CannotWrite, OSError) and issubclass(MissingExtra, ImportError)


def test_unknown_name_lists_the_nearest():
    error = UnknownName.of("edit", "lowrnk", ["noise", "lowrank", "scaling"], see="kobza list edits")
    assert str(error) == "no edit is named 'lowrnk'. Nearest: 'lowrank'.\nSee all: kobza list edits"


def test_nearest_ignores_case_and_finds_parts():
    assert nearest("SVD", ["svd", "noise"]) == ["svd"]
    assert nearest("proj", ["random_projection", "noise"]) == ["random_projection"]


def test_without_a_near_name_the_first_few_are_listed():
    assert guess("zzz", ["a", "b"]) == " There are: 'a', 'b'."
    assert guess("zzz", []) == ""


def test_missing_extra_names_the_install_command():
    assert str(MissingExtra.of("Parquet", "pyarrow", "parquet")).endswith("pip install 'kobza[parquet]'")
