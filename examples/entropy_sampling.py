"""Entropy sampling, as published and repaired, against temperature and min-p, on answers that can be checked.

    python examples/entropy_sampling.py smollm2 --tune 30 --items 120 --kept answers.jsonl [--page FILE]

Two tasks behind four solved examples: numbers in words (`317 = three hundred and seventeen`) and dates in words
(`1986-10-03 is 3 October 1986`). Every sampler gets six settings, judged on the same tuning items with the same seeds;
the best of each, by share right, answers the test items, which share no number or date with the tuning items. Accuracy
and the paired difference from temperature have bootstrap intervals over items. Calibration: an answer's confidence is
the model's own probability of it (before any rule), so a sampler is as well calibrated as the answers it chooses; the
Brier score and the gap (mean confidence minus share right) are given. Answers are kept in a file and not made twice.
"""

import argparse
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.render import page
from kobza.core.result import Reading
from kobza.core.table import Table
from kobza.decoding import entropy, greedy, sample
from kobza.decoding.base import Note

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
SHOTS, TOKENS = 4, 16
BOUNDS = [(3.0, 5.0), (1.5, 2.0), (1.0, 1.0), (2.0, 8.0), (4.0, 10.0), (0.7, 0.5)]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "temperature": [{"temperature": t} for t in (0.1, 0.25, 0.5, 0.75, 1.0, 1.25)],
    "min-p": [{"temperature": 1.0, "min_p": p} for p in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)],
    "entropy, published": [
        {"version": "published", "low": low, "entropy": h, "varentropy": v}
        for low in (0.1, 0.5, 1.0) for h, v in BOUNDS[:2]
    ],
    "entropy, repaired": [{"version": "repaired", "entropy": h, "varentropy": v} for h, v in BOUNDS],
    "greedy": [{}],
}  # fmt: skip
BARS = {"values": "right", "low": "low", "high": "high"}  # of the figure, from the table
VERBS = {"greedy": greedy, "entropy": entropy}


def in_words(n: int) -> str:
    """Return a number below 1000 in words.

    >>> in_words(317)
    'three hundred and seventeen'
    """
    if n >= 100:
        return f"{ONES[n // 100]} hundred" + (f" and {in_words(n % 100)}" if n % 100 else "")
    if n < 20:
        return ONES[n]
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def items(count: int) -> dict[str, list[tuple[str, str]]]:
    """Return (prompt, right answer) pairs per task; none is asked twice, and examples are never asked."""
    draw = random.Random(0)
    numbers = [(f"{n} =", in_words(n)) for n in draw.sample(range(20, 1000), count + SHOTS)]
    days = draw.sample(range(121 * 12 * 28), count + SHOTS)
    dates = []
    for day in days:
        year, month, d = 1900 + day // 336, day // 28 % 12, day % 28 + 1
        dates.append((f"{year}-{month + 1:02d}-{d:02d} is", f"{d} {MONTHS[month]} {year}"))
    found = {}
    for name, all_of_them in (("numbers", numbers), ("dates", dates)):
        front = "".join(f"{asked} {right}\n" for asked, right in all_of_them[:SHOTS])
        found[name] = [(front + asked, right) for asked, right in all_of_them[SHOTS:]]
    return found


class Answers:
    """Answers of samplers, kept in a file."""

    def __init__(self, model: Any, kept: Path | None) -> None:
        self.model = model
        self.kept = kept
        lines = kept.read_text().splitlines() if kept and kept.exists() else []
        self.known: dict[str, dict[str, Any]] = dict(json.loads(line) for line in lines)

    def __call__(self, sampler: str, options: dict[str, Any], task: str, number: int, prompt: str) -> dict[str, Any]:
        key = json.dumps([self.model.name, sampler, options, number, prompt])
        if key not in self.known:
            technique = VERBS.get(sampler.partition(",")[0], sample)
            seeded = options if sampler == "greedy" else {**options, "seed": number}
            said = technique.generate(self.model, prompt, tokens=TOKENS, stop=["\n"], **seeded)
            text = said.text
            corners = Counter(event.said for event in said.events if isinstance(event, Note))
            self.known[key] = {"text": text.strip(), "confidence": math.exp(sum(said.logprobs)), "corners": corners}
            if self.kept:
                with self.kept.open("a") as out:
                    out.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]


def main() -> None:
    """Tune, test, print and, if asked, write the page."""
    words = argparse.ArgumentParser()
    words.add_argument("model", nargs="?", default="smollm2")
    words.add_argument("--tune", type=int, default=1, help="tuning items per task")
    words.add_argument("--items", type=int, default=2, help="test items per task")
    words.add_argument("--kept", type=Path, help="file in which answers are kept")
    words.add_argument("--page", type=Path)
    asked = words.parse_args()
    torch.set_num_threads(1)
    answers = Answers(kobza.open(asked.model), asked.kept)
    pairs = items(asked.tune + asked.items)
    tuning, rows = [], []
    tested: dict[tuple[str, str], Reading] = {}
    for sampler, settings in SETTINGS.items():
        scores = []
        for options in settings:
            right = [
                answers(sampler, options, task, n, prompt)["text"] == wanted
                for task, all_of_them in pairs.items()
                for n, (prompt, wanted) in enumerate(all_of_them[: asked.tune])
            ]
            scores.append(sum(right) / len(right))
            spelled = ", ".join(f"{name}={value}" for name, value in options.items() if name != "version")
            tuning.append({"sampler": sampler, "setting": spelled, "right": scores[-1]})
            print(tuning[-1], flush=True)
        best = settings[scores.index(max(scores))]
        for task, all_of_them in pairs.items():
            rows.append(_tested(answers, sampler, best, task, all_of_them[asked.tune :], asked.tune, tested))
            print(rows[-1], flush=True)
    names = [f"{row['sampler']}, {row['task']}" for row in rows]
    bars = {"labels": names, **{key: [row[field] for row in rows] for key, field in BARS.items()}, "horizontal": True}
    figure = Figure(
        "bars", bars, title="Share right", caption="Test items; settings chosen on others.", x="share right"
    )
    note = f"{asked.items} test items per task, {asked.tune} other items per task and six settings for tuning."
    tables = [
        Table(rows, title="Samplers at their best setting", note=note),
        Table(tuning, title="Tuning: both tasks together"),
    ]
    print(*tables, sep="\n\n")
    if asked.page:
        write_atomic(asked.page, page("Entropy sampling", [*tables, figure]).encode())


def _tested(
    answers: Answers, sampler: str, options: dict[str, Any], task: str, pairs: list[tuple[str, str]], first: int,
    tested: dict[tuple[str, str], Reading],
) -> dict[str, Any]:  # fmt: skip
    said = [answers(sampler, options, task, first + n, prompt) for n, (prompt, _) in enumerate(pairs)]
    right = [float(one["text"] == wanted) for one, (_, wanted) in zip(said, pairs, strict=True)]
    reading = Reading.from_parts("right", [(r, 1.0) for r in right], "share", record={"text": task})
    tested[sampler, task] = reading
    apart = tested["temperature", task].compare(reading)
    sure = [one["confidence"] for one in said]
    brier = sum((c - r) ** 2 for c, r in zip(sure, right, strict=True)) / len(right)
    gap = Reading.from_parts("gap", [(c - r, 1.0) for c, r in zip(sure, right, strict=True)], "", record={})
    corners = sum((Counter(one["corners"]) for one in said), Counter())
    return {
        "sampler": sampler, "task": task, "setting": json.dumps(options), "right": reading.value,
        "low": reading.low, "high": reading.high, "minus temperature": apart.value, "from": apart.low, "to": apart.high,
        "Brier": brier, "gap": gap.value, "gap from": gap.low, "gap to": gap.high,
        "corners": ", ".join(f"{name} {n / corners.total():.0%}" for name, n in corners.most_common()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
