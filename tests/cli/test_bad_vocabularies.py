"""Faulty vocabularies on the command line: one clear error, the exit code of its kind, nothing half-written."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kobza.tokens.ranks import byte_ranks, ranks_text

WHOLE = ranks_text({**byte_ranks(), b"th": 256, b"the": 257})
LETTERS = b"".join(base64.b64encode(token) + b" %d\n" % n for n, token in enumerate([b"a", b"b", b"ab"]))


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (WHOLE[:-5], 3, "breaks off in line 258"),
        (WHOLE + b"dGhleQ== 257\n", 3, "gives the rank 257 to b'the' and to b'they'"),
        (WHOLE + b"dGhl 258\n", 3, "has the token b'the' twice (line 259)"),
        (LETTERS, 3, "no token for 254 of the 256 bytes"),
        (b"", 2, "is empty"),
        (b"\x00\xff\x00\n", 3, "must be a token in base64"),
    ],
    ids=["truncated", "rank twice", "token twice", "no bytes", "empty", "no ranks"],
)
@pytest.mark.parametrize(
    "words", [("tokens", "own.tiktoken", "the sea"), ("tokens", "the sea", "--with", "own.tiktoken")]
)
def test_faulty_ranks_are_refused(
    kobza: Callable[..., Any], tmp_path: Path, data: bytes, code: int, says: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "own.tiktoken").write_bytes(data)
    said = kobza(*words, "-o", "out.json")
    assert (said.code, said.out) == (code, "") and says in said.err and "Traceback" not in said.err
    assert not (tmp_path / "out.json").exists()


def test_a_published_file_cut_short_is_named(kobza: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(WHOLE)
    said = kobza("tokens", "o200k_base.tiktoken", "the sea")
    assert said.code == 3 and "has 258 tokens; o200k_base has 199998" in said.err


def test_a_tokenizer_that_does_not_fit_its_model_is_refused(
    kobza: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    tiny.save(tmp_path / "model")
    assert kobza("vocabulary", "topics[:20000]", "pairs:size=400", "--save", "own.json").code == 0
    (tmp_path / "model" / "tokenizer.json").write_bytes((tmp_path / "own.json").read_bytes())
    said = kobza("measure", "model", "-t", "topics[:200]", "-o", "out.json")
    assert said.code == 3 and "WrongVocabulary" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "out.json").exists()


def test_a_text_that_a_vocabulary_cannot_say_is_refused(kobza: Callable[..., Any], tmp_path: Path) -> None:
    import tokenizers

    model = tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "letters.json"))
    said = kobza("tokens", "letters.json", "abc", "-o", "out.json")
    assert said.code == 3 and "254 of the 256 bytes have no token" in said.err
    assert not (tmp_path / "out.json").exists()
