"""Scripts of characters against the Unicode names of the standard library."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.tokens import scripts


def named(data: bytes) -> list[str]:
    kinds, _, _ = scripts.classes(data)
    return [scripts.NAMES[kind] for kind in kinds]


@pytest.mark.parametrize("script", ["Latin", "Cyrillic", "Greek", "Hebrew", "Thai", "Hangul", "Hiragana", "Georgian"])
def test_letters_have_the_script_of_their_unicode_name(script: str) -> None:
    # names of letters begin with the script; what is not a letter (marks, digits) is another matter
    letters = [chr(c) for c in range(0x80, 0xD7A4) if unicodedata.category(chr(c)) in ("Lu", "Ll", "Lo")]
    own = [c for c in letters if unicodedata.name(c, "").startswith(f"{script.upper()} ")]
    assert own and all(scripts.NAMES[scripts.of(c)] == script for c in own)


def test_a_space_counts_with_its_word_and_a_mark_with_its_letter() -> None:
    assert named("a їи\u0306 ".encode()) == ["Latin", *["Cyrillic"] * 4, "white space"]
    assert named(b" 7 !") == ["digits", "digits", "white space", "signs"]
    assert named("\u0306".encode()) == ["controls and raw bytes"]


def test_words_are_runs_of_letters() -> None:
    _, _, words = scripts.classes("the sea море, море2x".encode())
    assert (words[scripts.NAMES.index("Latin")], words[scripts.NAMES.index("Cyrillic")]) == (3, 2)


@given(st.binary(max_size=60))
def test_sizes_cover_any_bytes(data: bytes) -> None:
    kinds, sizes, _ = scripts.classes(data) if data else (np.zeros(0), np.zeros(0), None)
    assert sizes.sum() == len(data) and len(kinds) == len(data.decode("utf-8", errors="surrogateescape"))
