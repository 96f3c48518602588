"""Which script every character of a text is written in, over arrays.

Letters have their script's name; the marks on them (combining characters) belong to the letter. Everything else is one
of `OTHERS`: digits (Unicode category N), signs (punctuation, symbols, emoji), white space, and what is neither
(controls, unassigned, bytes that are not UTF-8). A single space right in front of a letter or digit counts with it,
since vocabularies write it into the token of the word.

Source: Unicode Standard Annex 24 (scripts) and chapter 4.5 (general categories), as the package `regex` has them.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LETTERS = (
    "Latin", "Cyrillic", "Greek", "Armenian", "Georgian", "Hebrew", "Arabic", "Devanagari", "Bengali", "Gurmukhi",
    "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer",
    "Ethiopic", "Mongolian", "Hangul", "Hiragana", "Katakana", "Han",
)  # fmt: skip
OTHER_LETTERS = "other letters"
OTHERS = ("digits", "signs", "white space", "controls and raw bytes")
NAMES = (*LETTERS, OTHER_LETTERS, *OTHERS)
DIGITS, SIGNS, SPACE, RAW = (NAMES.index(name) for name in OTHERS)
_MARK = len(NAMES)  # a combining character, until its letter is known
Ints = NDArray[np.int64]


@cache
def _regex() -> Any:
    letters = "|".join(rf"([\p{{L}}&&\p{{Script={name}}}])" for name in LETTERS)
    pattern = rf"(?V1){letters}|(\p{{L}})|(\p{{N}})|([\p{{P}}\p{{S}}])|([\s\p{{Z}}])|([\p{{C}}])|(\p{{M}})"
    return importlib.import_module("regex").compile(pattern)


@cache
def of(character: str) -> int:
    """Return the place in `NAMES` of one character's script.

    >>> NAMES[of("ї")], NAMES[of("7")], NAMES[of("\\N{SLIGHTLY SMILING FACE}")]
    ('Cyrillic', 'digits', 'signs')
    """
    found = _regex().match(character)
    return RAW if found is None else found.lastindex - 1


def classes(data: bytes) -> tuple[Ints, Ints, Ints]:
    """Return script (C,) and bytes (C,) of every character of a text, and words by script (names,).

    A byte that is not UTF-8 is a character of its own. A word is a run of letters of one script.
    """
    text = data.decode("utf-8", errors="surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.int64)
    distinct, at = np.unique(codes, return_inverse=True)
    kinds = np.array([RAW if 0xD800 <= c < 0xE000 else of(chr(c)) for c in distinct.tolist()], dtype=np.int64)[at]
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    sizes = np.where((codes >= 0xD800) & (codes < 0xE000), 1, sizes)
    # a mark takes the script of the last character that is none; at the very beginning there is no such letter
    places = np.maximum.accumulate(np.where(kinds == _MARK, 0, np.arange(len(kinds))))
    kinds = np.where(kinds[places] == _MARK, RAW, kinds[places])
    begins = np.ones(len(kinds), dtype=bool)
    begins[1:] = kinds[1:] != kinds[:-1]
    words = np.bincount(kinds[begins & (kinds < DIGITS)], minlength=len(NAMES))
    belongs = (codes[:-1] == 0x20) & (kinds[1:] <= DIGITS)
    kinds[:-1] = np.where(belongs, kinds[1:], kinds[:-1])
    return kinds, sizes, words


def main_script(token: bytes) -> str:
    """Return the script of most letters of a token, or what else it consists of; "half characters" if it is no text.

    >>> main_script(" море".encode()), main_script(b" 12"), main_script(b"\\xd0")
    ('Cyrillic', 'digits', 'half characters')
    """
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "half characters"
    kinds = [kind for kind in map(of, text) if kind != _MARK]
    ordered = sorted(kinds, key=lambda kind: (kind >= DIGITS, kind == SPACE, -kinds.count(kind), kind))
    return NAMES[ordered[0]] if ordered else NAMES[RAW]
