"""Supertokens: chunks keep the text, lengths follow their shares, held-out text gets shorter and comes back exactly."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.core.texts import text
from kobza.tokens import pairs, supertokens

KINDS = ("words", "characters", "stages")


# -- authority ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_held_out_gains_on_shakespeare_equal_the_reference(data: Path) -> None:
    corpus = (data / "text" / "tinyshakespeare.txt").read_text()
    found = supertokens.gains(corpus[:1_000_000], corpus[1_000_000:])
    plain, characters, words, stages = found["bytes a token"]
    # what Hugging Face's trainer reached on the same split: 3.179 for plain BPE, 3.690 for chunks of characters
    assert (round(plain, 3), round(characters, 2)) == (3.179, 3.69)
    assert words >= 4.1 and stages >= 3.9
    assert found["exact"] == [True] * 4


# -- identity -----------------------------------------------------------------------------------------------------
@given(st.text("ab \n", min_size=1, max_size=60), st.sampled_from(["words", "characters"]), st.integers(0, 5))
def test_chunks_keep_every_character(sample: str, by: str, seed: int) -> None:
    chunks = supertokens.chunks(sample, by=by, seed=seed)
    assert Counter(b"".join(chunk * n for chunk, n in chunks.items())) == Counter(sample.encode())


def test_equal_seeds_give_equal_vocabularies_and_others_differ() -> None:
    first, again, other = (supertokens.train(text("ukrainian"), size=400, seed=seed) for seed in (1, 1, 2))
    assert first.merges == again.merges != other.merges


def test_a_first_stage_of_everything_is_plain_training() -> None:
    corpus = text("ukrainian")
    staged = supertokens.train(corpus, size=400, by="stages", first=1.0)
    assert staged.merges == pairs.train(corpus, size=400).merges


# -- property -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", KINDS)
def test_supertokens_span_words_and_come_back(by: str) -> None:
    corpus = text("topics[:60000]")
    vocabulary = supertokens.train(corpus, size=600, by=by)
    assert any(b" " in left.strip() + right.rstrip() for left, right in vocabulary.merges)
    for sample in (text("topics[60000:70000]").data, "Реве\r\n\x00🙂 <|endoftext|>".encode()):
        assert vocabulary.decode(vocabulary.encode(sample)) == sample


def test_lengths_follow_their_shares() -> None:
    draw = supertokens._Draw(supertokens.PUBLISHED, seed=0)
    counts = Counter(draw.length() for _ in range(40_000))
    assert (min(counts), max(counts)) == (4, 23)
    assert (counts[12] + counts[13]) / 40_000 == pytest.approx(0.185 / 1.1, abs=0.01)


def test_renormalised_shares_are_told() -> None:
    assert supertokens.notice(supertokens.PUBLISHED).startswith("The shares of chunk lengths sum to 1.1")
    assert supertokens.notice(supertokens.WORDS) == ""


# -- boundary -----------------------------------------------------------------------------------------------------
def test_impossible_requests_are_refused() -> None:
    with pytest.raises(BadValue, match="not by 'lines'"):
        supertokens.train("the sea", by="lines")
    with pytest.raises(EmptyText, match="the corpus is empty"):
        supertokens.train("", by="characters")
    with pytest.raises(OutOfRange, match="first is 1.5"):
        supertokens.train("the sea", by="stages", first=1.5)
    for lengths in ({(0, 3): 1.0}, {(3, 2): 1.0}, {(1, 2): -1.0}, {(1, 2): 0.0}):
        with pytest.raises(BadValue, match="1 <= shortest <= longest"):
            supertokens.train("the sea", lengths=lengths)
