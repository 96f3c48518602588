"""Vocabularies side by side: shares and counts against the published table, entropies against closed forms."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core import render
from kobza.core.errors import BadValue, EmptyText
from kobza.core.texts import Text
from kobza.tokens import compare, opening
from kobza.tokens.base import Tokenizer
from kobza.tokens.ranks import Ranked, byte_ranks, bytes_vocabulary

TEXT = "the other sea\r\nРеве та стогне 🙂"


def toy(*tokens: bytes, name: str = "toy", special: dict[str, int] | None = None) -> Ranked:
    ranks = byte_ranks()
    for token in tokens:
        ranks[token] = len(ranks)
    return Ranked(ranks, "gpt2", special, name=name)


@pytest.fixture
def three() -> list[Tokenizer]:
    return [toy(b"th", b"the", b" s", name="a"), toy(b"he", b"the", b" t", name="b"), bytes_vocabulary()]


# -- authority ----------------------------------------------------------------------------------------------------
@pytest.mark.real
def test_overlap_equals_the_published_table(data: Path, smollm2: object) -> None:
    folder = data / "tokenizers"
    tokenizers = [opening.open(folder / f"{name}.tiktoken") for name in ("r50k_base", "cl100k_base", "llama-3")]
    found = compare.overlap([*tokenizers, opening.open(folder / "mistral-7b-v0.1.model"), opening.open(smollm2)])
    rows = [[round(v, 3) for v in list(row.values())[1:-1]] for row in found]
    assert rows[0] == [1, 0.857, 0.860, 0.423, 0.735]
    assert rows[1] == [0.430, 1, 1.000, 0.267, 0.391]
    assert rows[2] == [0.338, 0.783, 1, 0.227, 0.307]


def test_bytes_a_token_equal_the_published_ones(data: Path) -> None:
    names = ("r50k_base", "cl100k_base", "llama-3", "o200k_base")
    tokenizers = [opening.open(data / "tokenizers" / f"{name}.tiktoken") for name in names]
    found = compare.table(tokenizers, (data / "text" / "tinyshakespeare.txt").read_bytes())
    assert [round(value, 3) for value in found["bytes a token"]] == [3.300, 3.695, 3.696, 3.748]


def test_entropies_equal_closed_forms() -> None:
    assert compare.entropy(Counter(range(8))) == 3
    assert compare.huffman_bits(Counter(range(8))) == 24
    # Cover & Thomas, Elements of Information Theory, example 5.6.1: expected length 2.3 bits
    assert compare.huffman_bits(Counter({1: 25, 2: 25, 3: 20, 4: 15, 5: 15})) == 230
    assert compare.huffman_bits(Counter({1: 7})) == 7


@given(st.lists(st.integers(0, 20), min_size=2).filter(lambda ids: len(set(ids)) > 1))
def test_huffman_lies_within_one_bit_of_the_entropy(ids: list[int]) -> None:
    counts = Counter(ids)
    bits = compare.huffman_bits(counts) / len(ids)
    assert compare.entropy(counts) - 1e-9 <= bits < compare.entropy(counts) + 1


# -- identity and property ----------------------------------------------------------------------------------------
def test_spans_cover_the_text_and_hold_every_token(three: list[Tokenizer]) -> None:
    spans = list(compare.spans(three, TEXT))
    assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]
    assert spans[-1].end == len(TEXT.encode())
    for n, tokenizer in enumerate(three):
        assert [token for span in spans for token in span.tokens[n]] == tokenizer.split(TEXT)


def test_a_vocabulary_agrees_with_itself() -> None:
    pair = [toy(b"th", name="a"), toy(b"th", name="b")]
    assert len(compare.disagreements(pair, TEXT)) == 0
    assert compare.overlap(pair)["b"] == [1.0, 1.0]
    assert compare.lacking(pair, TEXT)["b"] == [0.0, 0.0]


def test_disagreements_show_each_cut(three: list[Tokenizer]) -> None:
    found = compare.disagreements(three[:2], "other the sea")
    assert [(row["text"], row["a"], row["b"]) for row in found] == [("▁s", "▁s", "▁|s")]


def test_lacking_counts_running_tokens(three: list[Tokenizer]) -> None:
    found = compare.lacking(three, "the the")
    assert found[2]["of"] == "bytes" and found[2]["a"] == 0
    # a cuts it into the| |the, of which the bytes have the space only
    assert found[0]["bytes"] == pytest.approx(2 / 3)


def test_the_table_follows_its_definitions() -> None:
    row = compare.table([bytes_vocabulary()], "aab їж")[0]
    assert (row["tokens"], row["bytes a token"], row["fixed width"]) == (8, 1, 8)
    assert row["tokens a word"] == 4 and row["tokens a character"] == pytest.approx(8 / 6)
    assert row["entropy"] == pytest.approx(compare.entropy(Counter("aab їж".encode())))


def test_the_page_shows_every_vocabulary_in_common_colors(three: list[Tokenizer]) -> None:
    result = compare.compare(three, TEXT)
    page = render.page("x", [result])
    assert len(result.figures) == 3 and page.count('class="tokens"') == 3
    assert math.isclose(sum(len(span.tokens[2]) for span in compare.spans(three, TEXT)), len(TEXT.encode()))
    groups = [[piece["group"] for piece in figure.data["pieces"]] for figure in result.figures]
    assert groups[0][-1] == groups[1][-1] == groups[2][-1]


def test_several_texts_are_counted_apart(three: list[Tokenizer]) -> None:
    found = compare.over(three, [Text("one", b"the"), Text("two", TEXT.encode())])
    assert [table.title for table in found.tables] == [
        "Tokens by text",
        "Tokens by script: one",
        "Tokens by script: two",
        "Share of tokens that the column has too",
    ]


# -- boundary -----------------------------------------------------------------------------------------------------
def test_confusing_requests_are_refused(three: list[Tokenizer]) -> None:
    with pytest.raises(EmptyText, match="the text is empty"):
        compare.table(three, "")
    with pytest.raises(BadValue, match="two vocabularies are called 'a'"):
        compare.table([three[0], three[0]], TEXT)
    with pytest.raises(BadValue, match="no vocabulary was given"):
        compare.table([], TEXT)
    with pytest.raises(BadValue, match="lone surrogate"):
        compare.table(three, "\ud800")
