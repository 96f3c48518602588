"""Training byte pair encoding: equal to the plain way and to Hugging Face's trainer, opened by two libraries."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.core.progress import Task, listen
from kobza.core.texts import text
from kobza.tokens import opening, pairs, plain_pairs
from kobza.tokens.alphabet import byte_to_character

STRANGE = "the  sea\r\n\x00🙂 Реве <|endoftext|> 'll " + "aaaa" * 9


def spelled(token: bytes) -> str:
    return "".join(byte_to_character()[byte] for byte in token)


# -- authority ----------------------------------------------------------------------------------------------------
@given(st.dictionaries(st.text("ab ", min_size=1, max_size=12).map(str.encode), st.integers(1, 4), min_size=1))
@settings(deadline=None, max_examples=150)
def test_the_fast_way_equals_the_plain_way(words: dict[bytes, int]) -> None:
    assert pairs.merges(words, 30, 1) == plain_pairs.merges(words, 30, 1)


def test_both_ways_agree_on_a_real_text() -> None:
    words = pairs.pieces(text("ukrainian"), "gpt2")
    assert pairs.merges(words, 60) == plain_pairs.merges(words, 60)


def test_merges_equal_hugging_faces_on_shakespeare(data: Path) -> None:
    corpus = (data / "text" / "tinyshakespeare.txt").read_text()
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    theirs.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1024, min_frequency=2, initial_alphabet=level.alphabet(), show_progress=False
    )
    theirs.train_from_iterator([corpus], trainer)
    ours = pairs.train(corpus, size=1024, special=())
    # the documented tie-break is the library's own, so not even ties differ
    wanted = [tuple(merge) for merge in json.loads(theirs.to_str())["model"]["merges"]]
    assert [(spelled(left), spelled(right)) for left, right in ours.merges] == wanted
    assert theirs.get_vocab() == {spelled(token): id for token, id in ours.ranks.items()}


def test_a_textbook_example_merges_as_told() -> None:
    # the dictionary of Sennrich et al. (2016), figure 1, without its mark of a word's end
    words = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    history = pairs.from_words(words, size=256 + 4, pattern="gpt2", special=()).history()
    assert history["count"] == [9, 9, 7, 7]
    assert [(row["left"], row["right"]) for row in history] == [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w")]


def test_overlapping_places_count_and_join_from_the_left() -> None:
    assert plain_pairs.joined([7, 7, 7], (7, 7), 9) == [9, 7]
    assert (
        pairs.merges({b"aaaaa": 1}, 3, 1)
        == plain_pairs.merges({b"aaaaa": 1}, 3, 1)
        == [
            (64, 64, 4),
            (256, 64, 1),
            (256, 257, 1),
        ]
    )


# -- files --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "none"])
def test_trained_files_open_in_their_own_libraries_with_equal_ids(tmp_path: Path, pattern: str) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the authority, is not installed")
    from tiktoken.load import load_tiktoken_bpe

    ours = pairs.train(text("ukrainian").string.splitlines(keepends=True), size=440, pattern=pattern)
    ranks = load_tiktoken_bpe(str(ours.save_ranks(tmp_path / "own.tiktoken")))
    first = tiktoken.Encoding("own", pat_str=ours.pattern, mergeable_ranks=ranks, special_tokens=ours.special)
    second = tokenizers.Tokenizer.from_file(str(ours.save_json(tmp_path / "tokenizer.json")))
    second.encode_special_tokens = True
    for sample in (STRANGE, text("ukrainian").string):
        assert ours.encode(sample) == first.encode_ordinary(sample) == second.encode(sample).ids
        assert ours.decode(ours.encode(sample)) == sample.encode()
    reopened = opening.open(tmp_path / "own.tiktoken", pattern=pattern, special=ours.special)
    assert reopened.encode(STRANGE) == ours.encode(STRANGE)
    assert reopened.merges == ours.merges  # type: ignore[attr-defined]
    assert opening.open(tmp_path / "tokenizer.json").encode(STRANGE) == ours.encode(STRANGE)


def test_two_runs_give_one_file(tmp_path: Path) -> None:
    parts = text("ukrainian").string.splitlines(keepends=True)
    files = []
    for run in range(2):
        random.Random(run).shuffle(parts)  # nor does the order of the parts matter
        trained = pairs.train(parts, size=400)
        files.append(trained.save_ranks(tmp_path / f"{run}.tiktoken").read_bytes())
    assert files[0] == files[1]


# -- property -----------------------------------------------------------------------------------------------------
def test_every_merge_keeps_its_count() -> None:
    trained = pairs.train("the the the sea sea", size=262)
    rows = [(row["left"] + row["right"], row["count"]) for row in trained.history()]
    assert rows[:2] == [("he", 3), ("the", 3)]
    assert trained.counts == sorted(trained.counts, reverse=True)


def test_counts_beyond_32_bits_do_not_wrap() -> None:
    assert pairs.merges({b"ab": 5 << 40, b"cd": 1}, 1) == [(64 + 0, 65, 5 << 40)]
    with pytest.raises(OutOfRange, match="more pieces than 64-bit counts hold"):
        pairs.merges({b"ab": 1 << 62}, 1)


def test_control_tokens_come_last() -> None:
    trained = pairs.train("the the sea", size=260, special=("<end>", "<pad>"))
    assert trained.special == {"<end>": 258, "<pad>": 259} and len(trained) == 260
    assert trained.end_id == 258
    assert trained.decode(trained.encode("<end>")) == b"<end>" and 258 not in trained.encode("<end>")


def test_progress_is_told() -> None:
    events: list[Task] = []
    with listen(events.append):
        pairs.train(text("ukrainian"), size=400)
    assert {event.label for event in events} == {"cut the text", "train"} and events[-1].finished


# -- boundary -----------------------------------------------------------------------------------------------------
def test_impossible_requests_are_refused() -> None:
    with pytest.raises(EmptyText, match="the corpus is empty"):
        pairs.train("", size=300)
    with pytest.raises(EmptyText, match="the corpus is empty"):
        pairs.train([], size=300)
    with pytest.raises(OutOfRange, match="size is 256; 256 bytes and 1 control tokens need 257"):
        pairs.train("the sea", size=256)
    with pytest.raises(OutOfRange, match=r"size is 9999, but the corpus allows 259: no other pair .* stands 2 times"):
        pairs.train("the the sea", size=9999)
    with pytest.raises(OutOfRange, match="least is 0"):
        pairs.train("the sea", size=258, least=0)
    with pytest.raises(BadValue, match="is not a regular expression"):
        pairs.train("the sea", size=258, pattern="(")
    with pytest.raises(BadValue, match="leaves out 1 of 7 characters"):
        pairs.train("the sea", size=258, pattern=r"\w+")


def test_invalid_utf8_in_a_corpus_reads_as_the_replacement_character() -> None:
    assert pairs.pieces(b"\xff", "none") == Counter({"\ufffd".encode(): 1})
