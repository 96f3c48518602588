"""The embedded model `kobzar`, trained by kobza: opened, sampled and measured without a network."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import kobza
from kobza.core import techniques
from kobza.measures import bits_per_byte
from kobza.models.forward import generate
from kobza.models.sources import EMBEDDED
from kobza.training.parts import corpus


@pytest.fixture(scope="module")
def kobzar() -> Any:
    return kobza.open("kobzar")


def test_it_is_small_and_says_where_it_came_from(kobzar: Any) -> None:
    assert sum(file.stat().st_size for file in (EMBEDDED / "kobzar").iterdir()) < 8_000_000
    assert any("trained by kobza on kobzar.txt" in note for note in kobzar.origin.notes)
    assert kobzar.origin.spec == "kobzar", "a command that is shown must open it"
    assert kobzar.origin.notes[0] == "trained: llama 4 x 256"
    assert kobzar.parameters == 3_475_712
    assert kobzar.tokenizer.is_exact


def test_it_speaks_ukrainian(kobzar: Any) -> None:
    ids = [id for id, _ in generate(kobzar, kobzar.tokenizer.encode("Як умру, то"), tokens=60, temperature=0.7, seed=1)]
    said = kobzar.tokenizer.text(ids)
    letters = [c for c in said.lower() if c.isalpha()]
    assert len(letters) > 40
    assert sum("а" <= c <= "я" or c in "іїєґ" for c in letters) > 0.95 * len(letters)


def test_it_packs_ukrainian_better_than_text_it_never_saw(kobzar: Any) -> None:
    own = bits_per_byte.measure(kobzar, "ukrainian[:1200]", window=128, overlap=64)
    foreign = bits_per_byte.measure(kobzar, "topics[:1200]", window=128, overlap=64)
    assert own.value < 3 < foreign.value


@pytest.mark.parametrize("name", techniques.names("measures"))
def test_every_measure_takes_it_as_it_is(kobzar: Any, name: str) -> None:
    """A model of 128 tokens is measured by defaults made for 1,024: what is cut stands in the record."""
    measure = techniques.verb("measures", name)
    original = {"original": kobzar} if "original" in inspect.signature(measure).parameters else {}
    reading = measure(kobzar, "ukrainian[:900]", **original)
    how = reading.record.get("how", {})
    assert how.get("window", 128) == 128
    assert how.get("overlap", 32) == 32
    assert how.get("prompt_tokens", 0) + how.get("tokens", 0) < 128


@pytest.mark.real
def test_it_packs_poems_it_was_not_trained_on_to_the_published_size(kobzar: Any, data: Path) -> None:
    part = corpus.split(corpus.documents(data / "text" / "kobzar.txt")[0])
    reading = bits_per_byte.measure(kobzar, part.held, window=128, overlap=96, limit=20_000)
    assert reading.value < 1.55
