"""`kobza tokens --with`: vocabularies side by side, aligned by spans, as text and as a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kobza.cli import vocabularies


def test_spans_stand_in_one_column(kobza: Callable[..., Any], tiny: Any) -> None:
    merged, plain = kobza("tokens", "the sea", "--with", "tiny,bytes", "--pieces").out.splitlines()
    assert merged.split()[0] == "tiny" and plain.split()[0] == "bytes"
    # a token of several letters stands above as many bytes, and what comes next begins in the same column
    assert len(merged.rsplit(" ", 1)[0]) == len(plain.rsplit(" ", 1)[0])
    assert "".join(plain.split()[1:]).replace("|", "") == "the▁sea"


def test_with_a_model_and_a_text_both_are_compared(kobza: Callable[..., Any], tiny: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert kobza("tokens", "tiny", "the sea", "--with", "bytes", "-o", str(page)).code == 0
    html = page.read_text()
    assert html.count('class="tokens"') == 2 and "Where they disagree" in html
    assert "Tokens of one text" in kobza("tokens", "the sea", "--with", "tiny,bytes").out


def test_a_vocabulary_file_will_do_instead_of_a_model(kobza: Callable[..., Any]) -> None:
    assert kobza("tokens", "bytes", "ab", "--pieces").out.strip() == "a|b"


@pytest.mark.parametrize("names", [",", "bytes,bytes", "nothing.tiktoken"])
def test_bad_lists_of_vocabularies_are_refused(kobza: Callable[..., Any], names: str) -> None:
    assert kobza("tokens", "the sea", "--with", names).code == 2


def test_blocks_fit_the_room() -> None:
    assert list(vocabularies._blocks([3, 3, 3, 9], 7)) == [(0, 2), (2, 3), (3, 4)]
    assert list(vocabularies._blocks([], 7)) == []
