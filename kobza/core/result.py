"""What a measurement returns: a Reading is one number with its unit, spread and record; a Result is a whole run.

The spread is a percentile bootstrap over chunks of the text (Efron 1979, doi:10.1214/aos/1176344552). Two readings
taken on the same chunks are compared paired: the same chunks are drawn for both (Koehn 2004, "Statistical
significance tests for machine translation evaluation").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kobza.core.errors import BadValue, Corrupt, MissingFile, NotComparable
from kobza.core.files import atomic_directory
from kobza.core.table import Table, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kobza.core.figure import Figure

SCHEMA = "kobza.result/1"
DRAWS, LEVEL = 2000, 0.95
# parts of a record in which two comparable figures may differ
FREE = ("model", "versions", "machine", "sample")


@dataclass(frozen=True)
class Reading:
    """One measured number.

    Attributes:
        name: the measure: "bits_per_byte".
        value: the number; when there are parts it equals sum(numerators) / sum(denominators).
        unit: "bit/B".
        low, high: the interval, or None when there is none.
        spread: how the interval was taken.
        record: under what conditions. Keys "text" and "how" must be equal for two readings to be comparable;
            "model", "versions", "machine" and "sample" (the text that was written) may differ.
        note: one remark.
        parts: (numerator, denominator) of each chunk of the text, or None.
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    spread: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    parts: Sequence[tuple[float, float]] | None = None

    @classmethod
    def from_parts(
        cls, name: str, parts: Sequence[tuple[float, float]], unit: str, *, record: Mapping[str, Any], note: str = ""
    ) -> Reading:
        """Build the ratio sum(numerators) / sum(denominators) with its bootstrap interval."""
        table = _table(parts)
        low, high = _interval(_ratios(table, _draws(len(table))))
        spread = f"{LEVEL:.0%} percentile bootstrap, {DRAWS} draws of {len(table)} chunks"
        value = float(table[:, 0].sum() / table[:, 1].sum())
        kept = [(float(a), float(b)) for a, b in parts]
        return cls(name, value, unit, low, high, spread, record, note, kept)

    def compare(self, other: Reading) -> Reading:
        """Return `other - self` with a paired interval; its record holds the factor `other / self`.

        Raises:
            NotComparable: different measures, or texts or ways of measuring differ; the message names what.
        """
        differing = self.differs(other)
        if differing:
            raise NotComparable(
                f"{self.name} cannot be compared: {'; '.join(differing)}.", "Measure both under equal conditions."
            )
        paired = self.parts is not None and other.parts is not None and len(self.parts) == len(other.parts)
        record = {"a": self.record.get("model"), "b": other.record.get("model")}
        factor = other.value / self.value if self.value else None
        if not paired or self.parts is None or other.parts is None:
            return Reading(
                f"{self.name} difference", other.value - self.value, self.unit, record={**record, "factor": factor}
            )
        draws = _draws(len(self.parts))
        a, b = _ratios(_table(self.parts), draws), _ratios(_table(other.parts), draws)
        low, high = _interval(b - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor_low, factor_high = _interval(b / a)
        record |= {"factor": factor, "factor_low": factor_low, "factor_high": factor_high}
        spread = f"{LEVEL:.0%} paired bootstrap, {DRAWS} draws of {len(self.parts)} chunks"
        return Reading(f"{self.name} difference", other.value - self.value, self.unit, low, high, spread, record)

    def differs(self, other: Reading) -> list[str]:
        """Return in words why the two may not be put on one axis; [] when they may."""
        if self.name != other.name or self.unit != other.unit:
            return [f"{self.name} [{self.unit}] against {other.name} [{other.unit}]"]
        keys = sorted((set(self.record) | set(other.record)) - set(FREE))
        return [w for key in keys for w in _differences(key, self.record.get(key), other.record.get(key))]

    def __str__(self) -> str:
        span = f"  ({show(self.low)} .. {show(self.high)})" if self.low is not None else ""
        return f"{self.name}  {show(self.value)} {self.unit}{span}{'  ' + self.note if self.note else ''}".rstrip()

    def _repr_html_(self) -> str:
        from kobza.core.render import html

        return html(self)

    def to_json(self) -> dict[str, Any]:
        """Return the reading as plain data; a value that is not finite becomes None with a reason in the note."""
        plain = {k: getattr(self, k) for k in ("name", "value", "unit", "low", "high", "spread", "note")}
        if not math.isfinite(self.value):
            plain |= {"value": None, "note": f"{self.note} value is {self.value}".strip()}
        return {**plain, "record": dict(self.record), "parts": [list(p) for p in self.parts] if self.parts else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """Return the reading that `to_json` described."""
        value = math.nan if data["value"] is None else data["value"]
        parts = [(a, b) for a, b in data["parts"]] if data.get("parts") else None
        return cls(**{**data, "value": value, "parts": parts})


@dataclass
class Result:
    """What a run returns.

    Attributes:
        title: what was done.
        readings: numbers.
        tables: tables, each with its own figures.
        figures: further pictures.
        samples: texts the models wrote: {"title", "prompt", "text"}.
        made_by: recipe, versions, seed and hashes: enough to run it again.
    """

    title: str = ""
    readings: list[Reading] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)

    def reading(self, name: str) -> Reading:
        """Return the first reading of that name.

        Raises:
            UnknownName: there is none.
        """
        from kobza.core.errors import UnknownName

        for reading in self.readings:
            if reading.name == name:
                return reading
        raise UnknownName.of("reading", name, [r.name for r in self.readings])

    def __str__(self) -> str:
        parts = [self.title, "\n".join(map(str, self.readings)), *map(str, self.tables)]
        parts += [f"{s.get('title', 'sample')}\n{s.get('prompt', '')}|{s.get('text', '')}" for s in self.samples]
        return "\n\n".join(part for part in parts if part)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from kobza.core.render import html

        return html(self)

    def page(self) -> str:
        """Return the result as one self-contained HTML page."""
        from kobza.core.render import page

        return page(self.title or "Result", [replace(self, title="")])

    def plot(self, number: int = 0) -> Axes:
        """Draw one of the result's figures (its own first, then those of its tables)."""
        every = [*self.figures, *(f for t in self.tables for f in t.figures)]
        if not every:
            raise BadValue("this result has no figure.", "Plot one of its tables: result.tables[0].plot()")
        return every[number].axes()

    def compare(self, other: Result) -> Table:
        """Return both results' readings side by side with paired differences, by name.

        Raises:
            NotComparable: readings of equal name whose conditions differ.
        """
        theirs = {r.name: r for r in other.readings}
        rows = []
        for mine in self.readings:
            if mine.name not in theirs:
                continue
            between = mine.compare(theirs[mine.name])
            span = {"low": between.low, "high": between.high, "factor": between.record.get("factor")}
            values = {"a": mine.value, "b": theirs[mine.name].value, "b-a": between.value}
            rows.append({"reading": mine.name, "unit": mine.unit, **values, **span})
        return Table(rows, title=f"{self.title} (a) and {other.title} (b)", note="low .. high: of b-a, paired")

    def save(self, folder: str | Path, *, replace: bool = False) -> Path:
        """Write result.json, report.html, a CSV per table and an SVG per figure into a new folder.

        Raises:
            CannotWrite: the folder exists and is not empty, or the disk is full; nothing is left behind.
        """
        with atomic_directory(folder, replace=replace) as place:
            (place / "result.json").write_text(self.json_text(), encoding="utf-8")
            (place / "report.html").write_text(self.page(), encoding="utf-8")
            for i, table in enumerate(self.tables):
                table.save(place / f"table-{i}.csv")
            for i, figure in enumerate([*self.figures, *(f for t in self.tables for f in t.figures)]):
                figure.save(place / f"figure-{i}.svg")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read a result that `save` wrote (the folder, or its result.json).

        Raises:
            MissingFile: there is none.
            Corrupt: it is not a result of kobza.
        """
        path = Path(folder)
        path = path / "result.json" if path.is_dir() else path
        if not path.is_file():
            raise MissingFile(f"there is no result '{path}'.")
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"'{path}' is not a result of kobza: {error}.") from None

    def json_text(self) -> str:
        """Return the result as one JSON document."""
        return json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, default=str)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "readings": [r.to_json() for r in self.readings],
            "tables": [t.to_json() for t in self.tables],
            "figures": [f.to_json() for f in self.figures],
            "samples": self.samples,
            "made_by": self.made_by,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Return the result that `to_json` described."""
        from kobza.core.figure import Figure

        if data.get("schema") != SCHEMA:
            raise Corrupt(f"not a result of kobza: schema {data.get('schema')!r}, wanted {SCHEMA!r}.")
        return cls(
            data["title"],
            [Reading.from_json(r) for r in data["readings"]],
            [Table.from_json(t) for t in data["tables"]],
            [Figure.from_json(f) for f in data["figures"]],
            list(data["samples"]),
            dict(data["made_by"]),
        )


def _table(parts: Sequence[tuple[float, float]]) -> np.ndarray:
    table = np.asarray(parts, dtype=np.float64).reshape(-1, 2)
    if not len(table) or not table[:, 1].sum() > 0:
        raise BadValue("a ratio needs at least one part with a positive denominator.")
    return table


def _draws(n: int) -> np.ndarray:
    """Return (DRAWS, n) how often each chunk is drawn; the same for equal n, so that comparisons are paired."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def _ratios(table: np.ndarray, draws: np.ndarray) -> np.ndarray:
    totals = draws @ table
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[:, 0] / totals[:, 1])


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None, None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _differences(key: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [w for k in sorted(set(a) | set(b)) for w in _differences(f"{key}.{k}", a.get(k), b.get(k))]
    return [] if a == b else [f"{key} {a!r} against {b!r}"]
