"""Byte ranks against tiktoken: equal ids on anything, with its engine and without, and on texts that it dies of."""

import random
from functools import cache
from pathlib import Path

import pytest

from kobza.core.errors import BadValue
from kobza.tokens import opening
from kobza.tokens.ranks import Ranked

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the authority, is not installed")

FILES = ("r50k_base", "cl100k_base", "llama-3", "o200k_base")
PARTS = [
    "🙂",
    "👩‍🚀",
    "\r\n",
    "\n",
    "\x00",
    " ",
    "   ",
    "\t",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "'s",
    "'LL",
    "'ſ",
    "123",
    "4567",
]
PARTS += [
    "the",
    " The",
    "Реве",
    " стогне",
    "海",
    "e\u0301",
    "\u0130",
    "\u00a0",
    "\u2028",
    "!?",
    "_",
    "//",
    "Ǆ",
    "٣",
    "½",
    "\ufeff",
]


@cache
def opened(folder: Path, name: str) -> Ranked:
    tokenizer = opening.open(folder / "tokenizers" / f"{name}.tiktoken")
    assert isinstance(tokenizer, Ranked)
    return tokenizer


@cache
def reference(folder: Path, name: str) -> tiktoken.Encoding:
    """The library on its own: its own reader of the file and, where it has one, its own pattern."""
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public

    ranks = load_tiktoken_bpe(str(folder / "tokenizers" / f"{name}.tiktoken"))
    patterns = {"r50k_base": openai_public.r50k_pat_str, "o200k_base": opened(folder, name).pattern}
    llama = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding(name, pat_str=patterns.get(name, llama), mergeable_ranks=ranks, special_tokens={})


def strings(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    drawn = []
    for _ in range(count):
        parts = [draw.choice(PARTS) if draw.random() < 0.7 else _letter(draw) for _ in range(draw.randrange(1, 12))]
        drawn.append("".join(parts))
    return drawn


def _letter(draw: random.Random) -> str:
    code = draw.choice([draw.randrange(128), draw.randrange(0x3000), draw.randrange(0x11_0000)])
    return "" if 0xD800 <= code < 0xE000 else chr(code)


@pytest.mark.parametrize("name", FILES)
def test_random_strings_have_the_ids_of_the_library(data: Path, name: str) -> None:
    tokenizer, library = opened(data, name), reference(data, name)
    for text in strings(3_000, seed=len(name)):  # bench/tokens_exact.py takes 10,000
        ids = tokenizer.encode(text)
        assert ids == library.encode_ordinary(text), repr(text)
        assert tokenizer.decode(ids) == text.encode()


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base"])
def test_without_tiktoken_the_ids_are_the_same(data: Path, name: str) -> None:
    first = opened(data, name)
    plain = Ranked(first.ranks, first.pattern, first.special, name=name)
    plain.__dict__["_engine"] = None  # as where the package is not installed
    for text in strings(1_000, seed=1):
        assert plain.encode(text) == first.encode(text), repr(text)


@pytest.mark.parametrize("name", FILES)
def test_any_bytes_come_back(data: Path, name: str) -> None:
    tokenizer, library, draw = opened(data, name), reference(data, name), random.Random(0)
    for text in strings(1_000, seed=2):
        broken = draw.randbytes(2) + text.encode()[: draw.randrange(40)] + b"\xff"
        assert tokenizer.decode(tokenizer.encode(broken)) == broken
    # what is not UTF-8 is one token a byte; what stands between has the library's ids
    assert tokenizer.encode(b"\xffthe sea\xfe") == [
        tokenizer.id_of(b"\xff"),
        *library.encode_ordinary("the sea"),
        tokenizer.id_of(b"\xfe"),
    ]


def test_a_lone_surrogate_is_refused(data: Path) -> None:
    with pytest.raises(BadValue, match=r"lone surrogate U\+D800 at character 1"):
        opened(data, "r50k_base").encode("a\ud800")


def test_long_runs_of_spaces_have_the_ids_of_the_library(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, library = opened(data, "llama-3"), reference(data, "llama-3")
    for text in (" " * 12_000 + "x", "a" + " \n" * 6_000, "\t" * 10_001):
        assert tokenizer.encode(text) == library.encode_ordinary(text)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["a" * 1_000_000, "qwzx" * 250_000, " " * 1_000_000 + "x"], ids=["a", "word", "space"])
def test_a_megabyte_without_a_break_comes_back(data: Path, name: str, text: str) -> None:
    tokenizer = opened(data, name)
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


def test_tokens_cover_the_text_byte_by_byte(data: Path) -> None:
    text = "Реве 🙂\r\n the sea"
    tokens = opened(data, "r50k_base").split(text)
    assert tokens[0].start == 0 and tokens[-1].end == len(text.encode())
    assert all(text.encode()[token.start : token.end] == token.bytes for token in tokens)


def test_every_derived_pair_makes_its_token(data: Path) -> None:
    tokenizer = opened(data, "r50k_base")
    assert all(left + right in tokenizer.ranks for left, right in tokenizer.merges)
    # GPT-2's file has 50,000 merges: nothing is lost by writing ranks only
    assert len(tokenizer.merges) == 50_000
