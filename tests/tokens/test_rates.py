"""Tokens a byte, a character, a word: closed counts, and scripts that sum to the whole."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, EmptyText
from kobza.core.texts import Text
from kobza.tokens import opening, rates
from kobza.tokens.ranks import Ranked, byte_ranks, bytes_vocabulary

MIXED = "The sea 12 море!\r\n"


def toy() -> Ranked:
    ranks = byte_ranks()
    for token in (b"th", b"the", " м".encode(), b"12"):
        ranks[token] = len(ranks)
    return Ranked(ranks, "gpt2", name="toy")


def test_bytes_take_one_token_a_byte_in_every_script() -> None:
    found = rates.by_script([bytes_vocabulary()], MIXED)
    assert set(found["tokens a byte"]) == {1.0}
    assert {row["script"]: (row["bytes"], row["characters"], row["words"]) for row in found} == {
        "Latin": (7, 7, 2), "digits": (3, 3, None), "Cyrillic": (9, 5, 1), "signs": (1, 1, None),
        "white space": (2, 2, None),
    }  # fmt: skip


@given(st.binary(min_size=1, max_size=80))
def test_scripts_sum_to_the_tokens_of_any_bytes(data: bytes) -> None:
    found = rates.by_script([toy()], data)
    assert sum(row["tokens"] for row in found) == pytest.approx(len(toy().encode(data)))
    assert sum(row["bytes"] for row in found) == len(data)


def test_by_text_counts_each_text() -> None:
    found = rates.by_text([toy(), bytes_vocabulary()], [Text("a", b"the the"), Text("b", "море".encode())])
    assert [(row["text"], row["vocabulary"], row["tokens"]) for row in found][:2] == [
        ("a", "toy", 3),
        ("a", "bytes", 7),
    ]
    assert found[0]["tokens a word"] == 1.5 and found[3]["tokens a character"] == 2
    assert rates.wide(found, "text", "tokens").columns == ["text", "size", "toy", "bytes"]
    assert rates.wide(found, "text", "tokens")[1] == {"text": "b", "size": 8, "toy": 8.0, "bytes": 8.0}


def test_kobzar_is_almost_all_cyrillic(data: Path) -> None:
    text = (data / "text" / "kobzar.txt").read_bytes()
    tokenizers = [opening.open(data / "tokenizers" / name) for name in ("o200k_base.tiktoken", "mistral-7b-v0.1.model")]
    found = rates.by_script(tokenizers, text)
    assert [row["script"] for row in found][:2] == ["Cyrillic"] * 2
    for tokenizer in tokenizers:
        total = sum(row["tokens"] for row in found if row["vocabulary"] == tokenizer.name)
        assert total == pytest.approx(len(tokenizer.encode(text)))


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(EmptyText, match="there is no text"):
        rates.by_text([toy()], [])
    with pytest.raises(EmptyText, match="the text 'a' is empty"):
        rates.by_text([toy()], [Text("a", b"")])
    with pytest.raises(EmptyText, match="the text is empty"):
        rates.by_script([toy()], b"")
    with pytest.raises(BadValue, match="the text 'a' was given twice"):
        rates.same_names([Text("a", b"x"), Text("a", b"y")])
