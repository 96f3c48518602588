"""Recipes: one meaning in every spelling, and errors that say where."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, MissingFile, OutOfRange, UnknownName, UnknownOption
from kobza.core.options import Step
from kobza.recipes.recipe import Recipe, chain, spell_chain

YAML = """
title: Low rank
open: tiny
steps:
  - lowrank: {rank: 4..16:4, where: embed.in}
  - noise:strength=0.1
measures: [bits_per_byte]
text: ["topics[:500]"]
seed: 0..1
"""


def test_every_spelling_is_the_same_recipe() -> None:
    from_yaml = Recipe.from_yaml(YAML).check()
    by_hand = Recipe(
        open="tiny",
        steps=chain("lowrank:rank=4..16:4,where=embed.in + noise:strength=0.1"),
        measures=chain("bits_per_byte"),
        text=("topics[:500]",),
        seed="0..1",
    ).check()
    assert from_yaml.hash == by_hand.hash
    assert Recipe.from_yaml(from_yaml.to_yaml()) == from_yaml
    assert Recipe.from_dict(from_yaml.to_dict()) == from_yaml


def test_the_title_changes_nothing_but_the_title() -> None:
    assert Recipe(title="a").hash == Recipe(title="b").hash


def test_a_number_and_its_word_hash_alike() -> None:
    assert Recipe(steps=chain("lowrank:rank=64")).check().hash == Recipe(steps=(Step("lowrank", {"rank": 64}),)).hash


@pytest.mark.parametrize("field", ["open", "dtype", "seed", "text", "steps", "measures"])
def test_everything_else_changes_the_hash(field: str) -> None:
    other = {
        "open": "tiny", "dtype": "bfloat16", "seed": 1, "text": ("source",), "steps": chain("noise"),
        "measures": chain("divergence"),
    }[field]  # fmt: skip
    assert Recipe(**{field: other}).hash != Recipe().hash


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(str.isidentifier),
        st.text(st.characters(codec="utf-8"), max_size=20),
        max_size=3,
    )
)
def test_a_chain_is_read_back_as_it_was_spelled(options: dict[str, str]) -> None:
    steps = (Step("lowrank", options), Step("noise", {}))
    assert chain(spell_chain(steps)) == steps


def test_a_plus_inside_quotes_joins_nothing() -> None:
    assert chain('a:token=" + b" + c') == (Step("a", {"token": " + b"}), Step("c", {}))
    assert chain("a:x=1e+5") == (Step("a", {"x": "1e+5"}),)
    assert chain("") == ()


def test_points_are_every_combination_without_repetition() -> None:
    recipe = Recipe(steps=chain("lowrank:rank=4|8|4,where=embed.in|embed")).check()
    assert [p.spec for p in recipe.points()] == [
        "lowrank:rank=4,where=embed.in",
        "lowrank:rank=4,where=embed",
        "lowrank:rank=8,where=embed.in",
        "lowrank:rank=8,where=embed",
    ]


def test_seeds_multiply_only_what_draws() -> None:
    recipe = Recipe(compare=(chain("lowrank:rank=4"), chain("noise:strength=0.1")), seed="0..2").check()
    assert [p.spec for p in recipe.points()] == [
        "lowrank:rank=4",
        "noise:strength=0.1,seed=0",
        "noise:strength=0.1,seed=1",
        "noise:strength=0.1,seed=2",
    ]


def test_a_seed_given_to_a_step_stands() -> None:
    recipe = Recipe(steps=chain("noise:seed=7"), seed="0..2").check()
    assert [p.spec for p in recipe.points()] == ["noise:seed=7"]


def test_alternatives_follow_the_common_steps() -> None:
    recipe = Recipe(steps=chain("scaling:factor=2"), compare=(chain("lowrank:rank=4"), ())).check()
    assert [p.spec for p in recipe.points()] == ["scaling:factor=2.0 + lowrank:rank=4", "scaling:factor=2.0"]


def test_only_a_recipe_with_ranges_is_a_sweep() -> None:
    assert not Recipe(steps=chain("lowrank:rank=4")).is_sweep
    assert Recipe(steps=chain("lowrank:rank=4|8")).is_sweep
    assert Recipe(seed="0..3").is_sweep
    assert Recipe(compare=(chain("noise"), chain("scaling"))).is_sweep


def test_a_sweep_of_too_many_points_is_refused() -> None:
    recipe = Recipe(steps=chain("lowrank:rank=1..500:1"), seed="0..63:1", compare=(chain("noise"),)).check()
    with pytest.raises(OutOfRange, match="more than 10000 points"):
        recipe.points()


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("lowrnk:rank=4", UnknownName, "no edit is named 'lowrnk'. Nearest: 'lowrank'"),
        ("lowrank:rnk=4", UnknownOption, "edit 'lowrank' has no option 'rnk'. Nearest: 'rank'"),
        ("lowrank:rank=0", OutOfRange, "rank=0 is out of range"),
        ("lowrank:rank=0..4", OutOfRange, "rank=0 is out of range"),
        ("lowrank:rank=many", BadValue, "rank='many' is not allowed"),
        ("lowrank:store=rows", BadValue, "one of 'dense', 'factors'"),
        ("lowrank:rank", BadValue, "not option=value"),
        ("lowrank:rank=4,rank=5", BadValue, "given twice"),
        ("", BadValue, "does not start with a name"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(words: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Recipe.from_dict({"steps": [words or ":"]}).check()


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("step: [a]", UnknownOption, r"no field 'step' \(line 1 of 'x.yaml'\). Nearest: 'steps'"),
        ("open: tiny\nseed: some", BadValue, r"seed \(line 2 of 'x.yaml'\): seed 'some' is not a whole number"),
        ("open: 3", BadValue, r"open \(line 1 of 'x.yaml'\): 3 is a number; a word is expected"),
        ("steps: [", BadValue, "not YAML in line 1"),
        ("open: a\nopen: b", BadValue, "has 'open' twice, the second time in line 2"),
        ("open: &a x\ntitle: *a", BadValue, "uses an alias in line 2"),
        ("- a", BadValue, "a list of fields, not a list"),
        ("steps: {lowrank: 4, noise: 5}", BadValue, "is not a step"),
        ("compare: noise", BadValue, "not a list of chains"),
        ("open: " + "[" * 50 + "]" * 50, BadValue, "nested deeper than 20 levels"),
        ("a: 1\n---\nb: 2", BadValue, "not YAML"),
        ("open: \x07", BadValue, "not YAML"),
        ("!!python/object/apply:os.system [true]", BadValue, "not YAML"),
        ("seed: -1", OutOfRange, "seed -1 is out of range"),
        ("seed: 18446744073709551616", OutOfRange, "out of range"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Recipe.from_yaml(text, name="x.yaml")


def test_an_empty_file_is_the_recipe_of_defaults() -> None:
    assert Recipe.from_yaml("") == Recipe()


def test_a_recipe_is_read_from_the_file_it_was_saved_to(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(YAML).check()
    assert Recipe.load(recipe.save(tmp_path / "r.yaml")) == recipe


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no recipe"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadValue, match="not UTF-8"):
        Recipe.load(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BadValue, match="at most"):
        Recipe.load(tmp_path / "large.yaml")


def test_a_recipe_without_measures_or_texts_is_refused() -> None:
    with pytest.raises(BadValue, match="measures nothing"):
        Recipe(measures=()).check()
    with pytest.raises(BadValue, match="no text"):
        Recipe(text=()).check()
