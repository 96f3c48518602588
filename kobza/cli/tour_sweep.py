"""The sweep of the tour: which edits at which strengths, and what its table says, as pictures and sentences.

Every sentence is computed from the table: a claim that the figures do not bear out is not made, or is reversed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.recipes.recipe import Chain, Recipe, chain
from kobza.recipes.tabling import UNEDITED, packed_bits

SHARES = (0.45, 0.67, 0.89)
"""Shares of the dimensions that are kept; between them the methods change places."""

ENDS = {"embed.in": "input table only", "embed": "both ends"}
BEST, FREQUENCY, PLAIN = "SVD by frequency and gradient", "SVD by token frequency", "plain SVD"
CENTERED = "centered SVD"
RANDOM, RESCALED = "random projection", "random, rescaled"
# method -> the edit that makes it, without rank and end
RANKED = {
    PLAIN: "lowrank:",
    CENTERED: "lowrank:center=true,",
    FREQUENCY: "lowrank:weights=frequency,",
    BEST: "lowrank:weights=fisher,metric=moments,",
    RANDOM: "random_projection:",
    RESCALED: "random_projection:rescale=true,",
}
DRAWN = (RANDOM, RESCALED)
NOISE, SCALES = {"embed.in": (0.5, 1, 2), "embed": (0.1, 0.5, 1)}, (0.5, 2)
# one window of 1024 tokens each: about a minute of one core for six edits
TEXTS = ("topics[:4500]", "source[:3000]", "ukrainian[:1500]")
QUICK_TEXTS = ("topics[:600]", "source[:300]", "ukrainian[:300]")
TITLES = {"topics": "English prose", "source": "source code", "ukrainian": "Ukrainian"}


@dataclass(frozen=True)
class Point:
    """One row of the sweep, named as a reader would.

    Attributes:
        method: "plain SVD", "noise", ...; the strength is not part of it.
        end: "embed.in" or "embed".
        strength: rank, standard deviations or factor.
        text: the text it was measured on.
        bits, low, high: bits per byte with interval.
        factor, factor_low, factor_high: bits per byte over those of the unedited model, paired.
        error: relative Frobenius error of the edited table.
        bytes: what the model would store.
    """

    method: str
    end: str
    strength: float
    text: str
    bits: float
    low: float
    high: float
    factor: float
    factor_low: float
    factor_high: float
    error: float
    bytes: float


def tour_recipe(model: str, width: int, *, quick: bool = False) -> Recipe:
    """Return the sweep of the tour for a table of that width (D)."""
    shares = SHARES[1:2] if quick else SHARES
    ranks = "|".join(str(round(share * width)) for share in shares)
    draws = "0" if quick else "0|1"
    edits: list[Chain] = []
    for end in ENDS:
        for method, edit in RANKED.items():
            if method == CENTERED and end == "embed.in":
                continue  # it hurts there, and the mean of the table matters to the output end alone
            seed = f",seed={draws}" if method in DRAWN else ""
            # the best method is stored as factors, so that stored bytes are what a file would have
            store = ",store=factors" if method == BEST and end == "embed" else ""
            edits.append(chain(f"{edit}where={end},rank={ranks}{seed}{store}"))
        noise = NOISE[end][1:2] if quick else NOISE[end]
        edits.append(chain(f"noise:where={end},strength={'|'.join(map(str, noise))}"))
        edits.append(chain(f"scaling:where={end},factor={'|'.join(map(str, SCALES))}"))
    texts = QUICK_TEXTS if quick else TEXTS
    return Recipe(open=model, compare=tuple(edits), measures=chain("bits_per_byte"), text=texts, title="Tour")


def points(table: Table) -> list[Point]:
    """Return the finished rows of the sweep but the unedited ones."""
    rows = [row for row in table if row["edit"] != UNEDITED and row.get("bits_per_byte") is not None]
    return [_point(row) for row in rows]


def point_of(edit: str, found: Sequence[Point], text: str) -> Point | None:
    """Return the point that an edit's line describes, or None when the sweep did not measure it."""
    step = chain(edit)[0]
    method, strength = _method({"edit": step.name, **step.options, "scaling.factor": step.options.get("factor")})
    here = chosen(found, method=method, end=step.options["where"], text=text, strength=float(strength))
    return here[0] if here else None


def base(table: Table, text: str) -> dict[str, Any]:
    """Return the row of the unedited model on a text."""
    return next(row for row in table if row["edit"] == UNEDITED and row["text"] == text)


def mean(found: Iterable[Point], value: Callable[[Point], float] = lambda p: p.factor) -> float | None:
    """Return the mean over draws, or None when nothing was measured."""
    values = [value(point) for point in found]
    return fmean(values) if values else None


def chosen(found: Sequence[Point], **equal: Any) -> list[Point]:
    """Return the points whose fields equal the given values."""
    return [p for p in found if all(getattr(p, key) == value for key, value in equal.items())]


def share_figure(found: Sequence[Point], end: str, text: Text, width: int, table: Table) -> Figure:
    """Return bits per byte (as a factor) against the share of dimensions kept, one line per method."""
    series = []
    for method in RANKED:
        line = _line(chosen(found, method=method, end=end, text=text.name), lambda p: p.strength / width)
        if line["x"]:
            series.append({"name": method, **line})
    unedited = base(table, text.name)["bits_per_byte"]
    marks = [{"y": bits / unedited, "label": name} for name, bits in packed_bits(text)[1:]]
    caption = (
        f"{_title(text.name)}. Mean of two draws for the random methods; bands: 95 % paired bootstrap, or both draws. "
        "Dotted: unedited, and xz -9e, which knows no language."
    )
    data = {"series": series, "hlines": [{"y": 1.0, "label": UNEDITED}, *marks], "logy": True}
    return Figure("lines", data, ENDS[end].capitalize(), caption, "share of dimensions kept", "bits/byte, factor")


def strength_figure(found: Sequence[Point], method: str, text: str, x: str) -> Figure:
    """Return the factor against the strength of noise or scaling, one line per end."""
    series = [
        {"name": ENDS[end], **_line(chosen(found, method=method, end=end, text=text), lambda p: p.strength)}
        for end in ENDS
    ]
    data = {"series": series, "hlines": [{"y": 1.0, "label": UNEDITED}], "logy": True, "logx": True}
    return Figure("lines", data, method.capitalize(), _title(text), x, "bits/byte, factor", 5.4, 3.6)


def error_figure(found: Sequence[Point], text: str) -> Figure:
    """Return what each edit costs against its Frobenius error: if the error were a yardstick, a rising line."""
    series = []
    for method in dict.fromkeys(p.method for p in found):
        here = chosen(found, method=method, text=text, end="embed.in")
        series.append({"name": method, "x": [p.error for p in here], "y": [max(p.factor - 1, 1e-4) for p in here]})
    data = {"series": series, "markers_only": True, "logy": True, "logx": True}
    caption = (
        f"Input table only, {_title(text)}. Up: more bits; right: a larger error of the matrix. Were the error a "
        "yardstick, the dots would rise along one line."
    )
    return Figure("lines", data, "Error of the matrix against harm to the model", caption,
                  "relative Frobenius error", "bits/byte lost (factor - 1)", 8.4, 4.6)  # fmt: skip


def text_table(found: Sequence[Point], width: int, texts: Sequence[str]) -> Table:
    """Return method x text at two thirds of the dimensions, at both choices of end."""
    rank = round(SHARES[1] * width)
    rows = []
    for end in ENDS:
        for method in dict.fromkeys(p.method for p in found if p.end == end and p.method in RANKED):
            row: dict[str, Any] = {"edited": ENDS[end], "method": method}
            for text in texts:
                row[TITLES.get(text.partition("[")[0], text)] = mean(
                    chosen(found, method=method, end=end, strength=rank, text=text)
                )
            rows.append(row)
    note = f"factors of the unedited model's bits per byte; {rank} of {width} dimensions kept"
    return Table(rows, title="The same edits on three texts", note=note)


def base_table(table: Table, texts: Sequence[Any]) -> Table:
    """Return bits per byte of the unedited model beside gzip and xz, per text."""
    rows = []
    for text in texts:
        row = base(table, text.name)
        plain = {name.split()[0]: bits for name, bits in packed_bits(text)}
        title = TITLES.get(text.name.partition("[")[0], text.name)
        rows.append({"text": title, "bytes": len(text), "model": row["bits_per_byte"], "low": row["low"],
                     "high": row["high"], **plain, "source": text.origin})  # fmt: skip
    units = dict.fromkeys(("model", "low", "high", "gzip", "xz"), "bit/B")
    return Table(rows, units=units, title="What the unedited model needs", note="low .. high: 95 % bootstrap")


def lessons(found: Sequence[Point], table: Table, text: str, width: int, stored: int) -> list[str]:
    """Return what follows from the figures, each sentence from its own numbers."""
    rank = round(SHARES[1] * width)
    made = (_lesson_error, _lesson_best, _lesson_ends, _lesson_bytes, _lesson_noise, _lesson_scale)
    sentences = [lesson(found, text, rank, width, stored) for lesson in made]
    others = [name for name in dict.fromkeys(p.text for p in found) if name != text]
    sentences += [_lesson_text(found, other, rank) for other in others]
    return [sentence for sentence in sentences if sentence]


def _lesson_error(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    here = {m: chosen(found, method=m, end="embed.in", strength=rank, text=text) for m in (PLAIN, RANDOM)}
    if not all(here.values()):
        return ""
    errors = {m: mean(p, lambda q: q.error) or 0 for m, p in here.items()}
    factors = {m: mean(p) or 0 for m, p in here.items()}
    word = "and yet" if factors[PLAIN] > factors[RANDOM] else "and, as one would expect,"
    return (
        f"The error of the matrix is not the yardstick. At {rank} of {width} dimensions plain SVD has a relative error "
        f"of {errors[PLAIN]:.2f} and a random projection one of {errors[RANDOM]:.2f}, {word} the model needs "
        f"{factors[PLAIN]:.2f} times its bits after SVD and {factors[RANDOM]:.2f} times after the random projection."
    )


def _lesson_text(found: Sequence[Point], text: str, rank: int) -> str:
    by = {m: mean(chosen(found, method=m, end="embed.in", strength=rank, text=text)) for m in (PLAIN, FREQUENCY, BEST)}
    plain, frequency, best = by.values()
    if plain is None or frequency is None or best is None:
        return ""
    harm = "worse than no weights at all" if frequency > plain else "better than no weights"
    return (
        f"On {_title(text)} weights by token frequency are {harm} at the input: {frequency:.2f} against {plain:.2f}; "
        f"with the gradient as well it is {best:.2f}. Both come from other parts of the English text and the code."
    )


def _lesson_best(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    parts = []
    for end, words in ENDS.items():
        ranked = sorted(
            (factor, m) for m in RANKED
            if (factor := mean(chosen(found, method=m, end=end, strength=rank, text=text))) is not None
        )  # fmt: skip
        if len(ranked) > 1:
            parts.append(f"{words}: {ranked[0][1]} ({ranked[0][0]:.3f}), then {ranked[1][1]} ({ranked[1][0]:.3f})")
    if not parts:
        return ""
    listed = "; ".join(parts)
    return f"The least harm at {rank / width:.0%} of the dimensions. {listed[0].upper()}{listed[1:]}."


def _lesson_ends(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    both = mean(chosen(found, method=BEST, end="embed", strength=rank, text=text))
    alone = mean(chosen(found, method=BEST, end="embed.in", strength=rank, text=text))
    if both is None or alone is None:
        return ""
    which = "Editing both ends costs more" if both > alone else "Editing both ends costs no more"
    return (
        f"{which} than editing the input alone: at equal rank the best method costs {both - 1:.1%} at both ends of the "
        f"table and {alone - 1:.1%} at the input. An experiment that assigns a new input table only, and so unties the "
        "model, reports the latter."
    )


def _lesson_bytes(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    factored = chosen(found, method=BEST, end="embed", strength=rank, text=text)
    alone = chosen(found, method=PLAIN, end="embed.in", strength=rank, text=text)
    if not factored or not alone:
        return ""
    small, large = factored[0].bytes, alone[0].bytes
    return (
        f"Stored bytes: {_megabytes(stored)} before; {_megabytes(small)} with both ends kept as two factors of rank "
        f"{rank} ({small / stored - 1:+.1%}); {_megabytes(large)} when only the input table is edited "
        f"({large / stored - 1:+.1%}), because the output end then needs a table of its own."
    )


def _lesson_noise(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    both = {p.strength: p.factor for p in chosen(found, method="noise", end="embed", text=text)}
    alone = {p.strength: p.factor for p in chosen(found, method="noise", end="embed.in", text=text)}
    shared = sorted(set(both) & set(alone))
    if not shared:
        return ""
    at = shared[0]
    return (
        f"Noise of {at:g} standard deviations costs {alone[at] - 1:.1%} at the input and {both[at] - 1:.1%} at both "
        "ends of the table."
    )


def _lesson_scale(found: Sequence[Point], text: str, rank: int, width: int, stored: int) -> str:
    factors = {p.strength: p.factor for p in chosen(found, method="scaling", end="embed.in", text=text)}
    half, twice = factors.get(0.5), factors.get(2.0)
    if half is None or twice is None:
        return ""
    return (
        f"Doubling the input table, an error of 100 %, costs {twice - 1:.1%}; halving it, an error of 50 %, costs "
        f"{half - 1:.1%}."
    )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _line(found: Sequence[Point], x: Callable[[Point], float]) -> dict[str, list[float]]:
    groups: dict[float, list[Point]] = defaultdict(list)
    for point in found:
        groups[x(point)].append(point)
    places = sorted(groups)
    spans = [_span(groups[place]) for place in places]
    return {
        "x": places,
        "y": [fmean(p.factor for p in groups[place]) for place in places],
        "low": [low for low, _ in spans],
        "high": [high for _, high in spans],
    }


def _span(drawn: Sequence[Point]) -> tuple[float, float]:
    if len(drawn) > 1:
        return min(p.factor for p in drawn), max(p.factor for p in drawn)
    return drawn[0].factor_low, drawn[0].factor_high


def _title(text: str) -> str:
    name = text.partition("[")[0]
    return f"{TITLES[name]} ({text})" if name in TITLES else text


def _point(row: dict[str, Any]) -> Point:
    method, strength = _method(row)
    return Point(
        method, row["where"], float(strength), row["text"], row["bits_per_byte"], row["low"], row["high"],
        row["factor"], row["factor low"], row["factor high"], row["relative_error"], row["stored_bytes"],
    )  # fmt: skip


def _method(row: dict[str, Any]) -> tuple[str, float]:
    if row["edit"] == "noise":
        return "noise", row["strength"]
    if row["edit"] == "scaling":
        return "scaling", row["scaling.factor"]
    if row["edit"] == "random_projection":
        return (RESCALED if row.get("rescale") else RANDOM), row["rank"]
    if row.get("metric") == "moments":
        return BEST, row["rank"]
    if row.get("weights") == "frequency":
        return FREQUENCY, row["rank"]
    return (CENTERED if row.get("center") else PLAIN), row["rank"]
