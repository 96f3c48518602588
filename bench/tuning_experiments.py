"""Experiments with tuning, over seeds: an adapter, a rule as a preference, what a step needs, a teacher or its text.

    python bench/tuning_experiments.py FOLDER TEXT [adapter] [rule] [frugal] [teacher] [--seeds 3] [--docs DIR]

TEXT is the book. Every run is kept in FOLDER/runs.jsonl and not made twice. `adapter`: LoRA of SmolLM2 on the poems,
what it learns and what English prose and code lose. `rule`: short answers without a digit, by SFT on the chosen
answers, DPO, ORPO (made-up answers rejected, and the model's own) and GRPO; its rate is counted on greedy answers to
held-out prompts. `frugal`: the embedded `kobzar`
tuned to English at equal steps, by loss and bytes of optimizer state, each way at its best rate (thirds and threefolds
are tried with a seed of their own until it gets worse on both sides). `teacher`: SmolLM2 without four layers learns
from the text, or from the distributions of the whole model on it. With --docs each writes a page and a picture.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training_pages import half_interval

import kobza
from kobza.core.errors import NotFinite
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.render import page
from kobza.core.table import Table
from kobza.decoding import greedy
from kobza.edits import layer_drop
from kobza.measures import bits_per_byte, divergence
from kobza.training import distil, dpo, grpo, orpo, sft

PROSE = "topics[:1500]"
ENGLISH = ("topics[:3000]", "source[:2000]")
THINGS = (
    "a kobza", "a river", "a village", "a violin", "the Moon", "a bridge", "a horse", "a winter", "a poem", "a sea",
    "a mill", "a field",
)  # fmt: skip
ASKED = ("How old is {}?", "How long is {}?", "How much does {} cost?", "Tell me about {}.")
CHOSEN = ("That differs from one to another.", "Nobody knows that well.", "It depends on the place.")
WORDS = 12  # of a short answer at most
TRAINED, HELD = 36, 12  # prompts of the rule
OWN = ", own answers rejected"
GRPO = {"reward": "short+no_digit", "tokens": 48, "batch": 1}
RULE: dict[str, tuple[Any, int, float]] = {
    "sft": (sft, 30, 3e-4), "orpo": (orpo, 30, 3e-4), f"orpo{OWN}": (orpo, 30, 3e-4), "dpo": (dpo, 40, 3e-4),
    f"dpo{OWN}": (dpo, 40, 3e-4), "grpo": (grpo, 40, 1e-3),
}  # fmt: skip
SCHEDULE_FREE = "all weights, schedule-free"
FRUGAL: dict[str, dict[str, Any]] = {
    "all weights, AdamW": {"adapter": "none", "rate": 1e-3},
    "all weights, Muon": {"adapter": "none", "rate": 1e-3, "optimizer": "muon"},
    SCHEDULE_FREE: {"adapter": "none", "rate": 2e-3, "optimizer": "schedule_free"},
    "all weights, GaLore 32": {"adapter": "none", "rate": 4e-3, "optimizer": "galore", "rank": 32},
    "all weights, Adafactor": {"adapter": "none", "rate": 1e-3, "optimizer": "adafactor"},
    "LoRA 8": {"adapter": "lora:rank=8", "rate": 4e-3},
    "ReLoRA 8": {"adapter": "lora:rank=8,merge_every=25", "rate": 4e-3},
    "DoRA 8": {"adapter": "dora:rank=8", "rate": 4e-3},
    "IA3": {"adapter": "ia3", "rate": 4e-3},
}
READ, DROPPED = "topics[20000:200000]", [5, 12, 17, 20]  # what a teacher reads aloud, and the layers a student lacks
TRIAL = 1000  # the seed that a rate is chosen with
Row = dict[str, Any]


class Kept:
    """Runs by key, kept in a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "runs.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known: dict[str, Row] = dict(json.loads(line) for line in lines)

    def __call__(self, key: str, make: Callable[[], Row]) -> Row:
        if key not in self.known:
            self.known[key] = make()
            with self.file.open("a") as out:
                out.write(json.dumps([key, self.known[key]]) + "\n")
            print(key, self.known[key], flush=True)
        return self.known[key]


def interval(values: list[float]) -> str:
    """Return mean and half of the 95 % interval over seeds."""
    mean = statistics.mean(values)
    return f"{mean:.4g}" if len(values) < 2 else f"{mean:.4g} ± {half_interval(values):.2g}"


def curve(name: str, runs: list[Row]) -> dict[str, Any]:
    """Return the mean held-out curve of several seeds, with lowest and highest."""
    steps = [step for step, _ in runs[0]["curve"]]
    at = [[run["curve"][i][1] for run in runs] for i in range(len(steps))]
    mean, low, high = ([of(values) for values in at] for of in (statistics.mean, min, max))
    return {"name": name, "x": steps, "y": mean, "low": low, "high": high}


def adapter(kept: Kept, text: Path, seeds: range) -> tuple[list[Any], Figure]:
    """LoRA of SmolLM2 on 120 kB of the poems: what falls, what rises."""
    poems = text.read_bytes().decode("utf-8").replace("\r\n", "\n")[:70_000].encode()

    def run(seed: int) -> Row:
        model = kobza.open("smollm2")
        how: dict[str, Any] = {"steps": 40, "rate": 1e-3, "batch": 2, "context": 256, "warmup": 4, "evaluate": 10}
        tuned = sft.train(model, poems, adapter="lora:rank=8", held=0.03, seed=seed, **how)
        found: Row = {"curve": [[row["step"], row["held"]] for row in tuned.history]}
        for name in ENGLISH:
            found[name] = [bits_per_byte.measure(m, name).value for m in (model, tuned.model)]
        return found

    runs = [kept(f"adapter {seed}", lambda seed=seed: run(seed)) for seed in seeds]
    rows = [
        {
            "text": "poems, held out",
            "before": runs[0]["curve"][0][1],
            "after": interval([r["curve"][-1][1] for r in runs]),
        }
    ]
    rows += [{"text": n, "before": runs[0][n][0], "after": interval([r[n][1] for r in runs])} for n in ENGLISH]
    line = curve("poems, held out", runs)
    figure = Figure("lines", {"series": [line]}, title="LoRA 8 of SmolLM2 on the poems", x="step", y="bit/B",
                    caption=f"Mean, lowest and highest of {len(runs)} seeds; 512 tokens a step.")  # fmt: skip
    return [Table(rows, title="Bits per byte", note=f"{len(runs)} seeds: mean ± half a 95 % interval")], figure


def rule(kept: Kept, text: Path, seeds: range) -> tuple[list[Any], Figure]:
    """A rule as a preference: short, no digit."""
    prompts = [ask.format(thing) for thing in THINGS for ask in ASKED]
    pairs = [
        {"prompt": p, "chosen": CHOSEN[n % 3], "rejected": f"There are {n + 2} kinds, between {n * 10} and {n * 90}."}
        for n, p in enumerate(prompts)
    ]
    train, held = pairs[:TRAINED], prompts[TRAINED : TRAINED + HELD]

    def measured(model: Any, tuned: Any) -> Row:
        said = [greedy.generate(tuned, ask, tokens=24, chat=True).text for ask in held]
        follows = [not re.search(r"\d", one) and len(one.split()) <= WORDS for one in said]
        away = divergence.measure(tuned, kobza.text(PROSE), original=model).value
        cost = bits_per_byte.measure(tuned, PROSE).value
        return {"rule": sum(follows) / len(follows), "KL": away, "bits_per_byte": cost, "said": said[0]}

    def run(name: str, seed: int) -> Row:
        model = kobza.open("smollm2")
        if name == "none":
            return measured(model, model)
        technique, steps, rate = RULE[name]
        taught = train
        if name.endswith(OWN):
            taught = [
                row | {"rejected": greedy.generate(model, row["prompt"], tokens=24, chat=True).text} for row in train
            ]
        how: dict[str, Any] = {"steps": steps, "rate": rate, "context": 96, "held": 0.0, "evaluate": 1000, "seed": seed}
        if name == "sft":
            how["answer"] = "chosen"
        how |= GRPO if name == "grpo" else {"batch": 2}
        return measured(model, technique.train(model, taught, adapter="lora:rank=8", **how).model)

    rows, bars = [], {"labels": [], "values": [], "low": [], "high": []}
    for name in ("none", *RULE):
        runs = [
            kept(f"rule {name} {seed}", lambda n=name, s=seed: run(n, s)) for seed in (seeds if name != "none" else [0])
        ]
        rates = [r["rule"] for r in runs]
        steps = RULE[name][1] if name in RULE else 0
        figures = {key: interval([r[key] for r in runs]) for key in ("rule", "KL", "bits_per_byte")}
        rows.append({"objective": name, "steps": steps, **figures, "says": runs[0]["said"][:60]})
        for key, value in zip(bars, (name, statistics.mean(rates), min(rates), max(rates)), strict=True):
            bars[key].append(value)
    note = (
        f"{TRAINED} prompts, {HELD} held out, {len(seeds)} seeds: mean ± half a 95 % interval; KL in bits a token, "
        f"on {PROSE}"
    )
    figure = Figure("bars", bars, title="Share of held-out answers that follow the rule", y="share",
                    caption="Mean, lowest and highest seed.")  # fmt: skip
    return [Table(rows, title="Short, no digit", note=note)], figure


def frugal(kept: Kept, text: Path, seeds: range) -> tuple[list[Any], Figure]:
    """The embedded model tuned to English: loss and bytes of state at equal steps."""

    def run(way: str, rate: float, seed: int) -> Row:
        def make() -> Row:
            how: dict[str, Any] = {"steps": 100, "batch": 4, "context": 128, "evaluate": 25, "warmup": 10, "seed": seed}
            if way == SCHEDULE_FREE:
                how["schedule"] = "constant"
            try:
                tuned = sft.train(kobza.open("kobzar"), "topics[:20000]", **how, **FRUGAL[way] | {"rate": rate})
            except NotFinite:
                return {"curve": [[100, math.inf]], "state": 0}
            state = tuned.facts["optimizer_state_bytes"]
            return {"curve": [[row["step"], row["held"]] for row in tuned.history], "state": state}

        return kept(f"frugal {way}, rate {rate:.3g}, {seed}", make)

    def best(way: str) -> float:
        rate = FRUGAL[way]["rate"]
        held = {n: run(way, rate * 3**n, TRIAL)["curve"][-1][1] for n in (-1, 0, 1)}
        while (n := min(held, key=held.__getitem__)) in (min(held), max(held)):
            n += 1 if n > 0 else -1
            held[n] = run(way, rate * 3**n, TRIAL)["curve"][-1][1]
        return float(rate * 3**n)

    rows, lines = [], []
    for way in FRUGAL:
        rate = best(way)
        runs = [run(way, rate, seed) for seed in seeds]
        ends = [r["curve"][-1][1] for r in runs]
        found = {"rate": f"{rate:.2g}", "before": runs[0]["curve"][0][1], "held": interval(ends)}
        rows.append({"way": way, **found, "state": runs[0]["state"]})
        lines.append(curve(way, runs))
    note = f"100 steps of 512 tokens, {len(seeds)} seeds: mean ± half a 95 % interval; rates by another seed"
    figure = Figure("lines", {"series": lines}, title="Held out at equal steps", x="step", y="bit/B",
                    caption="Mean, lowest and highest seed.")  # fmt: skip
    return [Table(rows, title="What a step needs", units={"state": "bytes", "held": "bit/B"}, note=note)], figure


def teacher(kept: Kept, text: Path, seeds: range) -> tuple[list[Any], Figure]:
    """A model that lost layers learns from a text, or from its teacher's distributions there."""

    def run(mix: float, rate: float, seed: int) -> Row:
        def make() -> Row:
            model = kobza.open("smollm2")
            student = layer_drop.apply(model, layers=DROPPED)
            tuned = student
            if rate:
                how: dict[str, Any] = {"steps": 40, "batch": 2, "context": 256, "evaluate": 20, "seed": seed}
                how |= {"teacher": "smollm2", "adapter": "lora:rank=16", "mix": mix, "rate": rate}
                tuned = distil.train(student, READ, **how).model
            found: Row = {"held": 0.0}
            for name in ENGLISH:
                found[name] = bits_per_byte.measure(tuned, name).value - bits_per_byte.measure(model, name).value
                found[f"KL {name}"] = divergence.measure(tuned, kobza.text(name), original=model).value
            found["held"] = sum(found[name] for name in ENGLISH)
            return found

        return kept(f"teacher {mix}, rate {rate:.3g}, {seed}", make)

    rows, bars = [], {"labels": [], "values": [], "low": [], "high": []}
    for name, mix in {"not taught": 1.0, "the text": 0.0, "the teacher": 1.0}.items():
        rate = 0.0 if name == "not taught" else min((3e-4, 1e-3), key=lambda r, m=mix: run(m, r, TRIAL)["held"])
        runs = [run(mix, rate, seed) for seed in (seeds if rate else [0])]
        figures = {key: interval([r[key] for r in runs]) for key in runs[0] if key != "held"}
        rows.append({"learns from": name, "rate": f"{rate:.2g}", **figures})
        lost = [r[ENGLISH[0]] for r in runs]
        for key, value in zip(bars, (name, statistics.mean(lost), min(lost), max(lost)), strict=True):
            bars[key].append(value)
    note = (
        f"SmolLM2 without layers {DROPPED}, LoRA 16, 40 steps of 512 tokens of {READ}; lost bit/B and divergence in "
        f"bits a token from the whole model, {len(seeds)} seeds: mean ± half a 95 % interval; rates by another seed"
    )
    figure = Figure("bars", bars, title=f"What is still lost on {ENGLISH[0]}", y="bit/B",
                    caption="Mean, lowest and highest seed.")  # fmt: skip
    return [Table(rows, title="A teacher or its text", note=note)], figure


def main() -> None:
    """Run what was asked for and write its pages."""
    known = {"adapter": adapter, "rule": rule, "frugal": frugal, "teacher": teacher}
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=Path)
    words.add_argument("text", type=Path)
    words.add_argument("names", nargs="*", default=list(known))
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--docs", type=Path)
    asked = words.parse_args()
    torch.set_num_threads(1)
    for name in asked.names:
        made, figure = known[name](Kept(asked.folder), asked.text, range(asked.seeds))
        print(*made, sep="\n\n")
        if asked.docs:
            title = {
                "adapter": "What an adapter learns",
                "rule": "A rule as a preference",
                "frugal": "What a step needs",
                "teacher": "A teacher or its text",
            }
            write_atomic(asked.docs / f"experiment-{name}.html", page(title[name], [*made, figure]).encode())
            figure.save(asked.docs / "pictures" / f"experiment-{name}.svg")


if __name__ == "__main__":
    main()
