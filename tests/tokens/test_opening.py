"""Any vocabulary in one call: published ids and counts, and every faulty file refused by name."""

import base64
import shutil
from pathlib import Path

import pytest
import tokenizers

import kobza
from kobza.core.errors import BadValue, Corrupt, EmptyText, MissingFile, Truncated
from kobza.tokens import opening
from kobza.tokens.base import Tokenizer
from kobza.tokens.ranks import Ranked, byte_ranks, ranks_text

POEM = "Реве та стогне Дніпр широкий"
OCEAN = "The oceans and the seas are filled with salty water, cried the earth."
PUBLISHED = [
    ("o200k_base.tiktoken", POEM, "4647 4333 327 6572 3242 1443 3907 5117 6774 9501 187104"),
    ("llama-3.tiktoken", POEM, "34604 33742 1532 100344 18868 14837 79862 39903 123058 2233 112781 44938"),
    ("llama-3.tiktoken", "Who is Pani Puri?", "15546 374 393 5676 393 6198 30"),
    ("llama-3.tiktoken", "Who is Katy Perry?", "15546 374 73227 31421 30"),
    ("llama-3.tiktoken", OCEAN, "791 54280 323 279 52840 527 10409 449 74975 3090 11 39169 279 9578 13"),
    ("mistral-7b-v0.1.model", "Who is Pani Puri?", "1 6526 349 367 4499 367 6395 28804"),
    ("mistral-7b-v0.1.model", "Who is Katy Perry?", "1 6526 349 14294 28724 24150 28804"),
]


def written(folder: Path, data: bytes, name: str = "own.tiktoken") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def small() -> dict[bytes, int]:
    ranks = byte_ranks()
    for token in (b"th", b"the", b" the"):
        ranks[token] = len(ranks)
    return ranks


# -- authority: the published figures -----------------------------------------------------------------------------
@pytest.mark.parametrize(("file", "text", "ids"), PUBLISHED)
def test_published_ids_hold(data: Path, file: str, text: str, ids: str) -> None:
    tokenizer = opening.open(data / "tokenizers" / file)
    got = tokenizer.encode(text, start="mistral" in file)
    assert " ".join(map(str, got)) == ids
    assert tokenizer.decode(got) == text.encode()


def test_kobzar_has_its_published_count_of_tokens(data: Path) -> None:
    tokenizer = opening.open(data / "tokenizers" / "o200k_base.tiktoken")
    raw = (data / "text" / "kobzar.txt").read_bytes()
    assert len(tokenizer) == 200_019
    assert len(tokenizer.encode(raw.replace(b"\r\n", b"\n"))) == 209_951  # as read in text mode
    assert len(tokenizer.encode(raw)) == 210_433


@pytest.mark.parametrize(
    ("file", "ids", "special"),
    [("r50k_base", 50_257, 1), ("cl100k_base", 100_277, 5), ("llama-3", 128_256, 256), ("o200k_base", 200_019, 2)],
)
def test_published_files_bring_their_control_tokens(data: Path, file: str, ids: int, special: int) -> None:
    tokenizer = opening.open(data / "tokenizers" / f"{file}.tiktoken")
    assert (len(tokenizer), len(tokenizer.special)) == (ids, special)


def test_an_unnamed_copy_of_a_published_file_is_known_by_its_bytes(data: Path, tmp_path: Path) -> None:
    copy = shutil.copy(data / "tokenizers" / "llama-3.tiktoken", tmp_path / "tokenizer.model")
    assert opening.open(copy).encode("Who is Katy Perry?", start=True)[0] == 128_000


def test_gpt2s_two_files_and_its_ranks_give_equal_ids(data: Path, tmp_path: Path) -> None:
    ranks = opening.open(data / "tokenizers" / "r50k_base.tiktoken")
    ranks._backend.model.save(str(tmp_path))  # type: ignore[attr-defined]
    text = (data / "text" / "tinyshakespeare.txt").read_text()[:20_000] + POEM
    assert opening.open(tmp_path / "vocab.json").encode(text) == ranks.encode(text)
    assert opening.open(tmp_path / "merges.txt").encode(text) == ranks.encode(text)


# -- identity: all ways to one face -------------------------------------------------------------------------------
def test_a_tokenizer_and_a_model_open_as_themselves() -> None:
    model = kobza.open("tiny")
    assert opening.open(model) is model.tokenizer
    assert opening.open(model.tokenizer) is model.tokenizer
    assert kobza.vocabulary("tiny").encode(OCEAN) == model.tokenizer.encode(OCEAN)


def test_the_bytes_are_a_vocabulary_of_their_own() -> None:
    tokenizer = kobza.vocabulary("bytes")
    assert tokenizer.encode(b"\x00a\xff") == [0, 97, 255]
    assert len(tokenizer) == 256 and tokenizer.missing_bytes() == [] and tokenizer.is_exact


def test_a_folder_opens_by_the_vocabulary_in_it(tmp_path: Path) -> None:
    model = kobza.open("tiny")
    model.tokenizer.save(tmp_path)
    opened = kobza.vocabulary(tmp_path)
    assert opened.encode(POEM) == model.tokenizer.encode(POEM)
    assert opened.name == tmp_path.name


@pytest.mark.real
def test_a_gguf_file_gives_its_vocabulary_without_its_weights(smollm2: kobza.Model) -> None:
    tokenizer = kobza.vocabulary("smollm2")
    assert tokenizer.encode(POEM + OCEAN) == smollm2.tokenizer.encode(POEM + OCEAN)
    assert len(tokenizer) == 49_152 and len(tokenizer.missing_bytes()) == 21


# -- boundary: faulty files ---------------------------------------------------------------------------------------
def test_ranks_need_their_split_pattern(tmp_path: Path) -> None:
    file = written(tmp_path, ranks_text(small()))
    with pytest.raises(BadValue, match="does not say how to cut a text.*\n.*'gpt2', 'cl100k', 'o200k', 'none'"):
        opening.open(file)
    assert opening.open(file, pattern="gpt2").encode("of the") == [78, 69, 258]
    with pytest.raises(BadValue, match="is not a regular expression"):
        opening.open(file, pattern="(").encode("a")


def test_a_file_that_breaks_off_is_truncated(tmp_path: Path) -> None:
    whole = ranks_text(small())
    with pytest.raises(Truncated, match=r"breaks off in line 259\."):
        opening.open(written(tmp_path, whole[:-6]), pattern="gpt2")
    with pytest.raises(Truncated, match=r"has 259 tokens; o200k_base has 199998\."):
        opening.open(written(tmp_path, whole, "o200k_base.tiktoken"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (b"dGhl 300\n", r"has the token b'the' twice \(line 260\)"),
        (b"dGhleQ== 258\n", "gives the rank 258 to b' the' and to b'they'"),
        (b"dGhleQ==\n", r"line 260 of .* is b'dGhleQ=='; it must be a token in base64"),
        (b"dGhleQ 259\n", "line 260"),
        (b"dGhleQ== -1\n", "line 260"),
        (b"dGhleQ== 99999999\n", "has 260 tokens but ranks up to 99999999"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, more: bytes, says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        opening.open(written(tmp_path, ranks_text(small()) + more), pattern="gpt2")


def test_a_vocabulary_without_bytes_is_refused(tmp_path: Path) -> None:
    lines = b"".join(base64.b64encode(token) + b" %d\n" % n for n, token in enumerate([b"a", b"b", b"ab"]))
    with pytest.raises(Corrupt, match=r"no token for 254 of the 256 bytes \(the first is 0x00\)"):
        opening.open(written(tmp_path, lines), pattern="gpt2")


def test_a_control_token_on_a_taken_id_is_refused() -> None:
    with pytest.raises(Corrupt, match="gives the id 3 to a token and to a control token"):
        Ranked(byte_ranks(), "gpt2", {"<end>": 3})


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"there is no vocabulary .*o200k\.tiktoken'. Nearest: 'o20k.tiktoken'"):
        written(tmp_path, b"", "o20k.tiktoken")
        opening.open(tmp_path / "o200k.tiktoken")
    with pytest.raises(EmptyText, match="is empty"):
        opening.open(tmp_path / "o20k.tiktoken")
    with pytest.raises(BadValue, match="is not a vocabulary"):
        opening.open(written(tmp_path, b"\x00\x01", "picture.png"))
    with pytest.raises(Corrupt, match="is not a tokenizer"):
        opening.open(written(tmp_path, b"{}", "tokenizer.json"))


def test_a_folder_without_a_vocabulary_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="has no vocabulary.\nA vocabulary is .tiktoken"):
        opening.open(tmp_path)
    written(tmp_path, b"{}", "vocab.json")
    with pytest.raises(MissingFile, match="vocab.json and merges.txt belong together"):
        opening.open(tmp_path)
    written(tmp_path, b"a b c d\n", "merges.txt")
    with pytest.raises(Corrupt, match="are no vocabulary"):
        opening.open(tmp_path)


def test_a_saved_vocabulary_of_ranks_opens_in_the_library_with_equal_ids(tmp_path: Path) -> None:
    tokenizer = Ranked(small(), "gpt2", {"<end>": 300}, name="own")
    tokenizer.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "the other,  the\r\n\x00🙂 " + POEM
    assert library.encode(text).ids == tokenizer.encode(text)
    assert library.token_to_id("<end>") == 300
    assert isinstance(opening.open(tmp_path), Tokenizer)
