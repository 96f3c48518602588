"""The tokenizer face: exact bytes, literal control names, clear refusals."""

import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from kobza.core.errors import BadValue, Corrupt, MissingFile, OutOfRange, WrongVocabulary
from kobza.tokens.alphabet import byte_to_character, character_to_byte
from kobza.tokens.base import Marks, Tokenizer, printable

SAMPLE = "The oceans and the seas. Реве та стогне Дніпр! 海 👩‍🚀 e\u0301\n\tx = 1_000"


@cache
def byte_level(missing: frozenset[int] = frozenset(), **options: object) -> Tokenizer:
    """A byte-level vocabulary: two control tokens, the bytes but for `missing`, three merges."""
    vocab = {"<s>": 0, "<|end|>": 1}
    for byte, character in byte_to_character().items():
        if byte not in missing:
            vocab[character] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocab |= {left + right: len(vocab) + n for n, (left, right) in enumerate(merges)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|end|>", special=True)])
    return Tokenizer(backend, Marks(start_id=0, end_id=1, **options), name="toy")  # type: ignore[arg-type]


@cache
def metaspace(prefix: str = "first", composing: bool = False) -> Tokenizer:
    """A SentencePiece-like vocabulary with byte fallback."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for piece in ["▁", *"abcdehlot", "th", "the", "▁the"]:
        vocab.setdefault(piece, len(vocab))
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    if prefix == "prepend":  # as Llama 2 was converted
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    if composing:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return Tokenizer(backend, Marks(start_id=1, unknown_id=0), name="pieces")


# -- identity -----------------------------------------------------------------------------------------------------
@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_bytes_come_back_from_a_byte_level_vocabulary(data: bytes) -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(tokenizer.encode(data)) == data


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_text_comes_back_from_a_metaspace_vocabulary(text: str) -> None:
    for scheme in ("never", "first", "prepend"):
        tokenizer = metaspace(scheme)
        # what a metaspace vocabulary cannot tell apart: the mark itself, and with most a space in front
        text = text.replace("▁", "_") if tokenizer.is_exact else text.replace("▁", "_").lstrip(" ")
        assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@given(st.text(alphabet="the ▁_\n", max_size=8))
@settings(deadline=None, max_examples=200)
def test_tokens_of_a_metaspace_vocabulary_cover_the_text(text: str) -> None:
    for scheme in ("never", "first", "prepend"):
        tokens = metaspace(scheme).split(text.replace("▁", " "))
        assert (tokens[-1].end if tokens else 0) == len(text)


@given(st.binary(max_size=40))
@settings(deadline=None, max_examples=200)
def test_tokens_cover_the_text_without_gap(data: bytes) -> None:
    tokens = byte_level().split(data)
    assert [token.start for token in tokens] == [0, *[token.end for token in tokens]][: len(tokens)]
    assert all(data[token.start : token.end] == token.bytes for token in tokens)


def test_the_space_put_in_front_covers_no_byte_of_the_text() -> None:
    tokens = metaspace().split("the the")
    assert [(token.bytes, token.start, token.end) for token in tokens] == [(b" the", 0, 3), (b" the", 3, 7)]


def test_alphabet_is_a_bijection() -> None:
    assert len(byte_to_character()) == len(character_to_byte()) == 256
    assert all(character_to_byte()[character] == byte for byte, character in byte_to_character().items())


# -- authority ----------------------------------------------------------------------------------------------------
def test_alphabet_equals_the_library_s() -> None:
    assert set(byte_to_character().values()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_bytes_of_every_token_equal_the_library_s_decoding() -> None:
    tokenizer = byte_level()
    for id in range(2, len(tokenizer)):
        shown = tokenizer._backend.decode([id])
        assert tokenizer.bytes_of(id).decode("utf-8", errors="replace") == shown


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=200)
def test_ids_of_valid_text_equal_the_library_s(text: str) -> None:
    tokenizer = byte_level()
    tokenizer._backend.encode_special_tokens = True
    assert tokenizer.encode(text) == tokenizer._backend.encode(text, add_special_tokens=False).ids


@given(st.text(max_size=12), st.sampled_from([b"\xff", b"\xc3", b"\xe2\x82", b"\x80"]), st.text(max_size=12))
@settings(deadline=None, max_examples=200)
def test_valid_stretches_around_broken_utf8_keep_their_ids(before: str, broken: bytes, after: str) -> None:
    tokenizer = byte_level()
    middle = [tokenizer.id_of(bytes([byte])) for byte in broken]
    expected = [*tokenizer.encode(before), *middle, *tokenizer.encode(after)]
    assert tokenizer.encode(before.encode() + broken + after.encode()) == expected


def test_the_middle_of_a_metaspace_text_gets_no_space_in_front() -> None:
    tokenizer = metaspace("always")
    ids = tokenizer.encode(b"the\xffthe")
    assert b"".join(map(tokenizer.bytes_of, ids)) == b" the\xffthe"
    assert tokenizer.decode(ids) == b"the\xffthe"


# -- boundary -----------------------------------------------------------------------------------------------------
def test_names_of_control_tokens_in_a_text_stay_letters() -> None:
    tokenizer = byte_level()
    for text in ("<s>", "a<|end|>b", "<s><|end|><s>"):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special.values())
        assert tokenizer.decode(ids) == text.encode()


def test_start_puts_the_start_token_in_front() -> None:
    tokenizer = byte_level()
    assert tokenizer.encode("a", start=True) == [0, *tokenizer.encode("a")]
    assert tokenizer.decode(tokenizer.encode("a", start=True)) == b"a"


def test_a_byte_without_token_is_named_with_its_place() -> None:
    tokenizer = byte_level(missing=frozenset([0x04, 0xFF]))
    assert tokenizer.missing_bytes() == [0x04, 0xFF]
    with pytest.raises(WrongVocabulary, match=r"byte 0x04 at offset 3: 2 of the 256 bytes"):
        tokenizer.encode("the\x04the")
    with pytest.raises(WrongVocabulary, match="byte 0xff at offset 5"):
        tokenizer.encode("дa".encode() + b"zz\xff")


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(BadValue, match=r"U\+D800 at character 2"):
        byte_level().encode("ab\ud800")


def test_other_types_are_refused() -> None:
    with pytest.raises(BadValue, match="not int"):
        byte_level().encode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", [-1, 10_000])
def test_an_id_outside_the_vocabulary_is_named(id: int) -> None:
    with pytest.raises(OutOfRange, match=rf"id {id}: 'toy' has ids 0 .. 260"):
        byte_level().decode([id])


def test_what_alters_the_text_is_said() -> None:
    composing = metaspace(composing=True)
    assert not composing.is_exact
    assert "NFC" in composing.why_not_exact
    assert composing.text(composing.encode("e\u0301")) == unicodedata.normalize("NFC", "e\u0301")
    assert byte_level().is_exact
    assert metaspace("never").is_exact
    assert metaspace("prepend").is_exact
    assert "begins with a space" in metaspace("first").why_not_exact


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" sea", "▁sea"),
        (b"a\nb\x1b", "a\\nb\\x1b"),
        (b"\xd0", "\\xd0"),
        (b"\xa0", "\\xa0"),
        ("\xa0".encode(), "\\u00a0"),
        ("\u202e".encode(), "\\u202e"),
        ("▁".encode(), "\\u2581"),
        ("шо".encode(), "шо"),
    ],
)
def test_what_is_shown_is_printable(data: bytes, shown: str) -> None:
    assert printable(data) == shown
    assert shown.isprintable()


def test_table_has_every_id_and_marks_the_start_of_words() -> None:
    tokenizer = byte_level()
    table = tokenizer.table()
    assert table["id"] == list(range(len(tokenizer)))
    assert table.rows[-1]["token"] == "▁the"
    assert [row["special"] for row in table.rows[:3]] == [True, True, False]


# -- files --------------------------------------------------------------------------------------------------------
def test_saved_files_give_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_level(adds_start=True, chat_template="{{ messages[0].content }}")
    tokenizer.save(tmp_path)
    again = Tokenizer.from_file(tmp_path)
    assert again.marks == tokenizer.marks
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(SAMPLE) == tokenizer.encode(SAMPLE)


def test_transformers_opens_saved_files_with_equal_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for n, tokenizer in enumerate((byte_level(adds_start=True), byte_level(), metaspace())):
        folder = tmp_path / str(n)
        folder.mkdir()
        tokenizer.save(folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        text = "the oceans at the back"
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
        assert theirs.bos_token_id == tokenizer.start_id


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model": 5}', '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[["a","b"]]}}'],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(Corrupt, match="is not a tokenizer"):
        Tokenizer.from_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path)


def test_an_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as handle:
        handle.truncate(1 << 30)
    with pytest.raises(Corrupt, match="1073741824 bytes"):
        Tokenizer.from_file(file)


def test_marks_are_read_from_the_files_beside_it(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    config = {"bos_token": {"content": "<s>"}, "eos_token": "<|end|>", "pad_token": "absent"}
    templates = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": templates}))
    marks = Tokenizer.from_file(tmp_path).marks
    assert (marks.start_id, marks.end_id, marks.padding_id, marks.chat_template) == (0, 1, None, "D")
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.from_file(tmp_path).chat_template == "J"


# -- the real one -------------------------------------------------------------------------------------------------
@pytest.mark.real
def test_smollm2_lacks_21_bytes_and_is_otherwise_exact(smollm2: object) -> None:
    tokenizer = smollm2.tokenizer  # type: ignore[attr-defined]
    assert len(tokenizer) == 49_152
    assert [byte for byte in tokenizer.missing_bytes() if byte < 0x80] == [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D]
    assert len(tokenizer.missing_bytes()) == 21
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE.encode()
    assert tokenizer.show(tokenizer.encode(" sea")[0]) == "▁sea"
    assert not set(tokenizer.encode("<|im_start|>")) & set(tokenizer.special.values())
