"""Every method at comparable sizes: bits per byte lost on held-out prose and code, bits per weight, bytes, CPU time.

    .venv/bin/python bench/methods.py [GROUP or EDIT ...] [--poems kobzar.txt]

Groups: see `GROUPS`; `trained` takes the model trained by kobza in float32, which lies on no grid of 4 bits, and reads
the last tenth of its poems, which it has not seen. Without a group all but `trained` are run (an hour of CPU time).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

import kobza
from kobza.core.texts import text
from kobza.measures import bits_per_byte
from kobza.recipes.recipe import chain
from kobza.recipes.running import apply

TEXTS = ("topics[:5000]", "source[:4000]")
TURNED = "slicing:share=1,random=1,calibration_tokens=512"  # one random rotation, folded: the model stays plain
GROUPS: dict[str, tuple[str, ...]] = {
    "lowrank": (
        "lowrank:where=blocks.*.mlp,rank=384,metric=none,store=factors",
        "lowrank:where=blocks.*.mlp,rank=384,metric=moments,store=factors",
        "lowrank:where=blocks.*.mlp,rank=320,metric=moments,store=factors",
        "laser:where=blocks.*.mlp,share=0.1,count=3",
    ),
    "latent": (
        "latent:rank=256", "latent:rank=256,joint=false", "latent:rank=256,metric=none", "latent:rank=192",
        "latent:rank=128",
    ),
    "sharing": (
        "sharing:layers=12", "sharing:layers=12,keep=last", "sharing:layers=12,keep=mean", "layer_drop:layers=13",
    ),
    "drops": tuple(f"layer_drop:drops=3,by={by}" for by in ("influence", "entropy", "loss", "greedy")),
    "turned": (TURNED, f"{TURNED} + rounding:bits=3", "rounding:bits=3,rotate=1", "rounding:bits=3,outliers=0.01"),
    "importance": (
        "rounding:bits=3,rule=search,importance=inputs", "rounding:bits=3,rule=search,importance=inputs,shuffle=1",
    ),
    "shuffled": tuple(
        f"{method}:bits={bits},calibration_tokens=1024{control}"
        for method in ("gptq", "awq") for bits in (4, 3, 2) for control in ("", ",shuffle=1")
    ),
    "plain": ("rounding:bits=4,symmetric=true", "rounding:bits=2", "rounding:bits=2,rule=search"),
    "narrow": (
        "narrowing:share=0.9", "narrowing:share=0.9,refit=false", "narrowing:share=0.75",
        "narrowing:what=heads,share=0.67", "narrowing:what=groups,share=0.67",
        "narrowing:what=groups,share=0.67 + narrowing:share=0.75",
    ),
    "ends": tuple(
        f"rounding:where=embed{end},{form}"
        for form in ("format=q4_0", "format=q4_0,rule=absmax", "bits=3", "bits=2,block=16")
        for end in (".in", ".out", "")
    ),
}  # fmt: skip
TRAINED = tuple(
    f"{spec}{more}"
    for bits in (4, 3, 2)
    for spec, more in (
        (f"rounding:bits={bits}", ""),
        (f"rounding:bits={bits},rule=search", ""),
        (f"gptq:bits={bits}", ",calibration={poems}"),
        (f"gptq:bits={bits},shuffle=1", ",calibration={poems}"),
        (f"awq:bits={bits}", ",calibration={poems}"),
    )
)


def read(model: Any, texts: tuple[str, ...], window: int) -> list[float]:
    """Bits per byte on every text."""
    return [bits_per_byte.measure(model, name, window=window, overlap=0).value for name in texts]


def run(name: str, specs: tuple[str, ...], texts: tuple[str, ...], window: int = 511) -> None:
    """Print a line per edit."""
    model = kobza.open(name)
    whole = read(model, texts, window)
    print(f"{name}: {' '.join(f'{value:.4f}' for value in whole)} bit/B, {model.stored_bytes:,} bytes", flush=True)
    for spec in specs:
        begin = time.process_time()
        edited = apply(model, chain(spec))
        seconds = time.process_time() - begin
        lost = [now - before for now, before in zip(read(edited, texts, window), whole, strict=True)]
        facts = edited.changes[-1].facts
        more = [f"{edited.stored_bytes / model.stored_bytes:.3f} of the bytes", f"{seconds:.0f} s"]
        more += [f"{facts[key]}" for key in ("removed", "latent_bytes") if key in facts]
        more += [f"{facts['bits_per_weight']:.2f} bits a weight"] if "bits_per_weight" in facts else []
        shown = spec if len(spec) < 100 else spec.partition(",calibration=")[0]
        print(f"{shown} | {' | '.join(f'{value:+.4f}' for value in lost)} | {', '.join(more)}", flush=True)


def main() -> None:
    """Run the groups named."""
    torch.set_num_threads(1)
    given = sys.argv[1:]
    if "--poems" in given:
        path = given[given.index("--poems") + 1]
        size = len(text(path))
        specs = tuple(spec.format(poems=f"{path}[:{size * 9 // 10}]") for spec in TRAINED)
        return run("kobzar", specs, (f"{path}[{size * 9 // 10}:]",), 255)
    for group in given or GROUPS:
        run("smollm2", GROUPS.get(group, (group,)), TEXTS)
    return None


if __name__ == "__main__":
    main()
