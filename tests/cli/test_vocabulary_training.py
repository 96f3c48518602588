"""`kobza vocabulary`: trained from the command line, opened by two libraries, refused before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from kobza.core.texts import text
from kobza.tokens import opening, pairs

TEXT = "Реве, the sea\r\n\x00🙂 12"


def test_both_files_open_in_their_own_libraries_with_equal_ids(kobza: Callable[..., Any], tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the authority, is not installed")
    from tiktoken.load import load_tiktoken_bpe

    spec = "pairs:size=450,pattern=cl100k,special=<end>;<pad>"
    said = kobza("vocabulary", "ukrainian", spec, "--save", "own.tiktoken", "--save", "own.json")
    assert said.code == 0 and "450 ids: 256 bytes, 192 merges, control tokens: <end>, <pad>" in said.out
    ours = opening.open(tmp_path / "own.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "own.json"))
    ranks = load_tiktoken_bpe(str(tmp_path / "own.tiktoken"))
    cl100k = opening.patterns.PATTERNS["cl100k"]
    other = tiktoken.Encoding("own", pat_str=cl100k, mergeable_ranks=ranks, special_tokens={})
    assert ours.encode(TEXT) == library.encode(TEXT).ids == other.encode_ordinary(TEXT)
    assert ours.special == {"<end>": 448, "<pad>": 449}


def test_merges_come_with_their_counts(kobza: Callable[..., Any]) -> None:
    said = kobza("vocabulary", "ukrainian", "pairs:size=300", "--json")
    found = json.loads(said.out)
    wanted = pairs.train(text("ukrainian"), size=300).history()
    assert [row[-1] for row in found["rows"]] == wanted["count"] and found["columns"] == wanted.columns


def test_two_runs_write_one_file(kobza: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        assert kobza("vocabulary", "ukrainian", "supertokens:size=400,seed=3", "--save", name).code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_held_out_text_and_renormalised_shares_are_told(kobza: Callable[..., Any]) -> None:
    words = ("vocabulary", "topics[:9000]", "supertokens:size=400,by=characters", "-t", "ukrainian")
    said = kobza(*words, "--held-out", "source[:2000]")
    assert "Held out (source[0:2000])" in said.out and "sum to 1.1" in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("topics[:300]", "pairs:size=9000"), "but the corpus allows 303"),
        (("topics[:300]", "pairs:size=256"), "256 bytes and 1 control tokens need 257"),
        (("empty.txt", "pairs:size=300"), "the text 'empty.txt' is empty"),
        (("topics[:300]", "pears"), "Nearest: 'pairs'"),
        (("topics[:300]", "pairs:siz=300"), "Nearest: 'size'"),
        (("topics[:300]", "pairs:least=0,size=258"), "least=0 is out of range"),
        (("topics[:300]", "supertokens:by=lines"), "one of 'words', 'characters', 'stages'"),
        (("topics[:300]", "pairs:size=300,pattern=("), "is not a regular expression"),
        (("topics[:300]", "pairs:size=280", "--save", "x.bin"), "Suffixes: .tiktoken, .json"),
    ],
)
def test_bad_requests_are_refused_and_write_nothing(
    kobza: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    said = kobza("vocabulary", *words, "--save", "new.json")
    assert said.code == 2 and says in said.err and "Traceback" not in said.err and said.out == ""
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["empty.txt"]


def test_a_folder_that_is_not_there_is_told_before_the_work(kobza: Callable[..., Any]) -> None:
    assert kobza("vocabulary", "topics", "--save", "no/own.json").code == 4
