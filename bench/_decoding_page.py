"""The tables and pictures of docs/decoding.md, from what the parts of bench/decoding.py kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kobza.core.figure import Figure

Rows = list[dict[str, Any]]
MARK = "<!-- tables -->"


def write(kept: Path, docs: Path) -> None:
    """Replace the tables of docs/decoding.md; a part that was not kept has none."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))}
    parts = [part(found[name], docs / "pictures") for name, part in SECTIONS.items() if name in found]
    target = docs / "decoding.md"
    head = target.read_text().partition(MARK)[0] if target.exists() else "# Decoding\n\n"
    target.write_text(f"{head}{MARK}\n\n" + "\n\n".join(parts) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(map(shown, row))} |" for row in rows)])


def shown(value: Any) -> str:
    """Return a value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def lines(path: Path, title: str, x: str, y: str, series: dict[str, tuple[list[Any], list[float]]]) -> str:
    """Draw lines into a file; return the Markdown that shows it."""
    data = {"series": [{"name": name, "x": xs, "y": ys} for name, (xs, ys) in series.items()]}
    Figure("lines", data, title=title, x=x, y=y).save(path)
    return f"![{title}](pictures/{path.name})"


def _speed(rows: Rows, _: Path) -> str:
    limits = {row["dtype"]: row["limit"] for row in rows}
    told = ", ".join(f"{limit:.1f} token/s in {dtype}" for dtype, limit in limits.items())
    columns = ("weights", "way", "token/s", "of generate", "of the limit", "24 tokens equal to generate's")
    cells = [
        (row["dtype"], row["way"], row["rate"], row["of_generate"], None if "Q4" in row["way"] else row["of_limit"],
         row["equal"]) for row in rows
    ]  # fmt: skip
    return (
        f"## Speed of the backends\n\nLimit (the fastest of all reads of the weights, taken in between): {told}.\n\n"
        + table(columns, cells)
    )


def _prompt(rows: Rows, _: Path) -> str:
    return f"First token behind a prompt of 2,000: the bare step takes {rows[0]['ratio']:.2f} of transformers' time."


def _speculation(rows: Rows, _: Path) -> str:
    text = []
    for model, kind in dict.fromkeys((row["model"], row["prompt"]) for row in rows):
        cells = [
            (row["way"], row["tokens"], row["passes"], row["a_pass"], row["acceptance"], row["ratio"],
             "pays" if row["ratio"] > 1.02 else "even" if row["ratio"] >= 0.97 else "does not pay", row["equal"])
            for row in rows if (row["model"], row["prompt"]) == (model, kind)
        ]  # fmt: skip
        columns = ("way", "tokens", "passes", "tokens a pass", "accepted", "speed of greedy's", "", "same text")
        text.append(f"### {model}, {kind}\n\n" + table(columns, cells))
    return "## Speculation\n\n" + "\n\n".join(text)


def _exact(rows: Rows, _: Path) -> str:
    ways = list(dict.fromkeys(row["way"] for row in rows))
    kinds = list(dict.fromkeys((row["dtype"], row["backend"]) for row in rows))
    found = {(row["way"], row["dtype"], row["backend"]): f"{row['equal']} of {row['of']}" for row in rows}
    cells = [(way, *(found.get((way, *kind)) for kind in kinds)) for way in ways]
    head = "Texts of 32 tokens that equal greedy decoding by the same backend, every match proposed."
    return f"### Exactness\n\n{head}\n\n" + table(("way", *(", ".join(kind) for kind in kinds)), cells)


def _exits(rows: Rows, pictures: Path) -> str:
    series = {
        row["model"]: ([int(n) / row["layers"] for n in row["agree"]], list(row["agree"].values())) for row in rows
    }
    picture = lines(pictures / "decoding-exits.svg", "When is a token decided?", "layers read (share of all)",
                    "agreement with the last layer", series)  # fmt: skip
    text = [
        f"* {row['model']} ({row['layers']} layers, {row['tokens']} tokens of its greedy text): "
        + ", ".join(f"{n}: {share:.2f}" for n, share in row["agree"].items())
        for row in rows
    ]
    return "### Acceptance of every exit\n\n" + "\n".join(text) + f"\n\n{picture}"


def _schema(rows: Rows, _: Path) -> str:
    return f"JSON by a schema, drawn at temperature 1: {rows[0]['valid']} of {rows[0]['of']} valid."


def _cache(rows: Rows, pictures: Path) -> str:
    chunks = [row for row in rows if row["block"] > 1 and row["rule"] != "full"]
    rules, budgets = (sorted({row[key] for row in chunks}) for key in ("rule", "budget"))
    found = {(row["rule"], row["budget"]): row["bits_per_byte"] for row in chunks}
    told = [f"{row['rule']}: {row['bits_per_byte']:.3f}" for row in rows if row["block"] == 1 or row["rule"] == "full"]
    series = {}
    for rule in rules:
        there = [budget for budget in budgets if (rule, budget) in found]
        series[rule] = (there, [found[rule, budget] for budget in there])
    picture = lines(pictures / "decoding-cache.svg", "What a small cache costs", "positions kept", "bit/B", series)
    cells = [(rule, *(found.get((rule, budget)) for budget in budgets)) for rule in rules]
    return (
        "## A cache of fewer positions\n\nBit/B of tokens 1,024 to 2,047 of a text. Tokens are read eight (budgets "
        "below 256) or sixteen at a time, never more than the budget is stored. The whole cache, and one by one with a "
        f"budget of 256: {', '.join(told) or 'not taken'}.\n\n"
        + table(("rule", *map(str, budgets)), cells) + f"\n\n{picture}"
    )  # fmt: skip


def _needle(rows: Rows, _: Path) -> str:
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    own = {rule: [row["bits"] for row in rows if row["rule"] == rule] for rule in rules}
    head = "Bits of a number of five digits read about 600 tokens before (mean of three), 256 positions kept."
    cells = [(rule, sum(found) / len(found)) for rule, found in own.items()]
    return f"### What bits per byte do not show\n\n{head}\n\n" + table(("rule", "bits of the number"), cells)


def _packed(rows: Rows, _: Path) -> str:
    cells = [
        (
            row["bits"],
            row["keys"],
            row["bits_per_byte"],
            row["bytes"],
            row["bytes"] / rows[0]["bytes"],
            row["is_formula"],
        )
        for row in rows
    ]
    columns = ("bits", "keys share a step by", "bit/B", "bytes of 512 positions", "of float32", "as the formula says")
    return "## A cache of fewer bits\n\n" + table(columns, cells)


def _pages(rows: Rows, _: Path) -> str:
    cells = [(row["cache"], row["bytes"], row["is_formula"], row["seconds"] / rows[0]["seconds"]) for row in rows]
    columns = ("cache", "bytes of 8 rows that share 500 of 533 positions", "as the formula says", "time of a step")
    return "## A cache in pages\n\n" + table(columns, cells)


def _nearest(rows: Rows, _: Path) -> str:
    cells = [(str(row["nearest"] or "all"), row["bits_per_byte"], row["seconds"] / rows[0]["seconds"]) for row in rows]
    return "## Only the nearest keys\n\n" + table(("keys that a head reads", "bit/B", "time"), cells)


def _positions(rows: Rows, pictures: Path) -> str:
    text = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        parts = [key for key in own[0] if key not in ("way", "curve", "model", "text")]
        series = {row["way"]: ([64 * n + 32 for n in range(8)], row["curve"]) for row in own}
        picture = lines(pictures / f"decoding-positions-{own[0]['text']}.svg", f"{model}, trained on 128 positions",
                        "position", "bit/B", series)  # fmt: skip
        cells = [(row["way"], *(row[part] for part in parts)) for row in own]
        text.append(f"### {model}\n\n" + table(("way", *parts), cells) + f"\n\n{picture}")
    return "## Longer texts than were trained\n\nBits per byte by position.\n\n" + "\n\n".join(text)


def _latent(rows: Rows, _: Path) -> str:
    head = "Bits of a token when, in place of the one before it, something else was read."
    cells = [(row["input"], row["bits_per_token"]) for row in rows]
    return f"## Latent steps\n\n{head}\n\n" + table(("read instead", "bits of the next token"), cells)


def _decided(rows: Rows, _: Path) -> str:
    row = rows[0]
    first, middle, third = row["quarters"]
    return (
        f"Of {row['tokens']} greedy tokens of {row['model']} a quarter are decided behind layer {first}, half behind "
        f"{middle}, three quarters behind {third} of {row['layers']}; {row['last']:.2f} only by the last. Looking "
        f"for it (`greedy:decided=true`) takes {row['cost']:.1f} times as long."
    )


SECTIONS = {
    "speed": _speed, "prompt": _prompt, "speculation": _speculation, "exact": _exact, "exits": _exits,
    "decided": _decided, "schema": _schema, "cache": _cache, "needle": _needle, "packed": _packed, "pages": _pages,
    "nearest": _nearest, "positions": _positions, "latent": _latent,
}  # fmt: skip
