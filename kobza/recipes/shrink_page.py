"""What a search for a smaller model shows: the table of all it measured, the frontier, and the winner's readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.core.texts import text as read_text
from kobza.recipes import running
from kobza.recipes.recipe import chain

if TYPE_CHECKING:
    from kobza.recipes.shrink import Search, Trial

SHARES = {"file": "of the file it came from", "16": "of 16 bits a weight", "opened": "as opened"}


def readings(before: Sequence[Reading], after: Sequence[Reading], winner: Trial, bases: dict[str, int]) -> list[str]:
    """Lines for the model card: bytes against every base, and bits per byte before and after."""
    shares = ", ".join(f"{winner.bytes / size:.1%} {SHARES[name]}" for name, size in bases.items())
    lines = [f"{winner.bytes:,} bytes of tensors: {shares}"]
    for old, new in zip(before, after, strict=True):
        gap, about = old.compare(new), new.record["text"]
        lines.append(
            f"{new.value:.4f} bits per byte on {about['name']} (SHA-256 {about['sha256'][:16]}), unedited "
            f"{old.value:.4f}: {gap.value:+.4f} ({gap.low:+.4f} .. {gap.high:+.4f}), windows of 511 tokens"
        )
    return lines


def brief(line: str) -> str:
    """A composition in short: lists of matrices as their number.

    >>> brief('gptq:format=q4_0,where="blocks.0.attn.q,blocks.1.attn.q" + rounding:format=q8_0,where=embed')
    'gptq q4_0 (2 matrices) + rounding q8_0 (embed)'
    """
    parts = []
    for step in chain(line):
        given = dict(step.options)
        where, form = str(given.pop("where", "")), given.pop("format", "")
        given.pop("calibration_tokens", None)
        number = f"{where.count(',') + 1} matrices" if "," in where else where
        rest = ",".join(f"{name}={value}" for name, value in given.items() if name != "rule")
        parts.append(" ".join(filter(None, [step.name, form, rest, f"({number})" if number else ""])))
    return " + ".join(parts)


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, loss) points no other beats in both: less or equal in both and less in one.

    >>> frontier([(1.0, 3.0), (2.0, 1.0), (2.0, 2.0), (3.0, 1.0)])
    [True, True, False, False]
    """
    return [not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]


def result(
    found: Search, winner: Trial, before: Sequence[Reading], after: Sequence[Reading], made: dict[str, Any]
) -> Result:
    """Put together readings, the comparison on held-out texts, and the table of trials with its pictures."""
    texts = [read_text(record["name"]) for record in made["texts"]]
    trials = found.trials
    bases: dict[str, int] = made["bases"]
    best = frontier([(t.bytes, t.lost) for t in trials])
    rows = []
    for trial, is_best in zip(trials, best, strict=True):
        row: dict[str, Any] = {"composition": brief(trial.line), "bytes": trial.bytes}
        row |= {f"share {SHARES[name]}": trial.bytes / size for name, size in bases.items()}
        row |= {"predicted": trial.predicted, "lost": trial.lost}
        row |= {"times as fast": trial.speed} if trial.speed is not None else {}
        rows.append(row | {"frontier": is_best, "winner": trial is winner})
    note = "lost: bit/B on the search texts against the unedited model; predicted: before it was measured"
    table = Table(rows, title="Compositions measured", units={"bytes": "B", "lost": "bit/B"}, note=note)
    table.figures = _figures(found, bases[made["base"]])
    held = running.comparison_table(texts, [[r] for r in before], [[r] for r in after])
    held.title = "The winner on held-out texts"
    found_readings = [Reading("stored_bytes", float(winner.bytes), "B"), *after]
    made["trials"] = [{"line": t.line, "bytes": t.bytes, "lost": t.lost, "speed": t.speed} for t in trials]
    return Result(f"{made['model']['name']}: {brief(winner.line)}", found_readings, [held, table], made_by=made)


def _figures(found: Search, base: int) -> list[Figure]:
    """The predicted path of each shape, and what was measured, against the share of the bytes."""
    from kobza.recipes.shrink import GAIN

    series: list[dict[str, Any]] = []
    for shape, path in found.paths.items():
        own = found.bench.lost(shape, found.bench.search) if shape else 0.0
        stride = max(1, len(path.bytes) // 200)
        x, y = path.bytes[::stride], [own + GAIN * loss for loss in path.losses[::stride]]
        if len(x) > 1:
            series.append({"name": f"predicted, {shape[:40] or 'forms alone'}", "x": [b / base for b in x], "y": y})
    trials = sorted(found.trials, key=lambda t: t.bytes)
    measured = {"name": "measured", "x": [t.bytes / base for t in trials], "y": [t.lost for t in trials]}
    caption = (
        "Lines: what prices of matrices add up to. Points: whole compositions. Search texts, windows of 511 tokens."
    )
    data = {"series": [*series[:6], measured]}
    return [Figure("lines", data, title="The frontier", caption=caption, x="bytes [share of base]", y="lost [bit/B]")]
