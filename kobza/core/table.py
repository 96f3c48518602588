"""A table: rows with typed, unit-bearing columns; prints, plots, saves, loads, compares."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from kobza.core.errors import BadValue, Corrupt, MissingExtra, MissingFile, UnknownName
from kobza.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kobza.core.figure import Figure

SCHEMA = "kobza.table/1"
SUFFIXES = (".csv", ".json", ".jsonl", ".md", ".html", ".parquet")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run these


class Table:
    """Rows of named values.

    Args:
        rows: mappings from column name to a number, text, bool or None.
        units: unit of each column that has one: {"bits_per_byte": "bit/B"}.
        title: what the table shows.
        note: one remark printed below it.
        order: columns from left to right; by default in the order in which the rows bring them.

    Attributes:
        figures: pictures that belong to the table.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        units: Mapping[str, str] | None = None,
        title: str = "",
        note: str = "",
        order: Sequence[str] | None = None,
        figures: Sequence[Figure] = (),
    ) -> None:
        self.rows: list[dict[str, Any]] = [{k: _plain(v) for k, v in row.items()} for row in rows]
        brought = dict.fromkeys(name for row in self.rows for name in row)
        self.columns: list[str] = list(dict.fromkeys([*(order or ()), *brought]))
        self.units: dict[str, str] = dict(units or {})
        self.title = title
        self.note = note
        self.figures: list[Figure] = list(figures)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: int | str) -> Any:
        """Return row `key` (int) or the values of column `key` (str)."""
        if isinstance(key, int):
            return self.rows[key]
        self._know(key)
        return [row.get(key) for row in self.rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # rows can be changed

    def sorted(self, by: str, *, reverse: bool = False) -> Table:
        """Return the table sorted by a column; rows without a value come last."""
        self._know(by)
        filled = sorted((r for r in self.rows if r.get(by) is not None), key=lambda r: r[by], reverse=reverse)
        return self._with(filled + [r for r in self.rows if r.get(by) is None])

    def head(self, n: int = 10) -> Table:
        """Return the first `n` rows."""
        return self._with(self.rows[:n])

    def where(self, **equal: Any) -> Table:
        """Return the rows whose columns equal the given values."""
        for name in equal:
            self._know(name)
        return self._with([r for r in self.rows if all(r.get(k) == v for k, v in equal.items())])

    def with_column(self, name: str, values: Sequence[Any], unit: str = "") -> Table:
        """Return the table with one more column, or with that column replaced."""
        if len(values) != len(self.rows):
            raise BadValue(f"column {name!r} has {len(values)} values for {len(self.rows)} rows.")
        rows = [{**row, name: value} for row, value in zip(self.rows, values, strict=True)]
        units = {**self.units, **({name: unit} if unit else {})}
        return Table(rows, units=units, title=self.title, note=self.note, order=self.columns, figures=self.figures)

    def compare(self, other: Table, *, on: Sequence[str]) -> Table:
        """Return the rows of both joined on the columns `on`, with `a`, `b` and `b - a` of every other number.

        Rows found in one table only have None on the other side.
        """
        for name in on:
            self._know(name)
            other._know(name)
        theirs = {tuple(r.get(k) for k in on): r for r in other.rows}
        ours = {tuple(r.get(k) for k in on): r for r in self.rows}
        numbers = [c for c in self.columns if c not in on and c in other.columns and self._is_number(c)]
        rows = []
        for key in dict.fromkeys([*ours, *theirs]):
            row: dict[str, Any] = dict(zip(on, key, strict=True))
            for name in numbers:
                a, b = ours.get(key, {}).get(name), theirs.get(key, {}).get(name)
                row[f"{name} a"], row[f"{name} b"] = a, b
                row[f"{name} b-a"] = b - a if a is not None and b is not None else None
            rows.append(row)
        units = {f"{c} {side}": self.units[c] for c in numbers if c in self.units for side in ("a", "b", "b-a")}
        return Table(rows, units=units, title=f"{self.title} (a) and {other.title} (b)", order=list(on))

    # --- showing ---------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        head = [f"{c} [{self.units[c]}]" if c in self.units else c for c in self.columns]
        cells = [[show(row.get(c)) for c in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)] if head else []
        right = [self._is_number(c) for c in self.columns]

        def line(parts: Sequence[str]) -> str:
            aligned = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
            return "  ".join(aligned).rstrip()

        body = [line(head), "  ".join("-" * w for w in widths), *map(line, cells)]
        return "\n".join([*([self.title] if self.title else []), *body, *([self.note] if self.note else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from kobza.core.render import html

        return html(self)

    def figure(
        self, kind: str = "line", *, x: str | None = None, y: str | None = None, by: str | None = None
    ) -> Figure:
        """Return a chart of two columns.

        Args:
            kind: "line", "bar" or "scatter".
            x: column along the axis; by default the first.
            y: column of values; by default the first column of numbers that is not `x`.
            by: column whose values become separate series.

        Raises:
            UnknownName: no such column.
            BadValue: an unknown kind, or there is no column of numbers.
        """
        from kobza.core.figure import Figure

        if kind not in ("line", "bar", "scatter"):
            raise BadValue(f"a table is drawn as 'line', 'bar' or 'scatter', not {kind!r}.")
        x = x or self.columns[0]
        y = y or next((c for c in self.columns if c not in (x, by) and self._is_number(c)), None)
        if y is None:
            raise BadValue("the table has no column of numbers to draw.")
        for name in filter(None, (x, y, by)):
            self._know(name)
        axis: dict[str, Any] = {"x": self._headed(x), "y": self._headed(y), "title": self.title}
        if kind == "bar":
            return Figure("bars", {"labels": [show(v) for v in self[x]], "values": self[y]}, **axis)
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault(show(row.get(by)) if by else y, []).append(row)
        series = [
            {"name": name, "x": [r.get(x) for r in rows], "y": [r.get(y) for r in rows]}
            for name, rows in groups.items()
        ]
        return Figure("lines", {"series": series, "markers_only": kind == "scatter"}, **axis)

    def plot(self, kind: str = "line", *, x: str | None = None, y: str | None = None, by: str | None = None) -> Axes:
        """Draw the table with matplotlib and return the Axes; see `figure` for the arguments."""
        return self.figure(kind, x=x, y=y, by=by).axes()

    # --- saving and loading ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the table in the format of the suffix: .csv, .json, .jsonl, .md, .html or .parquet.

        Raises:
            BadValue: an unknown suffix.
            CannotWrite: the file cannot be written; nothing is left behind.
            MissingExtra: .parquet without pyarrow.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return write_atomic(path, self._parquet())
        if suffix == ".html":
            from kobza.core.render import page

            return write_atomic(path, page(self.title or "Table", [self]))
        writers = {".csv": self._csv, ".json": self.json_text, ".jsonl": self._jsonl, ".md": self._markdown}
        if suffix not in writers:
            raise BadValue(f"cannot save a table as {suffix!r}; suffixes: {', '.join(SUFFIXES)}.")
        return write_atomic(path, writers[suffix]())

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """Read a table that `save` wrote as .csv, .json, .jsonl or .parquet.

        Raises:
            MissingFile: there is no such file.
            BadValue: an unknown suffix.
            Corrupt: the content is not what the suffix says.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"there is no table '{path}'.")
        readers = {
            ".csv": cls._from_csv,
            ".json": cls._from_text,
            ".jsonl": cls._from_jsonl,
            ".parquet": cls._from_parquet,
        }
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise BadValue(f"cannot read a table from {path.suffix!r}; suffixes: {', '.join(readers)}.")
        try:
            return reader(path.read_bytes())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"'{path}' is not a table of kobza: {error}.") from None

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain data; NaN and infinities become None."""
        rows = [[_finite(row.get(c)) for c in self.columns] for row in self.rows]
        plain = {"schema": SCHEMA, "title": self.title, "note": self.note, "columns": self.columns, "units": self.units}
        return {**plain, "rows": rows, "figures": [f.to_json() for f in self.figures]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Return the table that `to_json` described."""
        from kobza.core.figure import Figure

        if data.get("schema") != SCHEMA:
            raise Corrupt(f"not a table of kobza: schema {data.get('schema')!r}, wanted {SCHEMA!r}.")
        rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
        figures = [Figure.from_json(f) for f in data.get("figures", [])]
        meta = {"units": data["units"], "title": data["title"], "note": data["note"]}
        return cls(rows, **meta, order=data["columns"], figures=figures)

    def json_text(self) -> str:
        """Return the table as one JSON document."""
        return json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)

    def _jsonl(self) -> str:
        lines = ({c: _finite(row.get(c)) for c in self.columns} for row in self.rows)
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)

    def _csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self._headed(c) for c in self.columns])
        writer.writerows([[_cell(row.get(c)) for c in self.columns] for row in self.rows])
        return out.getvalue()

    def _markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

        rule = "|" + "|".join("---:" if self._is_number(c) else "---" for c in self.columns) + "|"
        rows = [line(show(row.get(c)) for c in self.columns) for row in self.rows]
        title = [f"**{self.title}**", ""] if self.title else []
        note = ["", self.note] if self.note else []
        return "\n".join([*title, line(map(self._headed, self.columns)), rule, *rows, *note]) + "\n"

    def _parquet(self) -> bytes:
        pyarrow, parquet = _pyarrow()
        table = pyarrow.table({c: self[c] for c in self.columns})
        meta = {"schema": SCHEMA, "units": self.units, "title": self.title, "note": self.note}
        table = table.replace_schema_metadata({"kobza": json.dumps(meta)})
        out = io.BytesIO()
        parquet.write_table(table, out)
        return out.getvalue()

    @classmethod
    def _from_parquet(cls, data: bytes) -> Table:
        _, parquet = _pyarrow()
        table = parquet.read_table(io.BytesIO(data))
        meta = json.loads((table.schema.metadata or {}).get(b"kobza", b"{}"))
        kept = {k: meta[k] for k in ("units", "title", "note") if k in meta}
        return cls(table.to_pylist(), **kept, order=table.column_names)

    @classmethod
    def _from_text(cls, data: bytes) -> Table:
        return cls.from_json(json.loads(data))

    @classmethod
    def _from_jsonl(cls, data: bytes) -> Table:
        return cls([json.loads(line) for line in data.splitlines() if line.strip()])

    @classmethod
    def _from_csv(cls, data: bytes) -> Table:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
        names, units = [], {}
        for head in lines[0] if lines else []:
            name, bracket, unit = head.partition(" [")
            names.append(name)
            if bracket:
                units[name] = unit.rstrip("]")
        rows = [dict(zip(names, map(_uncell, line), strict=True)) for line in lines[1:]]
        return cls(rows, units=units, order=names)

    # --- within ------------------------------------------------------------------------------------------------------

    def _with(self, rows: list[dict[str, Any]]) -> Table:
        return Table(rows, units=self.units, title=self.title, note=self.note, order=self.columns, figures=self.figures)

    def _know(self, column: str) -> None:
        if column not in self.columns:
            raise UnknownName.of("column", column, self.columns)

    def _is_number(self, column: str) -> bool:
        values = [row.get(column) for row in self.rows if row.get(column) is not None]
        return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)

    def _headed(self, column: str) -> str:
        return f"{column} [{self.units[column]}]" if column in self.units else column


def show(value: Any) -> str:
    """Return a value as a reader wants it: 4 decimals at most, thousands apart, control characters escaped.

    >>> show(28311552), show(1.04321987), show(None), show("a\\x1b")
    ('28,311,552', '1.043', '', 'a\\\\x1b')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _show_float(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _show_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return (
        f"{value:.4g}"
        if abs(value) < 0.01 or abs(value) >= 1e15
        else f"{value:.4f}"
        if abs(value) < 1
        else f"{value:#.4g}"
    )


def _plain(value: Any) -> Any:
    """Turn numpy and torch scalars into Python's own."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    if isinstance(value, str) and (value.startswith(_FORMULA) or (value.startswith("'") and value[1:2] in _FORMULA)):
        return "'" + value
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else repr(value) if isinstance(value, float) else value


def _uncell(text: str) -> Any:
    if text in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[text]
    if text.startswith("'") and len(text) > 1 and text[1] in (*_FORMULA, "'"):
        return text[1:]
    for convert in (int, float):
        try:
            # subtle: int() also takes "1_000" and blanks, which are texts here
            return convert(text) if not (set(text) & set("_ \n")) else text
        except ValueError:
            continue
    return text


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra.of("Parquet", "pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet
