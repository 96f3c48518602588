"""The shelf lists every card, finds by words, and every card's recipe can be run."""

import pytest

from kobza.core import cards, techniques
from kobza.core.errors import BadValue, UnknownName, UnknownOption
from kobza.vault import shelf

CARDS = cards.cards()


def test_the_shelf_holds_one_card_per_technique() -> None:
    held = {(room, name) for room in techniques.rooms() for name in techniques.names(room)}
    assert {(row["room"], row["name"]) for row in shelf.shelf()} == held


def test_the_shelf_of_a_room_holds_only_that_room() -> None:
    assert set(shelf.shelf("edits")["room"]) == {"edits"}


def test_an_unknown_room_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'edits'"):
        shelf.shelf("edit")


def test_a_search_finds_cards_that_hold_all_words_in_any_case() -> None:
    found = {row["name"] for row in shelf.search("RANDOM projection")}
    assert "random_projection" in found
    assert "speed" not in found


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(BadValue, match="at least one word"):
        shelf.search("  ")


@pytest.mark.parametrize("card", CARDS, ids=lambda c: f"{c.room}/{c.name}")
def test_the_recipe_of_a_card_names_its_technique_and_options_that_exist(card: cards.Card) -> None:
    assert shelf.step_of(card).startswith(card.name)


@pytest.mark.parametrize("card", CARDS, ids=lambda c: f"{c.room}/{c.name}")
def test_a_card_says_what_why_how_measured_and_gives_a_source(card: cards.Card) -> None:
    assert card.title
    assert card.source
    assert card.claim.endswith(".")
    for heading in ("## What", "## Why", "## How measured"):
        assert heading in card.body


def test_a_card_whose_option_does_not_exist_is_refused() -> None:
    wrong = cards.Card("edits", "noise", "Noise", "none", "claim.", "noise:strenth=1", "")
    with pytest.raises(UnknownOption, match="'strength'"):
        shelf.step_of(wrong)


def test_only_edits_become_recipes() -> None:
    with pytest.raises(BadValue, match="not an edit"):
        shelf.recipe_of(next(card for card in CARDS if card.room == "measures"))


def test_the_recipe_of_an_edit_measures_it_on_a_text() -> None:
    recipe = shelf.recipe_of(next(card for card in CARDS if card.room == "edits"), open="tiny", text="topics[:100]")
    assert recipe.open == "tiny"
    assert len(recipe.steps) >= 1
