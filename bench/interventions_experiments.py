"""Four experiments on SmolLM2: neurons of an answer, time of day, yes or no, where compression hurts.

    python bench/interventions_experiments.py [neurons] [clock] [opinions] [compression] [--docs DIR]

Each prints its figures and writes a page (experiment-NAME.html) and a picture (pictures/experiment-NAME.png) to DIR, if
one is given. Nothing is random but the controls, which have seed 0. About three minutes of CPU time for all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core.errors import KobzaError
from kobza.core.figure import Figure
from kobza.core.files import write_atomic
from kobza.core.render import page
from kobza.core.table import Table
from kobza.edits import lowrank, noise, rounding
from kobza.interventions import ablate, patch, transplant
from kobza.interventions.before_after import before_after

SHELLS = "she sells sea shells by the"
WORDINGS = (
    "the time displayed is {} {}. therefore, it is currently the",
    "the clock on the wall says {} {}. so it is now the",
)
TIMES = ("6:15", "8:00", "9:00", "10:30")
METRIC = "diff: morning| evening"
NEUTRAL = "The weather today is||She opened the door and||On the table there was"
QUESTION = "Question: {} Answer:"
CONTESTED = ("Is Kashmir a part of India?", "Is Crimea a part of Russia?")
CONTROLS = ("Can a fish ride a bicycle to the Moon?", "Is Paris the capital of France?", "Is ice hotter than fire?")

Found = tuple[Sequence[Any], Figure]


def neurons(model: Any) -> Found:
    """Every neuron of a layer off: zero against mean, all positions against the last."""
    rows, pictures = [], []
    for layer in (model.layers - 1, 20):
        for kind in ("zero", "mean"):
            for at in ("", "@-1"):
                options: Any = {"prompt": SHELLS, "over": f"neuron.{layer}.*{at}", "kind": kind}
                result = ablate.run(model, **options)
                table = result.tables[0]
                changes = [abs(change) for change in table["prob change"]]
                rows.append({
                    "over": options["over"], "kind": kind, "other top token": sum(table["is_other"]),
                    "|dP| > 0.1": sum(c > 0.1 for c in changes), "|dP| > 0.01": sum(c > 0.01 for c in changes),
                    "largest": table[0]["short"], "dP": table[0]["prob change"],
                    "ten together": result.reading("together").value, "ten random": result.reading("control").value,
                })  # fmt: skip
                pictures.append(table.figures[0])
    return [Table(rows, title="Change of P(top) without one neuron"), *pictures[:2]], pictures[0]


def clock(model: Any) -> Found:
    """Which position carries the time of day, in how many pairs; which neurons recur."""
    pairs = [[w.format(t, half) for half in ("am", "pm")] for w in WORDINGS for t in TIMES]
    clean, corrupt = ("||".join(side) for side in zip(*pairs, strict=True))
    over = "resid_pre.*@' am'; resid_pre.*@-1"
    mean = patch.run(model, clean=clean, corrupt=corrupt, over=over, metric=METRIC, controls=0)
    rows, recurring = [], Counter[str]()
    for one, other in pairs:
        rows.append(_step(model, one, other))
        found = patch.run(
            model, clean=one, corrupt=other, over="neuron.22.*@-1; neuron.23.*@-1; neuron.24.*@-1", metric=METRIC,
            controls=0, crosses=False,
        )  # fmt: skip
        recurring.update(found.tables[0]["short"][:20])
    share = sum(bool(row["step"]) for row in rows) / len(rows)
    steps = Table(rows, title=f"Recovered by patching: {share:.0%} of {len(rows)} pairs show the step")
    often = [{"neuron": name, "pairs": count} for name, count in recurring.most_common(10)]
    names = Table(often, title=f"Neurons among the 20 largest at the last position, of {len(pairs)} pairs")
    whole = patch.run(model, clean=pairs[2][0], corrupt=pairs[2][1], metric="logit: morning")
    (picture,) = whole.tables[0].figures
    return [steps, names, picture, mean.tables[0].head(20), *whole.readings], picture


def _step(model: Any, clean: str, corrupt: str) -> dict[str, object]:
    """Share of the difference that layers 21 and 25 recover, at ` am` and at the last token."""
    over = "; ".join(f"resid_pre.{layer}@{at}" for layer in (21, 25) for at in ("' am'", "-1"))
    result = patch.run(model, clean=clean, corrupt=corrupt, over=over, metric=METRIC, controls=0, crosses=False)
    span = result.reading("clean").value - result.reading("corrupt").value
    found = {row["place"]: row[f"{METRIC} change"] / span for row in result.tables[0]}
    spots = sorted({int(place.split("@")[1]) for place in found})
    early = [found[f"resid_pre.21@{at}"] for at in spots]
    late = [found[f"resid_pre.25@{at}"] for at in spots]
    is_step = early[0] > 0.5 > early[1] and late[0] < 0.5 < late[1]
    return {
        "prompt": clean, "difference": span, "L21 am": early[0], "L21 last": early[1], "L25 am": late[0],
        "L25 last": late[1], "step": is_step,
    }  # fmt: skip


def opinions(model: Any) -> Found:
    """What contested questions bring into neutral texts, beside absurd and settled ones."""
    controls = "||".join(QUESTION.format(one) for one in CONTROLS)
    rows, results = [], []
    for question in CONTESTED:
        for over in ("mlp_out.*@-1", "attn_out.*@-1", "z.*.*@-1"):
            result = transplant.run(
                model, prompt=QUESTION.format(question), into=NEUTRAL, controls=controls, over=over,
                metric="diff: Yes| No,logprob: Yes| yes,logprob: No| no",
            )  # fmt: skip
            shared = [r for r in result.readings if r.name == "shared"]
            repeated = [r for r in result.readings if r.name == "repeated"]
            row = {"question": question, "over": over, "verdict": result.title.partition(" (")[2].strip(")")}
            names = ("yes - no", "yes", "no")
            row |= {f"shared, {name}": r.value for name, r in zip(names, shared, strict=True)}
            rows.append(row | {"repeated, yes - no": repeated[0].value})
            results.append(result)
    title = "Correlation of what contested questions bring with what control questions bring"
    pages = [Table(rows, title=title), *(r.tables[0].head(10) for r in results[:3])]
    return pages, results[2].tables[0].figures[0]


def compression(model: Any) -> Found:
    """Heads that matter for the time of day, before and after three compressions."""
    options: Any = {"prompt": WORDINGS[0].format("9:00", "am"), "over": "z.*.*", "metric": METRIC, "top": 5}
    edits: dict[str, Callable[[Any], Any]] = {
        "lowrank:rank=386": lambda m: lowrank.apply(m, rank=386),
        "noise:strength=0.1": lambda m: noise.apply(m, strength=0.1),
        "rounding:format=q4_0": lambda m: rounding.apply(m, format="q4_0"),
    }
    before = ablate.run(model, **options)
    rows, tables, pictures = [], [], []
    for name, edit in edits.items():
        result = before_after(before, ablate.run(edit(model), **options), name)
        table = result.tables[0]
        rows.append({
            "edit": name, "agreement of 270 heads": result.reading("agreement").value,
            "clean before": result.reading("clean before").value, "clean after": result.reading("clean after").value,
            "most changed": table[0]["place"], "by": table[0][f"{METRIC} change b-a"],
        })  # fmt: skip
        tables.append(table.head(10))
        pictures.append(table.figures[-1])
    return [Table(rows, title="What heads do for ' morning' against ' evening'"), *pictures, *tables], pictures[-1]


EXPERIMENTS: dict[str, tuple[str, Callable[[Any], Found]]] = {
    "neurons": ("What single neurons do for one answer", neurons),
    "clock": ("Where the time of day is carried", clock),
    "opinions": ("Yes or no: what questions bring along", opinions),
    "compression": ("Where compression hurts", compression),
}


def main() -> None:
    """Run the experiments named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        model = kobza.open("smollm2")
    except KobzaError as error:
        print(f"skipped: {error}")
        return
    for name in given.names or EXPERIMENTS:
        title, experiment = EXPERIMENTS[name]
        blocks, picture = experiment(model)
        for block in blocks:
            if not isinstance(block, Figure):
                print(block, end="\n\n", flush=True)
        if given.docs:
            lead = f"SmolLM2-135M-Instruct. Again: python bench/interventions_experiments.py {name}"
            write_atomic(given.docs / f"experiment-{name}.html", page(title, blocks, lead=lead))
            picture.save(given.docs / "pictures" / f"experiment-{name}.png")


if __name__ == "__main__":
    main()
