"""The shelf of cards: list, search, and turn a card's recipe into one that runs. Nothing heavy is imported."""

from __future__ import annotations

from kobza.core import techniques
from kobza.core.cards import Card, cards
from kobza.core.errors import BadValue
from kobza.core.options import check, parse
from kobza.core.table import Table
from kobza.recipes.recipe import Recipe, chain


def shelf(room: str | None = None) -> Table:
    """Return all cards, or those of one room, as a table.

    Raises:
        UnknownName: there is no such room.
    """
    if room is not None:
        techniques.names(room)
    return _table(cards(room), title=f"cards of {room}" if room else "cards")


def search(words: str) -> Table:
    """Return the cards that hold every one of the words, in any field, whatever their case."""
    wanted = words.lower().split()
    if not wanted:
        raise BadValue("a search needs at least one word.", "See all: kobza list")
    found = [card for card in cards() if all(word in _text(card) for word in wanted)]
    return _table(found, title=f"cards that hold {words!r}")


def step_of(card: Card) -> str:
    """Return the card's recipe after checking that its technique has these options.

    Raises:
        UnknownName, UnknownOption, BadValue, OutOfRange: the first thing that does not fit.
    """
    for step in chain(card.recipe) if card.room == "edits" else (parse(card.recipe),):
        what = f"card {card.room}/{card.name}: {step.name}"
        check(techniques.described(card.room, step.name), step.options, what=what)
    return card.recipe


def recipe_of(card: Card, *, open: str = "smollm2", text: str = "topics[:4000]") -> Recipe:
    """Return the recipe that tries an edit of the shelf on a model: the edit beside the unedited model.

    Raises:
        BadValue: the card is not about an edit.
    """
    if card.room != "edits":
        raise BadValue(f"card {card.room}/{card.name} is not an edit; only edits are tried by a recipe.")
    return Recipe(open=open, steps=chain(card.recipe), text=(text,), title=card.title).check()


def _table(found: list[Card], title: str) -> Table:
    rows = [{"room": c.room, "name": c.name, "title": c.title, "claim": c.claim, "verdict": c.verdict} for c in found]
    return Table(rows, title=title, order=["room", "name", "title", "claim", "verdict"])


def _text(card: Card) -> str:
    fields = (card.room, card.name, card.title, card.source, card.claim, card.recipe, card.verdict, card.body)
    return " ".join(fields).lower()
