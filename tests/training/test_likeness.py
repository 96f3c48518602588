"""Near repeats are found as plain comparison finds them; data sets of the hub by what the library gives."""

import random
import sys
import types
from typing import Any

import pytest

from kobza.core.errors import BadValue, MissingExtra, MissingFile, Offline, OutOfRange
from kobza.training.parts import corpus, hub_rows, likeness

WORDS = ["the", "banks", "of", "wide", "Dnipro", "steep", "cliffs", "waves", "roar", "and", "moan", "at", "night"]


def plainly(texts: list[str], least: float) -> list[tuple[int, int]]:
    """The definition: of every text the earliest before it that shares so much of its pieces of five words."""

    def pieces(text: str) -> set[tuple[str, ...]]:
        words = text.casefold().split()
        return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}

    sets = [pieces(text) for text in texts]
    found = []
    for later in range(len(texts)):
        for first in range(later):
            if len(sets[later] & sets[first]) >= least * len(sets[later] | sets[first]):
                found.append((later, first))
                break
    return found


def test_near_repeats_are_those_of_the_definition() -> None:
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(60):
        words = [rng.choice(WORDS) for _ in range(40)]
        texts.append(" ".join(words))
        for changed in rng.sample(range(40), rng.randrange(3)):
            words[changed] = "kobza"
        texts.append(" ".join(words).upper())
    rng.shuffle(texts)
    wanted = plainly(texts, 0.7)
    assert len(wanted) > 20
    found = likeness.near_repeats(texts, least=0.7)
    assert len({pair[:2] for pair in found} ^ set(wanted)) <= 0.05 * len(wanted), "bands miss few at 0.7"
    later, first, alike = found[0]
    assert plainly([texts[first], texts[later]], alike) == [(1, 0)]
    assert plainly([texts[first], texts[later]], alike + 1e-6) == []
    with pytest.raises(OutOfRange, match="least 0"):
        likeness.near_repeats(texts, least=0)


def test_they_are_pointed_out_beside_exact_ones() -> None:
    line = " ".join(WORDS) + " and so on and on it goes until the morning comes over the steppe again"
    notes = corpus.documents([line, "another text of some words", line.replace("morning", "evening") + " twice", line])[
        1
    ]
    assert notes[0] == "1 of 4 samples stand there more than once"
    assert corpus.documents([line, line + " once", "x"])[1] == [
        "1 of 3 samples nearly repeat an earlier one (80% or more of their pieces of 5 words); sample 1 is like 0"
    ]


def hub(answer: Any) -> types.ModuleType:
    """Stand in for the library: it returns rows or raises, and remembers what it was asked."""
    made: Any = types.ModuleType("datasets")
    made.asked = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        made.asked.append((name, config, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    made.load_dataset = load_dataset
    return made  # type: ignore[no-any-return]


def test_a_data_set_of_the_hub_is_read_by_its_name_part_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = hub([{"text": "один"}, {"text": "два"}])
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert corpus.documents("hub:owner/poems")[0] == ["один", "два"]
    assert corpus.rows("hub:owner/poems?uk:test[:10%]", ("text",)) == [{"text": "один"}, {"text": "два"}]
    assert library.asked == [("owner/poems", None, "train"), ("owner/poems", "uk", "test[:10%]")]
    with pytest.raises(BadValue, match="column 'prompt'"):
        corpus.rows("hub:poems", ("prompt",))


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(FileNotFoundError("no such"), MissingFile), (ConnectionError("no net"), Offline), (ValueError("bad"), BadValue)],
)
def test_what_the_hub_refuses_is_said(raised: Exception, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", hub(raised))
    with pytest.raises(kind, match="owner/poems"):
        hub_rows.hub_rows("hub:owner/poems")


def test_without_the_library_it_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="kobza.data"):
        hub_rows.hub_rows("hub:owner/poems")
    with pytest.raises(BadValue, match="names no data set"):
        hub_rows.hub_rows("hub:not a name")
