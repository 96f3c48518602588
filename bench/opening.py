"""Opening SmolLM2 from its GGUF file: transformers against kobza, the first time and every later time.

Each side runs in a process of its own with one thread; seconds are CPU time of model and tokenizer together (least of
`REPEATS`), imports excluded. Wanted: the first opening, which dequantizes and fills the cache, at least 3 times as
fast as transformers' `from_pretrained(gguf_file=...)`, later ones at least 20 times. Every side reports the sum of
some logits and the ids of a text: they must be equal.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 2
WANTED = {"first": 3.0, "later": 20.0}
TEXT = "The oceans and the seas of the world, 1234."


def by_transformers() -> tuple[Any, Any]:
    """Open model and tokenizer by transformers."""
    import transformers.modeling_utils
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # it asks for the package accelerate, which it does not use on a CPU
    transformers.modeling_utils.is_accelerate_available = lambda *_: True
    path = _path()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    words = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, words(TEXT, add_special_tokens=False).input_ids


def by_kobza() -> tuple[Any, Any]:
    """Open model and tokenizer by kobza."""
    import kobza

    model = kobza.open("smollm2")
    return model.module, model.tokenizer.encode(TEXT)


def _path() -> Path:
    from kobza.models.sources import find

    return find("smollm2").path


def measure(side: str) -> dict[str, Any]:
    """Open once in this process."""
    import gguf  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import kobza.models.opening  # noqa: F401

    torch.set_num_threads(1)
    _path()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, wall = time.process_time(), time.perf_counter()
    module, ids = by_transformers() if side == "transformers" else by_kobza()
    seconds, waited = time.process_time() - begin, time.perf_counter() - wall
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    with torch.inference_mode():
        total = float(module(torch.tensor([ids])).logits.double().sum())
    return {"seconds": seconds, "wall": waited, "peak_mib": peak, "ids": ids, "logits": total}


def apart(side: str, cache: str) -> dict[str, Any]:
    """Open once in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, side]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run that took least CPU time."""
    return min(runs, key=lambda run: run["seconds"])


def main() -> int:
    """Print the ratios; return 1 if one misses what is wanted."""
    reference, first, later = [], [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as cache:
            reference.append(apart("transformers", cache))
            first.append(apart("kobza", cache))
            later += [apart("kobza", cache) for _ in range(2)]
    runs = [*reference, *first, *later]
    equal = all((run["ids"], run["logits"]) == (runs[0]["ids"], runs[0]["logits"]) for run in runs)
    base = least(reference)
    print(f"transformers: {base['seconds']:.2f} s CPU ({base['wall']:.2f} s wall), {base['peak_mib']:.0f} MiB")
    ok = equal
    for name, found in (("first", least(first)), ("later", least(later))):
        ratio = base["seconds"] / found["seconds"]
        ok &= ratio >= WANTED[name]
        took = f"{found['seconds']:.2f} s CPU ({found['wall']:.2f} s wall), {found['peak_mib']:.0f} MiB"
        print(f"kobza, {name}: {took}: {ratio:.1f} times as fast (wanted {WANTED[name]:g})")
    print("ids and logits equal" if equal else "ids or logits DIFFER")
    return 0 if ok else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        sys.exit(main())
