"""Cards: what a technique is, where it comes from, what it claims, and how it fared.

A card is a Markdown file with a TOML header between two lines of `+++`:

    +++
    title = "Truncated SVD"
    source = "Eckart & Young (1936), doi:10.1007/BF02288367"
    claim = "The best rank-r approximation in the Frobenius norm."
    recipe = "lowrank:rank=386"
    verdict = "Best error, bad model: ..."
    +++
    Text ...

Room and name follow from the path `vault/cards/<room>/<name>.md`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from kobza.core.errors import Corrupt, MissingFile, UnknownName

FIELDS = ("title", "source", "claim", "recipe", "verdict")
_SHELF = Path(__file__).resolve().parents[1] / "vault" / "cards"


@dataclass(frozen=True)
class Card:
    """One entry of the vault.

    Attributes:
        room, name: the technique it is about.
        title: what people call it.
        source: paper, book or program it comes from.
        claim: what is claimed of it, in one sentence.
        recipe: a one-line recipe that shows it.
        verdict: what was measured here; "" as long as nothing was.
        body: the rest, as Markdown.
    """

    room: str
    name: str
    title: str
    source: str
    claim: str
    recipe: str
    verdict: str
    body: str = ""


def read(path: str | Path) -> Card:
    """Read one card.

    Raises:
        MissingFile: there is no such file.
        Corrupt: the header is missing, is not TOML, or lacks or adds a field.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no card '{path}'.")
    head, body = _parts(path)
    try:
        fields = tomllib.loads(head)
    except tomllib.TOMLDecodeError as error:
        raise Corrupt(f"the header of card '{path}' is not TOML: {error}.") from None
    wrong = set(FIELDS) ^ set(fields)
    if wrong:
        raise Corrupt(f"card '{path}': field {sorted(wrong)[0]!r} is missing or unknown; fields: {', '.join(FIELDS)}.")
    return Card(path.parent.name, path.stem, **{f: str(fields[f]).strip() for f in FIELDS}, body=body.strip())


def cards(room: str | None = None) -> list[Card]:
    """Return all cards, or those of one room, sorted by room and name."""
    return [read(path) for path in sorted(_SHELF.glob(f"{room or '*'}/*.md"))]


def card(room: str, name: str) -> Card:
    """Return the card of one technique.

    Raises:
        UnknownName: there is none; the message lists the nearest.
    """
    path = _SHELF / room / f"{name}.md"
    if not path.is_file():
        raise UnknownName.of("card", f"{room}/{name}", [f"{c.room}/{c.name}" for c in cards()], see="kobza list")
    return read(path)


def _parts(path: Path) -> tuple[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.strip() == "+++"]
    if len(fences) < 2 or fences[0] != 0:
        raise Corrupt(f"card '{path}' does not begin with a header between two lines of '+++'.")
    return "\n".join(lines[1 : fences[1]]), "\n".join(lines[fences[1] + 1 :])
