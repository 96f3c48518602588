"""Tokens under each other as HTML: every token once, equal spans in one column, everything escaped."""

import re

import pytest

from kobza.core.errors import BadValue
from kobza.tokens import aligned
from kobza.tokens.base import Marks, Tokenizer
from kobza.tokens.ranks import Ranked, byte_ranks, bytes_vocabulary

TEXT = "the <b>sea</b> Реве"


def toy(*tokens: bytes, name: str, marks: Marks | None = None) -> Ranked:
    ranks = byte_ranks()
    for token in tokens:
        ranks[token] = len(ranks)
    return Ranked(ranks, "gpt2", {"<s>": 999}, marks, name=name)


@pytest.fixture
def three() -> list[Tokenizer]:
    started = Marks(start_id=999, adds_start=True)
    return [toy(b"th", b"the", name="a", marks=started), toy(b"he", b"the", name="b"), bytes_vocabulary()]


def test_every_token_stands_there_once_with_its_id(three: list[Tokenizer]) -> None:
    page = aligned.html(three, TEXT, width=40)
    for tokenizer in three:
        rows = re.findall(f"<tr><th>{tokenizer.name}</th>(.*?)</tr>", page)
        ids = [int(id) for row in rows for id in re.findall(r"<small>(\d+)</small>", row)]
        assert ids == ([999] if tokenizer.marks.adds_start else []) + tokenizer.encode(TEXT)


def test_lines_have_as_many_cells_in_each_row(three: list[Tokenizer]) -> None:
    for table in re.findall("<table>(.*?)</table>", aligned.html(three, TEXT, width=30)):
        assert len({row.count("<td") for row in re.findall("<tr>(.*?)</tr>", table)}) == 1


def test_a_frame_marks_what_is_cut_otherwise_than_usual(three: list[Tokenizer]) -> None:
    page = aligned.html([*three[:2], bytes_vocabulary()], "the")
    framed = [row.count('class="x"') for row in re.findall("<tr>(.*?)</tr>", page)]
    assert framed == [0, 0, 1]


def test_text_is_never_markup(three: list[Tokenizer]) -> None:
    assert "<b>sea" not in aligned.html(three, TEXT)


def test_a_line_has_room(three: list[Tokenizer]) -> None:
    with pytest.raises(BadValue, match="width is 3"):
        aligned.html(three, TEXT, width=3)
    assert list(aligned.blocks([3, 3, 3, 9], 7)) == [(0, 2), (2, 3), (3, 4)]
    assert list(aligned.blocks([], 7)) == []
