"""Edits that make a model smaller, at equal bits: bits per byte lost on held-out prose and code, and CPU time.

The peer of every data-aware edit is plain rounding at the same bits per weight, in the same run; `shuffle=1` is the
control. Without arguments the short list below is run (about 25 minutes of CPU time); or name edits:

    .venv/bin/python bench/shrinking.py "gptq:bits=3,calibration_tokens=4096" "slicing:share=0.75"
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

import kobza
from kobza.measures import bits_per_byte
from kobza.recipes.recipe import chain
from kobza.recipes.running import apply

TEXTS = ("topics[:5000]", "source[:4000]")
EDITS = (
    "rounding:format=q4_0",
    "gptq:format=q4_0,calibration_tokens=4096",
    "rounding:bits=3",
    "rounding:bits=3,rule=search",
    "gptq:bits=3,calibration_tokens=4096",
    "gptq:bits=3,calibration_tokens=1024,shuffle=1",
    "gptq:bits=2,calibration_tokens=4096",
    "slicing:refit=false,calibration_tokens=4096",
    "slicing:calibration_tokens=4096",
)


def read(model: Any) -> list[float]:
    """Bits per byte on every text."""
    return [bits_per_byte.measure(model, text, window=511, overlap=0).value for text in TEXTS]


def main() -> None:
    """Print a line per edit."""
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    whole = read(model)
    print(f"{'unedited':50} {whole[0]:.4f} {whole[1]:.4f} bit/B, {model.stored_bytes:,} bytes")
    for spec in sys.argv[1:] or EDITS:
        begin = time.process_time()
        edited = apply(model, chain(spec))
        seconds = time.process_time() - begin
        lost = [now - before for now, before in zip(read(edited), whole, strict=True)]
        facts = edited.changes[-1].facts
        bits = f"{facts['bits_per_weight']:.2f} bits" if "bits_per_weight" in facts else edited.changes[-1].kind
        print(f"{spec:50} {lost[0]:+.4f} {lost[1]:+.4f}, {bits}, {edited.stored_bytes:,} bytes, {seconds:.0f} s")


if __name__ == "__main__":
    main()
