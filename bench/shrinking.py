"""All ways of making a model smaller on one page: lost bits per byte against bytes stored and against time per token.

    .venv/bin/python bench/shrinking.py                    measure what is missing, write docs/shrinking.html
    .venv/bin/python bench/shrinking.py --page             write the page from what is there
    .venv/bin/python bench/shrinking.py "gptq:bits=3"      these compositions only, added to the page
    .venv/bin/python bench/shrinking.py --cards            the recipe of every card of the room as well
    .venv/bin/python bench/shrinking.py --untimed          without times per token, which are the dearer half

Each composition is measured once and kept in a journal (about 40 minutes of one core for the whole list): killed, the
same command goes on. Texts: 5,000 bytes (or BYTES of the environment) of prose and of code that no edit is calibrated
on, windows of 511 tokens.
Bytes: what codes and scales take; dense numbers count 16 bits. Time per token: CPU time of generating one by
llama.cpp from the exported file over that of the whole model in f16, taken in turns; where a file cannot hold the
model, by kobza's own step in float32 over the whole model there. The peer of a data-aware edit is plain rounding at
the same bits; the controls are `shuffle=1` (importances in the wrong order), `by=random` and `random=1`.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core import cards
from kobza.core.figure import Figure
from kobza.core.files import sha256, state_dir, write_atomic
from kobza.core.options import Step
from kobza.core.render import page
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.measures import bits_per_byte
from kobza.models import gguf_export
from kobza.recipes.compositions import rates
from kobza.recipes.journal import Journal, plain
from kobza.recipes.recipe import chain
from kobza.recipes.running import apply, versions
from kobza.recipes.shrink_page import brief, frontier

SIZE = int(os.environ.get("BYTES", "5000"))
TEXTS = (f"topics[:{SIZE}]", f"source[:{SIZE}]")
READ = "calibration_tokens=2048"
EDITS = (
    "rounding:format=q8_0,where=blocks + rounding:format=q8_0,where=embed",
    "rounding:format=q5_0,where=blocks + rounding:format=q8_0,where=embed",
    "rounding:format=q4_1,where=blocks + rounding:format=q8_0,where=embed",
    "rounding:format=q4_0",
    "rounding:where=embed,format=q4_0",
    "rounding:format=q4_0 + rounding:format=q4_0,where=embed",
    "rounding:format=nf4",
    "rounding:bits=3",
    "rounding:bits=2",
    "rounding:bits=3,rule=search",
    "rounding:format=ternary",
    "pruning:method=magnitude,share=0.3",
    f"pruning:method=wanda,share=0.3,{READ}",
    "layer_drop:layers=5",
    "layer_drop:layers=5;12;17",
    "layer_drop:layers=11",
    f"narrowing:share=0.9,{READ}",
    f"narrowing:share=0.9,by=random,{READ}",
    f"slicing:share=0.9,refit=false,{READ}",
    f"slicing:share=0.9,refit=false,random=1,{READ}",
    "lowrank:rank=386",
    "trimming",
    f"gptq:format=q4_0,{READ} + rounding:format=q4_0,where=embed,rule=search",
    f"gptq:bits=3,{READ}",
    f"gptq:bits=3,shuffle=1,{READ}",
    f"gptq:bits=2,{READ}",
    "rounding:where=blocks.1[0-3],bits=2,rule=search",
    "gptq:where=blocks.1[0-3],bits=2,calibration_tokens=1024",
    "gptq:where=blocks.1[0-3],bits=2,calibration_tokens=1024,shuffle=1",
    f"slicing:{READ}",
)
SKIPPED = ("transplant", "merging", "positions")  # they need a second model, or make nothing smaller
DOCS = Path(__file__).resolve().parent.parent / "docs"


def bits(model: Any) -> list[float]:
    """Bits per byte on every text."""
    return [bits_per_byte.measure(model, text, window=511, overlap=0, limit=0).value for text in TEXTS]


def stored(model: Any) -> int:
    """Bytes, dense numbers at 16 bits."""
    dense = sum(p.numel() for p in model.module.parameters() if p.dtype == torch.float32)
    return model.stored_bytes - 2 * dense


def pace(whole: Any, edited: Any, folder: Path) -> tuple[float, str]:
    """CPU time per token over the whole model's, and by what it was run."""
    try:
        gguf_export.export(edited, folder / "edited.gguf", type="f16")
    except kobza.KobzaError:
        return 1 / rates(whole, edited, "")["ratio"], "kobza, float32"
    base = folder / "whole.gguf"
    if not base.is_file():
        gguf_export.export(whole, base, type="f16")
    return 1 / rates(kobza.open(base), kobza.open(folder / "edited.gguf"), "llama")["ratio"], "llama.cpp"


def figures(model: Any, line: str) -> dict[str, Any]:
    """Losses, bytes, the error of the only edit, and what it cost."""
    begin = time.process_time()
    edited = apply(model, chain(line)) if line else model
    seconds = time.process_time() - begin
    errors = [change.facts.get("relative_error") for change in edited.changes]
    prose, code = bits(edited)
    only = errors[0] if len(errors) == 1 and edited.changes[0].kind != "shape" else None
    return {"prose": prose, "code": code, "bytes": stored(edited), "cpu": seconds, "error": only}


def timing(model: Any, line: str, folder: Path) -> dict[str, Any]:
    """Time per token; how codes were chosen makes no difference to it, so GPTQ need not be run again."""
    steps = [_rounded(step) if step.name == "gptq" else step for step in chain(line)] if line else []
    found, by = pace(model, apply(model, tuple(steps)), folder)
    return {"time": found, "by": by}


def _rounded(step: Step) -> Step:
    return Step("rounding", {k: v for k, v in step.options.items() if k in ("where", "format", "bits", "block")})


def collect(lines: list[str], measure: bool) -> dict[str, dict[str, Any]]:
    """Figures by composition, from the journal or measured now; "" is the whole model."""
    torch.set_num_threads(1)
    place = state_dir() / "bench"
    place.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    model = kobza.open("smollm2")
    about = [model.fingerprint, [kobza.text(text).sha256 for text in TEXTS], versions()]
    kinds: dict[str, Any] = {"figures": figures, "timing": timing}
    with Journal(place / "shrinking.sqlite") as journal, tempfile.TemporaryDirectory() as folder:
        for kind, do in kinds.items():  # all figures first
            is_wanted = measure and (kind == "figures" or "--untimed" not in sys.argv)
            for line in lines:
                key = sha256(plain([kind, line, *about]).encode())
                entry = journal.entry(key)
                if (entry is None or entry.outcome is None) and is_wanted:
                    more = [Path(folder)] if kind == "timing" else []
                    journal.add({key: {"line": line}})
                    journal.finish(key, _tried(do, model, line, *more))
                    entry = journal.entry(key)
                if entry is not None and entry.outcome is not None:
                    found[line] = found.get(line, {}) | entry.outcome
                    print(f"{line[:90]:90} {entry.outcome}", flush=True)
    return found


def _tried(do: Any, *given: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = do(*given)
        return found
    except kobza.KobzaError as error:
        return {"failed": str(error)}


def known(more: list[str]) -> list[str]:
    """The whole model, the list above, everything else that the journal has measured, and what is asked for."""
    lines = ["", *EDITS]
    path = state_dir() / "bench" / "shrinking.sqlite"
    if path.is_file():
        with Journal(path) as journal:
            lines += [entry.point["line"] for entry in journal.entries()]
    return list(dict.fromkeys([*lines, *more]))


def from_cards() -> list[str]:
    """The recipe of every card of the room: a technique that is new is on the page by itself."""
    return [card.recipe for card in cards.cards("edits") if card.name not in SKIPPED and " | " not in card.recipe]


# --- the page --------------------------------------------------------------------------------------------------------


def rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per composition, losses against the whole model."""
    whole = found[""]
    table = []
    for line, one in found.items():
        if not line or "prose" not in one:
            continue
        row = {"composition": brief(line), "bytes": one["bytes"], "share": one["bytes"] / whole["bytes"]}
        row |= {"prose": one["prose"] - whole["prose"], "code": one["code"] - whole["code"]}
        row |= {
            "time per token": one.get("time"),
            "run by": one.get("by"),
            "relative error": one["error"],
            "CPU s": one["cpu"],
        }
        table.append(row | {"line": line})
    mean = [(row["prose"] + row["code"]) / 2 for row in table]
    small = frontier(list(zip([row["bytes"] for row in table], mean, strict=True)))
    fast = frontier([(row["time per token"] or math.inf, loss) for row, loss in zip(table, mean, strict=True)])
    for row, is_small, is_fast in zip(table, small, fast, strict=True):
        row |= {"frontier": " ".join(["bytes"] * is_small + ["time"] * is_fast)}
    return sorted(table, key=lambda row: row["bytes"])


def picture(table: list[dict[str, Any]], x: str, label: str) -> Figure:
    """Loss against a cost: a series per technique, and the frontier as a line."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    table = [row for row in table if row[x] is not None]
    for row in table:
        names = " + ".join(dict.fromkeys(step.name for step in chain(row["line"])))
        kinds.setdefault(names, []).append(row)
    losses = {row["line"]: max(1e-3, (row["prose"] + row["code"]) / 2) for row in table}
    series = [
        {"name": name, "x": [r[x] for r in each], "y": [losses[r["line"]] for r in each]}
        for name, each in kinds.items()
    ]
    word = "bytes" if x == "share" else "time"
    best = sorted((row for row in table if word in row["frontier"]), key=lambda row: row[x])
    front = {"name": "frontier", "x": [r[x] for r in best], "y": [losses[r["line"]] for r in best]}
    data = {"series": [front, *series], "logy": True}
    caption = "Mean of prose and code, held out; losses under .001 are drawn there. Lines join what one technique does."
    return Figure(
        "lines", data, title=f"Lost bits per byte against {label}", caption=caption, x=label, y="lost [bit/B]"
    )


def disagreement(table: list[dict[str, Any]]) -> Table:
    """Of all pairs of edits of the same matrices at about equal bytes the one where error and loss disagree most."""
    fit = [row for row in table if row["relative error"] is not None]
    pairs = [
        (a["prose"] - b["prose"], a, b)
        for a in fit for b in fit
        if abs(a["share"] - b["share"]) < 0.01 and a["relative error"] < b["relative error"] and a["prose"] > b["prose"]
        and chain(a["line"])[0].options.get("where") == chain(b["line"])[0].options.get("where")
    ]  # fmt: skip
    if not pairs:
        return Table([], title="No pair disagrees")
    _, a, b = max(pairs, key=lambda pair: pair[0])
    kept = ("composition", "share", "relative error", "prose", "code")
    note = (
        "The smaller Frobenius error is the worse model: the error says how far the weights moved, not what was felt."
    )
    return Table([{k: row[k] for k in kept} for row in (a, b)], title="Where error and loss disagree", note=note)


def write(found: dict[str, dict[str, Any]]) -> None:
    """Write docs/shrinking.html and its pictures."""
    table = rows(found)
    pictures = [picture(table, "share", "share of the bytes at 16 bits a weight")]
    if any(row["time per token"] is not None for row in table):
        pictures.append(picture(table, "time per token", "time per token, of the whole model's"))
    (DOCS / "pictures").mkdir(exist_ok=True)
    for name, figure in zip(("shrinking-bytes", "shrinking-time"), pictures, strict=False):
        figure.save(DOCS / "pictures" / f"{name}.svg")
    whole = found[""]
    note = (
        f"SmolLM2-135M-Instruct, {whole['bytes']:,} bytes at 16 bits a weight; unedited {whole['prose']:.4f} (prose) "
        f"and {whole['code']:.4f} bit/B (code) on {' and '.join(TEXTS)}. prose, code: lost bit/B, windows of 511. This "
        "model was read from a file of Q4_1 (table Q8_0): rounding to q4_1 is the identity for it and no figure of "
        "q4_1. Edits that only change values keep all their bytes. Made by bench/shrinking.py."
    )
    shown = Table([{k: v for k, v in row.items() if k != "line"} for row in table], title="All compositions", note=note)
    pair = disagreement(table)
    result = Result(tables=[shown, pair] if len(list(pair)) else [shown], figures=pictures)
    write_atomic(DOCS / "shrinking.html", page("Ways of making a model smaller", [result]))
    print(f"wrote {DOCS / 'shrinking.html'}: {len(table)} compositions")


def main() -> None:
    """Measure what is missing, and write the page."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    more = words + (from_cards() if "--cards" in sys.argv else [])
    lines = ["", *words] if words else known(more)
    collect(lines, measure="--page" not in sys.argv)
    write(collect(known(more), measure=False))


if __name__ == "__main__":
    main()
