import ast
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, OutOfRange, UnknownOption
from kobza.core.options import Step, arguments, check, options, options_in, parse, spell

SOURCE = '''
"""A module."""
DEFAULT = 512

def apply(model, *, rank: int = 64, share: float | None = None, where: str = "embed", how: Literal["a", "b"] = "a",
          center: bool = False, layers: list[int] = [1, 2], window: int = DEFAULT, original: "Model" = None):
    """Do.

    Args:
        model: not an option.
        rank: directions kept
            per matrix [count, 1 .. min(rows, columns)].
        share: part kept [fraction, > 0 .. 1]; "none" keeps all.
        where: pattern of matrix names.
        layers: which [index, 0 ..].
        window: tokens [count, 2 .. 1e6].

    Returns:
        Nothing.
    """
'''


@pytest.fixture(scope="module")
def apply():
    space = {"Literal": Literal}
    exec(compile(ast.parse("from __future__ import annotations\n" + SOURCE), "x", "exec"), space)
    return space["apply"]


def test_the_source_and_the_function_give_the_same_options(apply):
    assert options(apply) == options_in(SOURCE, "apply")


def test_signature_and_docstring_become_options(apply):
    by = {o.name: o for o in options(apply)}
    assert list(by) == ["rank", "share", "where", "how", "center", "layers", "window"]  # a Model is no option
    assert by["rank"].doc == "directions kept per matrix"
    assert (by["rank"].unit, by["rank"].range) == ("count", "1 .. min(rows, columns)")
    assert (by["rank"].low, by["rank"].high) == (1, None)
    assert (by["share"].low, by["share"].open_low, by["share"].high, by["share"].nullable) == (0, True, 1, True)
    assert by["how"].choices == ("a", "b") and by["window"].default == 512


def test_words_become_values_of_the_right_type(apply):
    given_ = {"rank": "1_000", "share": "0.5", "how": "b", "center": "yes", "layers": "3;5", "where": "a.*"}
    wanted = {"rank": 1000, "share": 0.5, "how": "b", "center": True, "layers": [3, 5], "where": "a.*"}
    assert check(apply, given_) == wanted == check(apply, wanted)
    assert check(apply, {"share": "none"}) == {"share": None} == check(apply, {"share": None})


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"rnk": 1}, UnknownOption, "edit 'x' has no option 'rnk'. Nearest: 'rank'."),
        ({"rank": 0}, OutOfRange, "rank=0 is out of range; allowed: count, 1 .. min(rows, columns)."),
        ({"rank": "1.5"}, BadValue, "rank='1.5' is not allowed"),
        ({"rank": True}, BadValue, "rank=True is not allowed"),
        ({"rank": None}, BadValue, "rank may not be empty"),
        ({"share": "0"}, OutOfRange, "allowed: fraction, > 0 .. 1."),
        ({"share": "nan"}, BadValue, "share='nan' is not allowed"),
        ({"share": "inf"}, OutOfRange, "share=inf is out of range"),
        ({"how": "c"}, BadValue, "allowed: one of 'a', 'b'."),
        ({"center": "maybe"}, BadValue, "center='maybe' is not allowed"),
        ({"layers": "1;-2"}, OutOfRange, "layers=1;-2 is out of range"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(apply, values, error, words):
    with pytest.raises(error) as caught:
        check(apply, values, what="edit 'x'")
    assert words in str(caught.value)


def test_a_required_option_is_asked_for():
    def f(*, rank: int):
        pass

    with pytest.raises(BadValue, match="needs the option 'rank'"):
        check(f, {})


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("lowrank", Step("lowrank", {})),
        ("lowrank:rank=64,where=embed.in", Step("lowrank", {"rank": "64", "where": "embed.in"})),
        ('neighbors:token=" lava"', Step("neighbors", {"token": " lava"})),
        ("a:b='x,\\ny',c=", Step("a", {"b": "x,\ny", "c": ""})),
        ("a:b=x=y", Step("a", {"b": "x=y"})),
    ],
)
def test_a_line_is_read(line, step):
    assert parse(line) == step


@pytest.mark.parametrize("line", ["", ":a=1", "x:a", "x:a=1,,b=2", 'x:a="b', "x:a=1,a=2", "x:1=2"])
def test_a_malformed_line_is_refused(line):
    with pytest.raises(BadValue):
        parse(line)


@given(st.dictionaries(st.from_regex(r"\A[a-z_]{1,8}\Z"), st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_step_round_trips_through_its_spelling(values):
    assert parse(spell(Step("name", values))) == Step("name", values)


def test_docstring_arguments_are_read_over_several_lines():
    doc = "X.\n\n    Args:\n        a: one\n            two.\n        b, c: both.\n\n    Returns:\n        d: no.\n    "
    assert arguments(doc) == {"a": "one two.", "b": "both.", "c": "both."}


def test_options_are_found_in_a_file_without_importing_it(tmp_path: Path):
    (tmp_path / "m.py").write_text("import does_not_exist\n" + SOURCE)
    assert options_in(tmp_path / "m.py", "apply")[0].name == "rank"
