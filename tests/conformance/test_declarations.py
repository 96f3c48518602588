"""What every technique of every room declares: card, test, source, options with unit and range. Nothing is run."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kobza.core import cards, techniques
from kobza.core.errors import UnknownName, UnknownOption
from kobza.core.options import Option, Step, check, options, parse, spell

ROOT = Path(__file__).resolve().parents[2]
EVERY = [(room, name) for room in techniques.rooms() for name in techniques.names(room)]
every_technique = pytest.mark.parametrize(("room", "name"), EVERY, ids=[f"{r}/{n}" for r, n in EVERY])


def verb(room: str, name: str) -> Callable[..., Any]:
    return techniques.verb(room, name)


def example(option: Option) -> Any:
    """A value the option takes: its default, or one within its bounds."""
    if not option.required and option.default is not None:
        return option.default
    if option.choices:
        return option.choices[0]
    number = max(option.low or 0, 1) if option.high is None else option.high
    single = {"int": int(number), "float": float(number), "str": " lava", "bool": True}
    lists = {"ints": [1, 2], "floats": [0.5, 2.0], "strs": ["a", "b"]}
    return (single | lists)[option.kinds[0]]


def test_there_are_techniques_to_walk() -> None:
    assert {"edits", "embeddings", "measures", "decoding", "codecs"} <= {room for room, _ in EVERY}


@every_technique
def test_card_and_test_carry_the_name_of_the_file(room: str, name: str) -> None:
    assert cards.card(room, name).claim
    assert (ROOT / "tests" / room / f"test_{name}.py").is_file()


@every_technique
def test_the_module_names_its_source(room: str, name: str) -> None:
    doc = techniques.load(room, name).__doc__ or ""
    assert "Source:" in doc or "Sources:" in doc


@every_technique
def test_the_docstring_explains_every_option_with_unit_or_range(room: str, name: str) -> None:
    for option in options(verb(room, name)):
        assert option.doc, f"{option.name} is not explained under Args:"
        if {"int", "float", "ints", "floats"} & set(option.kinds):
            assert option.unit or option.range, f"{option.name} has neither unit nor range in brackets"


@every_technique
def test_options_read_from_the_source_equal_options_read_from_the_function(room: str, name: str) -> None:
    assert techniques.described(room, name) == options(verb(room, name))


@every_technique
def test_options_survive_the_command_line_and_yaml(room: str, name: str) -> None:
    function = verb(room, name)
    values = {option.name: example(option) for option in options(function)}
    step = Step(name, check(function, values))
    assert check(function, parse(spell(step)).options) == step.options
    assert check(function, yaml.safe_load(yaml.safe_dump(dict(step.options)))) == step.options


@every_technique
def test_an_unknown_option_is_refused_with_the_nearest_name(room: str, name: str) -> None:
    function = verb(room, name)
    known = [option.name for option in options(function)]
    wrong = f"{known[0]}x" if known else "strength"
    with pytest.raises(UnknownOption) as caught:
        check(function, {wrong: "1"}, what=name)
    assert repr(wrong) in str(caught.value)
    if known:
        assert repr(difflib.get_close_matches(wrong, known, n=1)[0]) in str(caught.value)


@every_technique
def test_an_unknown_name_is_refused_with_the_nearest_name(room: str, name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        techniques.load(room, f"{name}x")
    assert repr(name) in str(caught.value)
