"""The parts of the command line: sizes, times, forms, the bar, completion."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.cli import bar, frame, pieces, show, spec
from kobza.core.errors import BadValue, CannotWrite
from kobza.core.progress import Task
from kobza.core.result import Reading, Result
from kobza.core.table import Table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("", 0),
        ("1000", 1000),
        ("4G", 4 * 10**9),
        ("4GB", 4 * 10**9),
        ("1.5GiB", 3 << 29),
        ("512 k", 512_000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(words: str, count: int) -> None:
    assert spec.byte_size(words) == count


@pytest.mark.parametrize(("words", "count"), [("", 0), ("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_times_are_read_as_people_write_them(words: str, count: float) -> None:
    assert spec.seconds(words) == count


@pytest.mark.parametrize("words", ["x", "4X", "G", "4G4", "1e999", "--"])
def test_what_is_no_size_or_time_is_refused(words: str) -> None:
    with pytest.raises(BadValue, match="not a size"):
        spec.byte_size(words)
    with pytest.raises(BadValue, match="not a time"):
        spec.seconds(words)


@given(st.text())
def test_what_is_shown_has_no_control_characters(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in show.printable(text))


def test_json_of_anything_is_one_document_with_its_schema() -> None:
    table = Table([{"a": 1}], title="t")
    for found in (table, Result("r", tables=[table]), "words"):
        assert json.loads(show.as_json_text(found))["schema"].startswith("kobza.")


def test_the_main_table_is_the_first_or_the_readings() -> None:
    table = Table([{"a": 1}])
    assert show.main_table(Result(tables=[table])) is table
    assert show.main_table(Result(readings=[Reading("bits", 1.5, "bit")]))["value"] == [1.5]
    assert show.main_table("one\ntwo")["line"] == ["one", "two"]


def test_a_read_only_folder_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CannotWrite, match="read-only"):
        show.require_writable(tmp_path / "x.json")


def test_a_terminal_that_knows_few_characters_gets_them_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    show.write("кобза\n")
    out.seek(0)
    assert out.read() == "\\u043a\\u043e\\u0431\\u0437\\u0430\n"


def test_a_closed_pipe_is_a_hangup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(show.Hangup):
        show.write("x")


# --- the bar ---------------------------------------------------------------------------------------------------------


def test_a_bar_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert bar.wanted(Terminal())
    assert not bar.wanted(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not bar.wanted(Terminal())


def test_a_bar_leaves_nothing_behind() -> None:
    out = Terminal()
    drawn = bar.Bar(out)
    work = Task("sweep", 10, done=5, note="lowrank:rank=64")
    drawn(work)
    assert "5/10" in out.getvalue()
    work.finished = True
    drawn(work)
    assert out.getvalue().endswith(bar.CLEAR)


@given(st.text(), st.integers(0, 10**6), st.one_of(st.none(), st.integers(0, 10**6)), st.text(), st.integers(10, 200))
def test_a_bar_fits_in_its_line(label: str, done: int, total: int | None, note: str, columns: int) -> None:
    text = bar.line(Task(label, total, done, note), columns)
    assert len(text) < columns
    assert text.isprintable() or not text


def test_colors_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert not pieces.has_colors()  # NO_COLOR is set for all tests
    monkeypatch.delenv("NO_COLOR")
    assert pieces.has_colors()


def test_examples_in_help_keep_their_lines() -> None:
    assert frame.kept_lines("One.\n\n    a b\n    c d\n\nTwo.") == "One.\n\n\b\n    a b\n    c d\n\nTwo."


@pytest.mark.parametrize(
    ("incomplete", "offered"),
    [
        ("lowrank:", "lowrank:rank="),
        ("lowrank:rank=64,w", "lowrank:rank=64,where="),
        ("lowrank:rank=64,ra", None),
        ("nothing:", None),
        ("sca", "scaling"),
    ],
)
def test_completion_follows_the_technique(incomplete: str, offered: str | None) -> None:
    found = spec.complete_edit(incomplete)
    assert offered in found if offered else not found
