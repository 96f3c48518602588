"""SentencePiece models against the library: equal ids, exact bytes, faulty files refused."""

import io
import random
from functools import cache
from pathlib import Path

import pytest

from kobza.core.errors import Corrupt, MissingExtra, Truncated, WrongVocabulary
from kobza.tokens import opening
from kobza.tokens.sentencepieces import SentencePieces

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece, the authority, is not installed")

PARTS = [
    "🙂",
    "\r\n",
    "\x00",
    " ",
    "   ",
    "\t",
    "<s>",
    "</s>",
    "<0x0A>",
    "the",
    " The",
    "Реве",
    "海",
    "e\u0301",
    "1234",
    "!?",
]


@cache
def trained(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    lines = [f"the sea of {n} stones and {n * 7} waves, ﬁve or six" for n in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=340 if options.get("byte_fallback") else 70,
        model_type=kind, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return out.getvalue()


def strings(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randrange(1, 10))) for _ in range(count)]


def library(model: bytes) -> object:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def test_mistral_has_the_ids_of_the_library_and_exact_bytes(data: Path) -> None:
    file = data / "tokenizers" / "mistral-7b-v0.1.model"
    tokenizer, other = opening.open(file), library(file.read_bytes())
    for text in strings(3_000):  # bench/tokens_exact.py takes 10,000
        ids = tokenizer.encode(text)
        assert ids == other.encode(text), repr(text)  # type: ignore[attr-defined]
        assert tokenizer.decode(ids) == text.encode()
    assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.missing_bytes() == [] and len(tokenizer) == 32_000


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_model_with_byte_fallback_has_the_ids_of_the_library(kind: str) -> None:
    model = trained(kind, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    tokenizer, other = SentencePieces(model), library(model)
    assert tokenizer.kind == {"unigram": "Unigram", "bpe": "BPE"}[kind]
    for text in strings(2_000):
        ids = tokenizer.encode(text)
        assert ids == other.encode(text)  # type: ignore[attr-defined]
        assert tokenizer.decode(ids) == text.encode()


def test_a_model_that_normalizes_says_so() -> None:
    model = trained("unigram")
    tokenizer = SentencePieces(model)
    assert tokenizer.encode("ﬁve  seas") == library(model).encode("ﬁve  seas")  # type: ignore[attr-defined]
    assert tokenizer.decode(tokenizer.encode("ﬁve  seas")) == b"five seas"
    assert tokenizer.why_not_exact == "it alters the text before splitting it (nmt_nfkc, extra spaces removed)"


def test_the_mark_of_a_space_comes_back_as_a_space(data: Path) -> None:
    tokenizer = opening.open(data / "tokenizers" / "mistral-7b-v0.1.model")
    assert tokenizer.decode(tokenizer.encode("a▁b")) == b"a b"
    assert tokenizer.why_not_exact == "the character ▁ (U+2581) of a text comes back as a space"


def test_invalid_utf8_becomes_byte_tokens(data: Path) -> None:
    tokenizer = opening.open(data / "tokenizers" / "mistral-7b-v0.1.model")
    for broken in (b"\xff", b"the \xff sea", b"\xe2\x82", "Реве".encode()[:-1]):
        assert tokenizer.decode(tokenizer.encode(broken)) == broken


def test_tokens_cover_the_text(data: Path) -> None:
    tokenizer = opening.open(data / "tokenizers" / "mistral-7b-v0.1.model")
    tokens = tokenizer.split("the 🙂 sea")
    assert (tokens[0].start, tokens[0].end, tokens[-1].end) == (0, 3, len("the 🙂 sea".encode()))


def test_what_a_model_cannot_say_is_refused_by_byte() -> None:
    model = trained("bpe", normalization_rule_name="identity", remove_extra_whitespaces=False)
    with pytest.raises(WrongVocabulary, match="cannot express byte 0xe6 at offset 4"):
        SentencePieces(model).encode("the 海")


def test_faulty_models_are_refused(data: Path, tmp_path: Path) -> None:
    whole = (data / "tokenizers" / "mistral-7b-v0.1.model").read_bytes()
    for cut in (10, 1_000, len(whole) - 1):
        with pytest.raises(Truncated, match="breaks off"):
            SentencePieces(whole[:cut])
    for other in (b"\x00\x01", b"\xff" * 40, b"\x08\x01"):
        with pytest.raises(Corrupt):
            SentencePieces(other)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    model = trained("unigram")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'sentencepiece'.*\npip install 'kobza\[tokens\]'"):
        SentencePieces(model)


def test_a_saved_model_is_the_same_file(data: Path, tmp_path: Path) -> None:
    file = data / "tokenizers" / "mistral-7b-v0.1.model"
    opening.open(file).save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == file.read_bytes()
