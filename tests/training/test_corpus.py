"""Data for training: what is read, what is refused, what leaks from the held-out part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.core.errors import BadValue, Corrupt, EmptyText, MissingFile, OutOfRange
from kobza.core.texts import Text
from kobza.models.tiny import byte_tokenizer
from kobza.training.parts import corpus


def plainly_repeated(text: str, known: str, length: int) -> list[bool]:
    """The definition: a character lies in a stretch of `length` that also stands in `known`."""
    covered = [False] * len(text)
    for at in range(len(text) - length + 1):
        if text[at : at + length] in known:
            covered[at : at + length] = [True] * length
    return covered


@given(st.text("ab", max_size=60), st.text("ab", max_size=60), st.integers(2, 9))
@settings(max_examples=150, deadline=None)
def test_repeats_are_those_of_the_definition(text: str, known: str, length: int) -> None:
    assert corpus.repeats(text, known, length).tolist() == plainly_repeated(text, known, length)


def test_the_held_out_part_knows_which_of_its_bytes_leak() -> None:
    poem = "Реве та стогне Дніпр широкий, сердитий вітер завива, додолу верби гне високі, "
    part = corpus.split([poem + "x" * 900, "unseen words of a second document " + poem], 0.1)
    shared = np.array([len(c.encode()) for c in part.held.decode()])
    assert part.held.decode().endswith(poem)
    assert part.repeated.sum() == len(poem.encode())
    assert 0 < part.leak < 1
    assert shared.sum() == len(part.repeated)


def test_held_out_bytes_are_counted_without_and_with_repeats() -> None:
    part = corpus.Split(["x"], b"abcdef", np.array([False, True, True, False, False, False]))
    held = corpus.Held.of(part, byte_tokenizer(258))
    assert held.sizes.tolist() == [1] * 6
    assert held.fresh.tolist() == [1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize("context", [3, 4, 7, 100])
def test_windows_of_the_held_out_text_predict_every_token_once(start: int | None, context: int) -> None:
    ids = torch.arange(10, 20)
    held = corpus.Held(ids, torch.ones(10), torch.ones(10))
    places: list[int] = []
    for read, wanted, at in held.windows(context, start):
        places += at.reshape(-1).tolist()
        assert wanted.tolist() == ids[at].tolist()
        before = torch.where(at > 0, ids[(at - 1).clamp(min=0)], -1)
        assert (read == before)[:, 1:].all()
        assert (read[:, 0] == (before[:, 0] if start is None else start)).all()
    assert places == list(range(0 if start is not None else 1, 10))


def test_a_drawn_window_is_a_stretch_of_the_text_and_what_follows_it() -> None:
    windows = corpus.Windows(torch.arange(50), 4, 8)
    read, wanted = windows.draw(torch.Generator().manual_seed(0))
    assert read.shape == wanted.shape == (4, 8)
    assert (wanted == read + 1).all()
    again = windows.draw(torch.Generator().manual_seed(0))
    assert torch.equal(read, again[0])


def test_a_text_shorter_than_the_context_is_read_in_one_window() -> None:
    assert corpus.Windows(torch.arange(5), 2, 100).context == 4


def test_one_token_is_too_little() -> None:
    with pytest.raises(EmptyText, match="1 token"):
        corpus.Windows(torch.tensor([3]), 1, 8)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_are_read_from_files(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [{"text": "один", "n": 1}, {"text": " "}, {"text": "два"}]
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(lines))
    texts, notes = corpus.documents(path)
    assert texts == ["один", "два"]
    assert notes == ["1 of 3 samples are empty and were left out"]


def test_repeated_samples_are_pointed_out() -> None:
    assert corpus.documents(["a", "b", "a"])[1] == ["1 of 3 samples stand there more than once"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("words", ["the wide Dnipro roars", "реве та стогне Дніпр широкий"])
def test_two_bytes_a_character_are_known_without_their_mark(encoding: str, words: str) -> None:
    named = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(BadValue, match=named):
        corpus.documents(words.encode(encoding))


def test_a_text_with_a_zero_byte_is_a_text() -> None:
    assert corpus.documents(b"one\0two three four")[0] == ["one\0two three four"]


def test_a_text_in_another_encoding_is_refused_with_its_first_byte() -> None:
    with pytest.raises(BadValue, match=r"byte 0xd0 at 0.*CP1251"):
        corpus.documents(Text("poem", "Реве".encode("cp1251")))
    with pytest.raises(BadValue, match="UTF-16"):
        corpus.documents(Text("poem", "Реве".encode("utf-16")))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(EmptyText):
            corpus.documents(tmp_path / name)
    (tmp_path / "blank.txt").write_text(" \n ")
    with pytest.raises(EmptyText, match="hold no text"):
        corpus.documents(tmp_path / "blank.txt")


def test_a_missing_column_is_named_with_its_row_and_the_nearest(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "choosen": "b", "rejected": "c"}]
    with pytest.raises(BadValue) as caught:
        corpus.rows(rows, ("prompt", "chosen", "rejected"))
    assert "row 1" in str(caught.value)
    assert "'choosen'" in str(caught.value)


def test_a_broken_line_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(Corrupt, match="line 2"):
        corpus.rows(tmp_path / "a.jsonl")
    with pytest.raises(MissingFile, match="b.jsonl"):
        corpus.rows(tmp_path / "b.jsonl")


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(OutOfRange, match="1.0"):
        corpus.split(["text"], 1.0)


def test_the_kobzar_leaks_a_fifth_of_its_last_tenth(data: Path) -> None:
    texts, _ = corpus.documents(data / "text" / "kobzar.txt")
    part = corpus.split(texts)
    assert len(part.held) == pytest.approx(92_354, rel=0.02)
    assert part.leak == pytest.approx(0.199, abs=0.01)
