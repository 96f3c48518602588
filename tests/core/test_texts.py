import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, EmptyText, MissingFile
from kobza.core.texts import Text, names, text


@pytest.mark.parametrize("name", names())
def test_named_texts_are_there_with_origin_and_licence(name):
    found = text(name)
    assert len(found) > 2500 and found.origin and found.licence and len(found.sha256) == 64
    assert "\ufffd" not in found.string


def test_topics_are_the_documentation_of_cpython():
    assert 'The "if" statement' in text("topics").string


def test_a_slice_counts_bytes_and_is_part_of_the_name():
    part = text("topics[10:30]")
    assert part.data == text("topics").data[10:30] and part.name == "topics[10:30]"
    assert text("topics", limit=7).name == "topics[0:7]"


@given(st.text(min_size=1), st.integers(0, 40), st.integers(0, 40))
def test_a_cut_never_splits_a_character(string, begin, end):
    Text("t", string.encode())[begin:end].data.decode()


def test_consecutive_slices_join_to_the_whole():
    whole = text("ukrainian")
    assert b"".join(whole[i : i + 101].data for i in range(0, len(whole), 101)) == whole.data


def test_a_file_is_read_byte_by_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\r\n")
    assert text(tmp_path / "a.txt").data == b"\xff\r\n"
    assert text(f"{tmp_path}/a.txt[1:2]").data == b"\r"


def test_standard_input_is_a_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert text("-").data == b"abc"


def test_faults_are_named(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyText, match="is empty"):
        text(tmp_path / "empty")
    with pytest.raises(EmptyText):
        text(b"")
    with pytest.raises(MissingFile, match="Nearest: 'topics'"):
        text("topic")
    with pytest.raises(BadValue, match="is a folder"):
        text(tmp_path)
