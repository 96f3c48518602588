"""Word vectors from text files: the published figures, exact round trips, and errors that name the line."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.core.errors import BadValue, Corrupt, MissingFile, NotFinite, OutOfRange, Truncated, UnknownName
from kobza.embeddings import neighbors, words
from kobza.embeddings.base import subject, vectors_of

GLOVE = "vectors/glove.6B.100d.top40k.txt.gz"
PUBLISHED = {
    "sea": {"ocean": 0.838656, "waters": 0.816107, "seas": 0.760018, "mediterranean": 0.725998, "arctic": 0.697598},
    "dark": {"bright": 0.765998, "gray": 0.747440, "black": 0.734338, "darker": 0.726193, "light": 0.722275},
}
TOWER = [0.49798, -0.19195, -0.042257, 0.30716, 0.14201, -0.17802, -0.5812, 0.099506, 0.10369, 0.34719]


@pytest.fixture(scope="module")
def glove(request):
    return words.read(request.getfixturevalue("data") / GLOVE)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_vector_of_tower_is_the_published_one(glove):
    assert np.allclose(glove["tower"][:10], TOWER, atol=0, rtol=1e-7)


@pytest.mark.parametrize("word", PUBLISHED)
def test_neighbors_of_words_are_the_published_ones(glove, word):
    found = glove.near(word, k=5)
    assert found["neighbor"] == list(PUBLISHED[word])
    # published from float32 products; in float64 dark-bright is 0.7659974970
    assert found["cosine"] == pytest.approx(list(PUBLISHED[word].values()), abs=6e-7)


def test_king_less_man_plus_woman_is_queen(glove):
    assert glove.analogy("king", "-man", "woman", k=1)["neighbor"] == ["queen"]
    assert words.table(glove, word="king - man + woman", k=1)["neighbor"] == ["queen"]


def test_chosen_words_are_drawn(glove):
    chosen = ["sea", "waters", "mediterranean", "arctic", "tea", "giant", "lion", "hockey"]
    figure = words.table(glove, words=chosen).figures[0]
    assert figure.data["labels"] == chosen
    assert figure.kind == "points"


def test_a_misspelled_word_names_the_nearest(glove):
    with pytest.raises(UnknownName, match="'towerr' is no single word of .*\nNearest: 'tower'"):
        glove["towerr"]


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_vectors_written_come_back_exactly(tmp_path, header, name):
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 1e3
    made = words.of_words([f"w{i}" for i in range(7)], matrix)
    back = words.read(words.write(made, tmp_path / name, header=header))
    assert torch.equal(back.matrix, matrix)
    assert back.labels == made.labels


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda w: not any(c.isspace() for c in w)),
)
def test_any_word_and_any_numbers_come_back(tmp_path_factory, numbers, word):
    path = tmp_path_factory.mktemp("w") / "v.txt"
    made = words.of_words([word, "x"], torch.tensor([numbers, numbers]))
    back = words.read(words.write(made, path))
    assert torch.equal(back.matrix, made.matrix)
    assert back.labels == [word, "x"]


def test_a_word_with_a_space_is_kept(tmp_path):
    assert words.read(written(tmp_path / "v.txt", "at 1 2\n. . . 3 4\n")).labels == ["at", ". . ."]


def test_a_number_is_a_word_where_the_file_has_no_header(tmp_path):
    found = words.read(written(tmp_path / "v.txt", "2020 1 2\n7 3 4\n"))
    assert found.labels == ["2020", "7"]
    assert found["7"].tolist() == [3, 4]


def test_windows_line_ends_and_blank_lines_are_read(tmp_path):
    assert words.read(written(tmp_path / "v.txt", "a 1 2\r\n\r\nb 3 4\r\n")).matrix.tolist() == [[1, 2], [3, 4]]


def test_the_first_of_two_equal_words_counts(tmp_path):
    assert words.read(written(tmp_path / "v.txt", "a 1 2\na 3 4\n"))["a"].tolist() == [1, 2]


def test_limit_reads_the_first_words(tmp_path):
    path = written(tmp_path / "v.txt", "9 2\na 1 2\nb 3 4\nc 5 6\n")
    assert words.read(path, limit=2).labels == ["a", "b"]
    with pytest.raises(OutOfRange):
        words.read(path, limit=-1)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a 1 2\nb 3\n", Corrupt, r"v\.txt, line 2 \('b'\): 1 numbers; the lines before have 2"),
        ("a 1 2\nb 3 x4\n", Corrupt, r"v\.txt, line 2 \('b'\): 'x4' is no number"),
        ("a 1 nan\n", NotFinite, r"v\.txt, line 1 \('a'\): a number is NaN or infinite"),
        ("a 1 1e999\n", NotFinite, "line 1"),
        ("a 1 1e39\n", NotFinite, "line 1"),
        ("a\n", Corrupt, r"v\.txt, line 1 \('a'\): 0 numbers"),
        ("", Corrupt, "holds no word vectors"),
        ("3 2\na 1 2\n", Truncated, "announces 3 words and holds 1"),
        ("3 0\na 1 2\n", Corrupt, "line 1: a word2vec header 'count width' whose width is b'0'"),
        (b"\xff\xfe 1 2\n", Corrupt, "line 1: the word is not UTF-8"),
        (b"a " + b"1" * (words.LONGEST_LINE + 9), Corrupt, "line 1 is longer than 1,048,576 bytes"),
    ],
)
def test_an_unsound_file_names_its_line(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        words.read(written(tmp_path / "v.txt", text))


def test_an_unsound_gzip_file_is_refused(tmp_path):
    whole = gzip.compress(b"a 1 2\n" * 9999)
    with pytest.raises(Truncated, match="ends before its compressed data do"):
        words.read(written(tmp_path / "v.txt.gz", whole[:-20]))
    with pytest.raises(Corrupt, match="is no gzip file"):
        words.read(written(tmp_path / "v.txt.gz", b"a 1 2\n"))


def test_unpacking_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "MOST_BYTES", 1 << 16)
    with pytest.raises(Corrupt, match="the file has more than"):
        words.read(written(tmp_path / "v.txt.gz", gzip.compress(b"a 1 2\n" * (1 << 16))))


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(MissingFile, match="of word vectors"):
        words.read(tmp_path / "none.txt")


def test_a_label_with_a_space_cannot_be_written(tmp_path):
    with pytest.raises(BadValue, match="'a b' is empty or has a space"):
        words.write(words.of_words(["a b"], torch.ones(1, 2)), tmp_path / "v.txt")
    assert not (tmp_path / "v.txt").exists()


def test_a_file_of_word_vectors_opens_as_a_subject(tmp_path):
    vectors = subject(written(tmp_path / "v.txt", "sea 1 2\nocean 1 2.1\ntea -1 0\n"))
    assert neighbors.table(vectors, token="sea", k=1)["neighbor"] == ["ocean"]


def test_the_view_reads_a_file_beside_the_model(tiny, tmp_path):
    path = written(tmp_path / "v.txt", "sea 1 2\nocean 1 2.1\ntea -1 0\n")
    assert words.table(tiny, file=str(path), word="sea", k=1)["neighbor"] == ["ocean"]
    assert words.table(tiny)["tokens"] == [300]


def test_a_model_and_words_are_one_kind_of_object(tiny, tmp_path):
    assert type(vectors_of(tiny)) is type(words.of_words(["a"], torch.ones(1, 2)))
