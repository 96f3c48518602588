"""Cut SmolLM2 to three quarters of its width, heal it by distillation, and read what is left to lose, step by step.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 \\
        .venv/bin/python bench/healing.py FOLDER [--steps 340] [--rate 6e-4]

The sliced and the healed model are kept in FOLDER; a run that is killed goes on where it was. The two variables keep
memory from going back to the system after each product, which a third of the CPU time would otherwise be spent on.
Needs a CPU with bfloat16 to stay within twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.edits import healing, slicing
from kobza.measures import bits_per_byte

TEXTS = ("topics[:5000]", "source[:4000]")  # held out
READ = ("topics[20000:]", "source[20000:]")  # to distil on
PLACES = (*(f"topics[{at}:]" for at in range(50000, 400000, 100000)),
          *(f"source[{at}:]" for at in range(40000, 240000, 60000)))  # fmt: skip


def read(model: Any) -> str:
    """Bits per byte on every text."""
    found = [bits_per_byte.measure(model, text, window=511, overlap=0).value for text in TEXTS]
    return " ".join(f"{value:.4f}" for value in found)


def sliced(folder: Path, tokens: int) -> Any:
    """The sliced model, opened if it was made before."""
    kept = folder / f"sliced-{tokens}"
    if kept.exists():
        return kobza.open(kept)
    begin = time.process_time()
    model = slicing.apply(kobza.open("smollm2"), share=0.75, calibration=PLACES, calibration_tokens=tokens)
    seconds = time.process_time() - begin
    print(f"sliced with {tokens} tokens: {read(model)} bit/B, {seconds:.0f} s of CPU", flush=True)
    model.save(kept)
    return kobza.open(kept)


def main() -> None:
    """Slice, heal, and print a line for each."""
    given = argparse.ArgumentParser()
    given.add_argument("folder", type=Path)
    given.add_argument("--steps", type=int, default=340)
    given.add_argument("--rate", type=float, default=6e-4)
    given.add_argument("--tokens", type=int, default=12288)
    options = given.parse_args()
    torch.set_num_threads(1)
    model = sliced(options.folder, options.tokens)
    if not options.steps:
        return
    healed = healing.apply(
        model, original="smollm2", what="all", steps=options.steps, rate=options.rate, batch=2, window=256,
        number="bfloat16", calibration=READ,
    )  # fmt: skip
    facts = {key: healed.changes[-1].facts[key] for key in ("divergence_before", "divergence", "tokens", "cpu_seconds")}
    print(f"healed, {options.steps} steps at {options.rate}: {read(healed)} bit/B, {json.dumps(facts)}", flush=True)
    target = options.folder / f"healed-{options.steps}-{options.rate}"
    if not target.exists():
        healed.save(target)


if __name__ == "__main__":
    main()
