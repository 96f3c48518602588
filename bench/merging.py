"""Merging against mergekit: equal tensors, and CPU time, on the same two models and methods.

mergekit lives in an environment of its own; its interpreter is named by MERGEKIT_PYTHON. Both write safetensors; both
are run as a process of their own, whose CPU time is read from the operating system and includes starting the
interpreter. DARE draws its own random numbers in each and is compared in the tests by its mean.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import kobza

SIZE = "layers=8&width=512&heads=8&kv_heads=4&vocabulary=300"
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"merge_method": "linear"}, {}),
    "slerp": ({"merge_method": "slerp", "parameters": {"t": 0.3}}, {"t": 0.3}),
    "task": ({"merge_method": "task_arithmetic"}, {}),
    "ties": ({"merge_method": "ties"}, {"density": 0.5}),
}
OURS = """
import sys, json, kobza
from kobza.edits import merging
a, b, out, method, options = sys.argv[1:]
merging.apply(kobza.open(a), others=[b], method=method, **json.loads(options)).save(out)
"""
THEIRS = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(sys.argv[1]))
run_merge(config, sys.argv[2], options=MergeOptions(copy_tokenizer=False, write_model_card=False))
"""


def recipe(method: str, a: Path, b: Path) -> str:
    """Return mergekit's recipe for a method."""
    about = dict(METHODS[method][0]) | {"dtype": "float32"}
    both = [{"model": str(a), "parameters": {"weight": 1.0}}, {"model": str(b), "parameters": {"weight": 1.0}}]
    if method in ("task", "ties"):
        both[1]["parameters"] = {"weight": 1.0, "density": 0.5} if method == "ties" else {"weight": 1.0}
        return yaml.safe_dump(about | {"base_model": str(a), "models": both[1:]})
    return yaml.safe_dump(about | ({"base_model": str(a)} if method == "slerp" else {}) | {"models": both})


def run(command: list[str]) -> float:
    """CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line per method."""
    python = os.environ.get("MERGEKIT_PYTHON")
    if not python:
        print("skipped: MERGEKIT_PYTHON does not name an interpreter with mergekit")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed in (0, 1):
            kobza.open(f"tiny:llama?{SIZE}&seed={seed}").save(folder / f"m{seed}")
        a, b = folder / "m0", folder / "m1"
        for method, (_, options) in METHODS.items():
            ours, theirs = folder / f"ours-{method}", folder / f"theirs-{method}"
            own = run([sys.executable, "-c", OURS, str(a), str(b), str(ours), method, json.dumps(options)])
            peer = run([python, "-c", THEIRS, recipe(method, a, b), str(theirs)])
            left, right = load_file(ours / "model.safetensors"), _all(theirs)
            worst = max(float((left[n] - right[n]).abs().max()) for n in left)
            print(
                f"{method:8} tensors within {worst:.2g}; CPU {own:.1f} s against {peer:.1f} s, ratio {own / peer:.2f}"
            )


def _all(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


if __name__ == "__main__":
    main()
