"""Pages of three experiments with training: the poems GPT, addition beyond the trained lengths, the debated block.

    python bench/training_pages.py FOLDER TEXT [poems] [arithmetic] [ablations] [--docs DIR]

FOLDER holds what the recipes wrote: poems-SEED (examples/train_poems.py), small (examples/small_model.py), arithmetic
(examples/arithmetic.py) and ablations (examples/ablations.py); TEXT is the book. Each experiment prints its tables and,
with --docs, writes a page (experiment-NAME.html) and a picture. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import json
import lzma
import math
import shutil
import statistics
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.render import page
from kobza.core.table import Table
from kobza.decoding import alphabet, sample
from kobza.training.parts import corpus

PROMPTS = (
    "Як умру", "Україна", "Кайдан", "Місяць", "Мороз и солнце; день чудесный", "Once upon a time", "我在那里,", "\n",
)  # fmt: skip
PUBLISHED = {0: "12.43", 500: "about 5.3", 2000: "4.5", 2750: "3.8 .. 4.0"}  # training loss of single batches
Found = tuple[Sequence[Any], Figure | None]
QUANTILE = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}  # 97.5 % of Student's t, by degrees of freedom


def poems(folder: Path, text: Path) -> Found:
    """Curves, samples, compressors and vocabularies of the poems GPT."""
    runs = {int(at.name[6:]): _log(at / "log.csv") for at in sorted(folder.glob("poems-[0-9]"))}
    part = corpus.split(corpus.documents(text)[0])
    curves = Figure(
        "lines",
        {"series": [s for name in ("loss", "held", "held_all") for s in _series(runs, name)]},
        title="The poems GPT: training loss and the held-out curve",
        caption="Loss in nats per token, mean since the look before; held out in bits per byte, without and with the "
        "stretches that also stand in the training part. Bands: lowest and highest of the seeds at that step.",
        x="step", y="nats or bit/B",
    )  # fmt: skip
    rows = []
    for step in sorted({row["step"] for run in runs.values() for row in run}):
        at = [row for run in runs.values() for row in run if row["step"] == step]
        row: dict[str, Any] = {"step": int(step), "seeds": len(at), "published loss": PUBLISHED.get(int(step), "")}
        row |= {name: _spread([r[name] for r in at if r[name] is not None]) for name in ("loss", "held", "held_all")}
        rows.append(row)
    note = (
        f"held: without the {part.leak:.1%} of the held-out bytes that also stand in the training part (stretches of "
        "60 characters or more); held_all: with them. Published is the loss of single batches with the whole "
        "vocabulary, which begins at ln 200,019 = 12.2; with the ids that occur it begins at ln 5,038 = 8.5"
    )
    units = {"loss": "nats", "held": "bit/B", "held_all": "bit/B"}
    looks = Table(rows, title="Looks: mean, and lowest .. highest of the seeds", units=units, note=note)
    return [curves, looks, _samples(folder, text), _packed(part, text), *_vocabularies(folder)], curves


def _log(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("step", "loss", "held", "held_all")
    return [{key: float(row[key]) if row[key] else None for key in names} for row in rows]


def _series(runs: dict[int, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """Return the mean over seeds at every step, with lowest and highest."""
    found: dict[float, list[float]] = {}
    for run in runs.values():
        for row in run:
            if row[name] is not None:
                found.setdefault(row["step"], []).append(row[name])
    steps = sorted(found)
    label = {"loss": "training loss [nats/token]", "held": "held out [bit/B]", "held_all": "with repeats [bit/B]"}[name]
    return [{
        "name": label, "x": steps, "y": [statistics.mean(found[s]) for s in steps],
        "low": [min(found[s]) for s in steps], "high": [max(found[s]) for s in steps],
    }]  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} .. {max(values):.3f})"


def _samples(folder: Path, text: Path) -> Table:
    """Return what the trained model says, freely and within the alphabet of the poems."""
    at = folder / "poems-0" / "model"
    model = kobza.open(at)
    letters = set(corpus.documents(text)[0][0])
    rows, foreign = [], 0
    for prompt in PROMPTS:
        begun = model.tokenizer.encode(prompt)
        room = min(24, (model.context or 32) - len(begun))
        free = sample.generate(model, prompt, tokens=room, temperature=0.8, top_p=0.95, seed=1).text
        held = alphabet.generate(model, prompt, tokens=room, of=str(text), temperature=0.8, top_p=0.95, seed=1).text
        foreign += sum(character not in letters for character in free)
        rows.append({"prompt": repr(prompt), "drawn freely": free, "drawn in the alphabet": held})
    note = f"{foreign} characters of the free texts do not occur in the poems; temperature 0.8, top-p 0.95, seed 1"
    return Table(rows, title="What it says", note=note)


def _packed(part: corpus.Split, text: Path) -> Table:
    """Return what compressors make of the same text, in bits per byte."""
    train, held = "\n".join(part.train).encode(), part.held
    packers: dict[str, Callable[[bytes], int]] = {
        "zlib -9": lambda d: len(zlib.compress(d, 9)), "bz2 -9": lambda d: len(bz2.compress(d, 9)),
        "xz -9e": lambda d: len(lzma.compress(d, preset=9 | lzma.PRESET_EXTREME)),
    }  # fmt: skip
    if shutil.which("zpaq"):
        packers["zpaq -m5"] = _zpaq
    rows = []
    whole = text.read_bytes()
    for name, pack in packers.items():
        alone, book = pack(held), pack(whole)
        after = 0 if pack is _zpaq else pack(train + held) - pack(train)  # a minute more
        sizes = {"held-out part alone": (alone, held), "after the training part": (after, held), "book": (book, whole)}
        bits = {key: 8 * size / len(of) if size > 0 else math.nan for key, (size, of) in sizes.items()}
        rows.append({"packer": name, **bits})
    units = dict.fromkeys(("held-out part alone", "after the training part", "book"), "bit/B")
    note = (
        "a model reads the training part too, but its own bytes are not counted: as a packer of this one book it is "
        "far larger than what it saves"
    )
    return Table(rows, title="What compressors make of it", units=units, note=note)


def _zpaq(data: bytes) -> int:
    with tempfile.TemporaryDirectory() as at:
        Path(at, "data").write_bytes(data)
        subprocess.run(["zpaq", "add", "a.zpaq", "data", "-m5", "-t1"], cwd=at, capture_output=True, check=True)
        return Path(at, "a.zpaq").stat().st_size


def _vocabularies(folder: Path) -> list[Any]:
    """Return the table of vocabularies at equal compute, several seeds."""
    at = folder / "small.json"
    if not at.exists():
        return []
    done = json.loads(at.read_text(encoding="utf-8"))
    rows = []
    for name in dict.fromkeys(row["name"] for row in done):
        found = [row for row in done if row["name"] == name]
        held = [row["held"] for row in found]
        rows.append({
            "vocabulary": Path(name).stem, "ids": found[0]["ids"], "steps": found[0]["steps"], "seeds": len(found),
            "held": _spread(held), "held_all": _spread([row["held_all"] for row in found]),
            "with overlap": _spread([row["overlap"] for row in found]), "+-": half_interval(held),
            "MB at bfloat16": 2 * found[0]["parameters"] / 1e6,
        })  # fmt: skip
    note = "equal multiplications (6 per weight in products and token), Llama 4 x 256, Muon; +-: 95 % of the mean"
    return [Table(rows, title="Vocabularies at equal compute", units=dict.fromkeys(("held", "held_all", "with overlap",
                  "+-"), "bit/B"), note=note)]  # fmt: skip


def half_interval(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean."""
    if len(values) < 2:
        return math.nan
    return QUANTILE.get(len(values) - 1, 12.7) * statistics.stdev(values) / len(values) ** 0.5


def arithmetic(folder: Path, _: Path) -> Found:
    """Exact sums by length, kind of positions and order of digits."""
    done = json.loads((folder / "arithmetic" / "arithmetic.json").read_text(encoding="utf-8"))
    rows, series = [], []
    for kind, is_reversed in dict.fromkeys((row["kind"], row["reversed"]) for row in done):
        shares = [row["shares"] for row in done if (row["kind"], row["reversed"]) == (kind, is_reversed)]
        order = "lowest first" if is_reversed else "highest first"
        row: dict[str, Any] = {"positions": kind, "digits": order, "seeds": len(shares)}
        for n, found in enumerate(zip(*shares, strict=True), 1):
            row[f"{n} digits"] = _spread(found)
        rows.append(row)
        columns = list(zip(*shares, strict=True))
        series.append({
            "name": f"{kind}, {order}", "x": list(range(1, len(columns) + 1)),
            "y": [statistics.mean(c) for c in columns], "low": [min(c) for c in columns],
            "high": [max(c) for c in columns],
        })  # fmt: skip
    trained, steps = done[0]["trained"], done[0]["steps"]
    figure = Figure(
        "lines", {"series": series, "vlines": [{"x": trained + 0.5}]}, title="Exact sums by the length of the numbers",
        caption=f"Trained on 1 to {trained} digits (left of the line). Bands: lowest and highest of the seeds.",
        x="digits of each number", y="share of sums that are exact",
    )  # fmt: skip
    table = Table(rows, title="Share of exact sums: mean (lowest .. highest of the seeds)",
                  note=f"every model 2 x 64, 4 heads, bytes, {steps:,} steps of 1,024 tokens, Muon")  # fmt: skip
    return [figure, table], figure


def ablations(folder: Path, _: Path) -> Found:
    """The debated parts of a block, at equal parameters and equal multiplications."""
    done = json.loads((folder / "ablations" / "results.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in done:
        found.setdefault((row["group"], row["name"]), []).append(row)
    pairs = [[row["held"] for row in rows] for rows in found.values() if len(rows) > 1]
    deviation = statistics.mean(statistics.variance(pair) for pair in pairs) ** 0.5
    rows, labels, values, low, high = [], [], [], [], []
    for (group, name), of in found.items():
        base = found["table", "2,048 ids, trained"] if group == "table" else found["base", "base"]
        change = statistics.mean(r["held"] for r in of) - statistics.mean(r["held"] for r in base)
        wide = _student(len(pairs)) * deviation * (1 / len(of) + 1 / len(base)) ** 0.5
        if of is base:
            change, wide = 0.0, 0.0
        verdict = "" if abs(change) <= wide else "worse" if change > 0 else "better"
        rows.append({
            "what": group, "variant": name, "F": of[0]["inner"], "steps": of[0]["steps"],
            "parameters": of[0]["parameters"], "held": statistics.mean(r["held"] for r in of),
            "seeds": " ".join(f"{r['held']:.3f}" for r in of),
            "change": change, "+-": wide, "verdict": verdict,
        })  # fmt: skip
        if of is not base:
            labels.append(f"{group}: {name}")
            values.append(change)
            low.append(change - wide)
            high.append(change + wide)
    figure = Figure(
        "bars", {"labels": labels, "values": values, "low": low, "high": high, "horizontal": True},
        title="Held out, against the base: above 0 is worse", caption="95 % intervals from the spread between seeds, "
        "pooled over all variants.", x="change of held-out bits per byte", height=0.26 * len(labels) + 1.2,
    )  # fmt: skip
    note = (
        f"standard deviation between seeds, pooled over {len(pairs)} variants: {deviation:.4f} bit/B; one "
        "comparison in twenty leaves its interval by chance. One rate for all, tuned for none."
    )
    units = dict.fromkeys(("held", "change", "+-"), "bit/B")
    table = Table(rows, title="At equal parameters and equal multiplications", units=units, note=note)
    return [figure, table, *([_routers(done)] if any("load" in row for row in done) else [])], figure


def _student(n: int) -> float:
    """Return the 97.5 % quantile of Student's t with n degrees of freedom (Abramowitz & Stegun 26.7.5)."""
    z = 1.96
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n * n)


def _routers(done: list[dict[str, Any]]) -> Table:
    """Return load and gradient of every router of the first seed."""
    rows = []
    for row in done:
        for layer, load in enumerate(row.get("load", []) if row["seed"] == 0 else []):
            shares = {f"expert {n}": share for n, share in enumerate(load)}
            rows.append({"variant": row["name"], "layer": layer, **shares, "router gradient": row["gradient"][layer]})
    return Table(rows, title="Load of the experts over the held-out text (share of its tokens), norm of the router's "
                 "gradient there")  # fmt: skip


EXPERIMENTS: dict[str, tuple[str, str, Callable[[Path, Path], Found]]] = {
    "poems": ("A GPT learns a book of poems", "examples/train_poems.py and small_model.py", poems),
    "arithmetic": ("Addition beyond the lengths that were trained", "examples/arithmetic.py full", arithmetic),
    "ablations": ("The debated parts of a block", "examples/ablations.py", ablations),
}


def main() -> None:
    """Make the pages named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names or EXPERIMENTS:
        title, recipe, experiment = EXPERIMENTS[name]
        blocks, picture = experiment(given.folder, given.text)
        for block in blocks:
            if not isinstance(block, Figure):
                print(block, end="\n\n", flush=True)
        if given.docs:
            lead = f"Again: {recipe}, then bench/training_pages.py."
            write_atomic(given.docs / f"experiment-{name}.html", page(title, blocks, lead=lead))
            if picture is not None:
                picture.save(given.docs / "pictures" / f"experiment-{name}.png")


if __name__ == "__main__":
    main()
