import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, Corrupt, MissingFile, UnknownName
from kobza.core.table import Table, show

ROWS = [
    {"name": "svd", "rank": 64, "bits": 2.5, "tied": True},
    {"name": "=noise", "rank": 8, "bits": None, "tied": False},
]
UNITS = {"rank": "count", "bits": "bit/B"}


@pytest.fixture
def table():
    return Table(ROWS, units=UNITS, title="Edits", note="one remark")


def test_columns_come_in_the_order_of_the_rows_unless_given():
    assert Table([{"a": 1}, {"b": 2, "a": 3}]).columns == ["a", "b"]
    assert Table([{"a": 1, "b": 2}], order=["b"]).columns == ["b", "a"]


def test_rows_are_sorted_selected_and_extended_without_changing_the_table(table):
    assert table.sorted("rank")["name"] == ["=noise", "svd"]
    assert table.sorted("bits", reverse=True)["bits"] == [2.5, None]  # rows without a value come last
    assert len(table.where(tied=True)) == 1 and len(table.head(1)) == 1
    assert table.with_column("x", [1, 2], "m")["x"] == [1, 2] and "x" not in table.columns
    with pytest.raises(BadValue, match="1 values for 2 rows"):
        table.with_column("x", [1])
    with pytest.raises(UnknownName, match="Nearest: 'rank'"):
        table["rnk"]


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_a_saved_table_is_read_back(table, tmp_path, suffix):
    path = table.save(tmp_path / f"t.{suffix}")
    back = Table.load(path)
    assert back.rows == table.rows and back.columns == table.columns
    assert back.units == (table.units if suffix != "jsonl" else {})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.integers() | st.booleans(), min_size=1))
def test_any_json_value_survives_json(values):
    table = Table([{"v": v} for v in values])
    assert Table.from_json(json.loads(table.json_text())) == table


def test_csv_cells_that_a_spreadsheet_would_run_are_quoted(table, tmp_path):
    with open(table.save(tmp_path / "t.csv"), newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["name", "rank [count]", "bits [bit/B]", "tied"] and lines[2][0] == "'=noise"


def test_nan_never_stands_in_json(tmp_path):
    text = Table([{"a": math.nan, "b": np.float32(1.5)}]).json_text()
    assert "NaN" not in text and json.loads(text)["rows"] == [[None, 1.5]]


def test_text_markdown_and_html_show_units_and_escape(table, tmp_path):
    hostile = Table([{"<b>": '<script>alert("x")</script>|\x1b[31m'}], title="<i>")
    for shown in (hostile._repr_html_(), hostile.save(tmp_path / "t.html").read_text()):
        assert "<script>alert" not in shown and "<i>" not in shown and "\x1b" not in shown
    assert "\\x1b" in str(hostile)
    assert "bits [bit/B]" in str(table) and "| rank [count] |" in table.save(tmp_path / "t.md").read_text()
    assert "\\|" in hostile.save(tmp_path / "h.md").read_text()


def test_html_says_how_many_rows_it_leaves_out():
    assert "100 further rows" in Table([{"a": i} for i in range(300)])._repr_html_()


def test_numbers_are_shown_for_reading():
    shown = [show(v) for v in (28311552, 1.04321987, 0.00012345, 0.5, 12345.6, None, True, 3.0, math.inf)]
    assert shown == ["28,311,552", "1.043", "0.0001234", "0.5000", "12,346", "", "yes", "3", "inf"]


def test_tables_are_joined_and_subtracted():
    a = Table([{"k": 1, "v": 2.0}, {"k": 2, "v": 3.0}], units={"v": "s"})
    b = Table([{"k": 1, "v": 2.5}, {"k": 3, "v": 9.0}])
    joined = a.compare(b, on=["k"])
    assert joined["v b-a"] == [0.5, None, None] and joined.units["v a"] == "s"


def test_a_plot_has_the_table_s_values_and_units(table):
    axes = Table([{"x": 1, "y": 2.0, "g": "a"}, {"x": 2, "y": 3.0, "g": "b"}], units={"y": "bit"}).plot(
        x="x", y="y", by="g"
    )
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0], [3.0]] and axes.get_ylabel() == "y [bit]"
    assert [round(bar.get_height(), 3) for bar in table.plot("bar", x="name", y="rank").patches] == [64, 8]
    with pytest.raises(BadValue, match="'line', 'bar' or 'scatter', not 'pie'"):
        table.plot("pie")


def test_faulty_files_are_refused(table, tmp_path):
    with pytest.raises(MissingFile):
        Table.load(tmp_path / "no.csv")
    with pytest.raises(BadValue, match="suffixes"):
        table.save(tmp_path / "t.xls")
    for name, content in (("a.json", "{"), ("b.json", '{"schema": "other"}'), ("c.jsonl", "[1]"), ("d.csv", "a,b\n1")):
        (tmp_path / name).write_text(content)
        with pytest.raises(Corrupt):
            Table.load(tmp_path / name)
