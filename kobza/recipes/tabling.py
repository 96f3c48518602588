"""The table and the pictures of a sweep, made from what the journal holds, in the order of the recipe."""

from __future__ import annotations

import gzip
import lzma
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kobza.core.errors import NotComparable
from kobza.core.figure import Figure
from kobza.core.options import Step, spell, word
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.recipes.recipe import Chain, Point, Recipe
from kobza.recipes.running import label

UNEDITED = "unedited"
# facts of the last change that become columns; the rest stays in the run's record
FACTS = ("relative_error", "stored_bytes", "energy_kept")
FACT_UNITS = {"stored_bytes": "B"}
# columns of the table's own: an option of the same name carries its step's name, as in "scaling.factor"
OWN = {"edit", "text", "low", "high", "factor", "factor low", "factor high", "failed", *FACTS}
# columns of the table itself: an option of that name (the factor of `scaling`) is told apart by its technique
RESERVED = {"edit", "text", "low", "high", "factor", "failed", *FACTS}


@dataclass
class Measured:
    """One point on one text: what the journal knows of it."""

    point: Point
    text: Text
    readings: list[Reading] = field(default_factory=list)
    changes: list[Mapping[str, Any]] = field(default_factory=list)
    reason: str = ""

    @property
    def is_base(self) -> bool:
        """True for the unedited model."""
        return not self.point.chain


def sweep_table(recipe: Recipe, measured: Sequence[Measured], *, note: str = "") -> Table:
    """Return a row per point and text: the edit's parts, every measure, and of the first its interval and factor."""
    bases = {m.text.sha256: m for m in measured if m.is_base}
    rows = [_row(recipe, m, bases.get(m.text.sha256)) for m in measured]
    option_names = dict.fromkeys(c for m in measured for c in _option_columns(m.point.chain))
    first = label(recipe.measures[0])
    order = ["edit", *option_names, "text", first, "low", "high", "factor", "factor low", "factor high"]
    used = [c for c in order if any(row.get(c) is not None for row in rows)]
    extra = dict.fromkeys(c for row in rows for c, v in row.items() if v is not None and c not in used)
    units = {r.name: r.unit for m in measured for r in m.readings if r.unit} | FACT_UNITS
    shown = [{c: row.get(c) for c in [*used, *extra]} for row in rows]
    return Table(shown, units={c: units[c] for c in [*used, *extra] if c in units}, title="Points", note=note)


def sweep_figures(recipe: Recipe, measured: Sequence[Measured]) -> list[Figure]:
    """Return, per text and swept option, the first measure against that option, one line per method."""
    figures = []
    for text in dict.fromkeys(m.text for m in measured):
        here = [m for m in measured if m.text == text and m.readings]
        for option in swept_options(m.point.chain for m in here if not m.is_base):
            figure = _figure(label(recipe.measures[0]), option, text, here)
            if figure is not None:
                figures.append(figure)
    return figures


def swept_options(chains: Iterable[Chain]) -> list[str]:
    """Return the columns of options whose numbers differ within a method, the seed excepted."""
    seen: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for chain in chains:
        for column, value in _option_columns(chain).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_seed(column):
                seen[_names(chain), column].add(value)
    return list(dict.fromkeys(column for (_, column), values in seen.items() if len(values) > 1))


def compare_sweeps(a: Result, b: Result) -> Table:
    """Return the tables of two sweeps joined on what was edited and on which text.

    Raises:
        NotComparable: they were measured on other texts, with other measures, or on another unedited model.
    """
    differing = [
        f"{what} {mine!r} against {theirs!r}"
        for what, mine, theirs in zip(("texts", "measures"), _conditions(a), _conditions(b), strict=True)
        if mine != theirs
    ]
    if differing or not a.tables or not b.tables:
        why = "; ".join(differing) or "one of them has no table"
        raise NotComparable(f"the two runs cannot be compared: {why}.", "Run both with equal --text and --measure.")
    one, two = a.tables[0], b.tables[0]
    keys = ["edit", *(c for c in one.columns if c in two.columns and c in _keys(a, b)), "text"]
    joined = one.compare(two, on=list(dict.fromkeys(keys)))
    joined.title = f"{a.title} (a) and {b.title} (b)"
    return joined


def packed_bits(text: Text) -> list[tuple[str, float]]:
    """Return what plain compressors need for the text [bits per byte], as marks beside a model's figure."""
    xz = lzma.compress(text.data, preset=9 | lzma.PRESET_EXTREME)
    return [
        ("gzip -9", 8 * len(gzip.compress(text.data, 9, mtime=0)) / len(text)),
        ("xz -9e", 8 * len(xz) / len(text)),
    ]


def _row(recipe: Recipe, measured: Measured, base: Measured | None) -> dict[str, Any]:
    row: dict[str, Any] = {"edit": _names(measured.point.chain) or UNEDITED, **_option_columns(measured.point.chain)}
    row["text"] = measured.text.name
    for reading in measured.readings:
        row[reading.name] = reading.value
    first = _first(recipe, measured)
    if first is not None:
        row |= {"low": first.low, "high": first.high} | _factor(_first(recipe, base) if base else None, first)
    facts = measured.changes[-1]["facts"] if measured.changes else {}
    for name in FACTS:
        if name not in row and isinstance(facts.get(name), (int, float)):
            row[name] = facts[name]
    return row | ({"failed": measured.reason} if measured.reason else {})


def _factor(base: Reading | None, reading: Reading) -> dict[str, Any]:
    if base is None or base.differs(reading):  # speed and the like: the numbers stand, no factor is claimed
        return {}
    gap = base.compare(reading).record
    return {"factor": gap.get("factor"), "factor low": gap.get("factor_low"), "factor high": gap.get("factor_high")}


def _first(recipe: Recipe, measured: Measured) -> Reading | None:
    name = label(recipe.measures[0])
    return next((r for r in measured.readings if r.name == name), None)


def _names(chain: Chain) -> str:
    return " + ".join(step.name for step in chain)


def _option_columns(chain: Chain) -> dict[str, Any]:
    """Return {column: value}; an option that two steps have, or the table itself, carries its step's name."""
    taken = [name for step in chain for name in step.options]
    columns = {}
    for i, step in enumerate(chain):
        for name, value in step.options.items():
            is_plain = taken.count(name) == 1 and name not in RESERVED
            column = name if is_plain else f"{step.name}.{name}"
            column = f"{column}.{i + 1}" if column in columns else column
            columns[column] = value if isinstance(value, (int, float, str, bool)) else word(value)
    return columns


def _is_seed(column: str) -> bool:
    return "seed" in column.split(".")


def _figure(measure: str, option: str, text: Text, measured: Sequence[Measured]) -> Figure | None:
    lines: dict[str, dict[float, list[Reading]]] = defaultdict(lambda: defaultdict(list))
    for m in measured:
        at = _option_columns(m.point.chain).get(option)
        reading = next((r for r in m.readings if r.name == measure), None)
        if at is not None and reading is not None:
            lines[_method(m.point.chain, option)][at].append(reading)
    series = [_series(name, points) for name, points in lines.items() if len(points) > 1]
    if not series:
        return None
    base = next((r for m in measured if m.is_base for r in m.readings if r.name == measure), None)
    marks = [{"y": base.value, "label": UNEDITED}] if base else []
    unit = next(r.unit for points in lines.values() for found in points.values() for r in found)
    if unit == "bit/B":
        marks += [{"y": bits, "label": name} for name, bits in packed_bits(text)]
    caption = f"Text {text.name}, {len(text)} bytes. Shaded: 95 % bootstrap over chunks, or the span of several draws."
    data = {"series": series, "hlines": marks}
    return Figure("lines", data, title=text.name, caption=caption, x=option, y=f"{measure} [{unit}]")


def _series(name: str, points: Mapping[float, list[Reading]]) -> dict[str, Any]:
    x = sorted(points)
    line: dict[str, Any] = {"name": name, "x": x, "y": [fmean(r.value for r in points[at]) for at in x]}
    spans = [_span(points[at]) for at in x]
    if all(span is not None for span in spans):
        line["low"], line["high"] = ([span[i] for span in spans if span] for i in (0, 1))
    return line


def _span(readings: list[Reading]) -> tuple[float, float] | None:
    if len(readings) > 1:
        return min(r.value for r in readings), max(r.value for r in readings)
    only = readings[0]
    return (only.low, only.high) if only.low is not None and only.high is not None else None


def _method(chain: Chain, option: str) -> str:
    """Return the chain without the swept option and without seeds: the name of a line."""
    name = option.split(".")[-2] if "." in option else None
    key = next(part for part in reversed(option.split(".")) if not part.isdigit())
    steps = []
    for step in chain:
        dropped = {key} if name in (None, step.name) else set()
        steps.append(spell(Step(step.name, {k: v for k, v in step.options.items() if k not in dropped | {"seed"}})))
    return " + ".join(steps)


def _conditions(result: Result) -> tuple[Any, Any]:
    recipe = result.made_by.get("recipe", {})
    return [t["sha256"] for t in result.made_by.get("texts", [])], recipe.get("measures")


def _keys(*results: Result) -> set[str]:
    """Return the columns that are options of an edit."""
    recipes = [Recipe.from_dict(r.made_by["recipe"]) for r in results]
    return {c for r in recipes for p in r.points() for c in _option_columns(p.chain)}
