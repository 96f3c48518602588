"""`kobza tokens --with`: vocabularies side by side, aligned by spans, as text and as a page."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


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


def test_a_dash_stands_for_standard_input(kobza: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in ((("tokens", "bytes", "-"), "a|b"), (("tokens", "-", "--with", "bytes"), "bytes  a b")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab")))
        assert kobza(*words, "--pieces").out.strip() == said


@pytest.mark.parametrize("names", [",", "bytes,bytes", "nothing.tiktoken"])
def test_bad_lists_of_vocabularies_are_refused(kobza: Callable[..., Any], names: str) -> None:
    assert kobza("tokens", "the sea", "--with", names).code == 2


def test_the_page_holds_every_comparison_and_needs_no_network(
    kobza: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("the sea\nРеве <b>\n")
    said = kobza("tokens", "tiny", "-t", "short.txt", "-t", "topics[:4000]", "--with", "bytes", "--page", "page.html")
    assert said.code == 0 and "Tokens by text" in said.out
    html = (tmp_path / "page.html").read_text()
    for name in ("sentences", "texts", "counts", "disagreements", "entropies", "ways", "shared", "inside", "merges"):
        assert f'<section id="{name}">' in html
    assert "default-src 'none'" in html and not re.search(r'(?:src|href)="https?:', html) and "<b>\n" not in html


def test_several_texts_are_counted_by_text_and_script(kobza: Callable[..., Any], tiny: Any) -> None:
    said = kobza("tokens", "tiny", "-t", "topics[:500]", "-t", "ukrainian", "--with", "bytes", "--json")
    found = {table["title"]: table for table in json.loads(said.out)["tables"]}
    assert len(found["Tokens by text"]["rows"]) == 4
    assert "Cyrillic" in {row[0] for row in found["Tokens by script: ukrainian"]["rows"]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tokens", "tiny", "x", "--page", "p.html"), "--with names none"),
        (("tokens", "tiny", "x", "--with", "bytes", "--page", "p.txt"), "--page writes HTML"),
        (("tokens", "tiny", "-t", "topics", "-t", "source"), "2 texts were given"),
        (("tokens", "tiny", "-t", "source", "-t", "source", "--with", "bytes"), "was given twice"),
    ],
)
def test_bad_requests_write_nothing(
    kobza: Callable[..., Any], tiny: Any, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    said = kobza(*words)
    assert said.code == 2 and says in said.err and list(tmp_path.glob("p.*")) == []
