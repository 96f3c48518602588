"""Merging against mergekit: equal tensors, and CPU time, on the same two models and methods.

mergekit lives in an environment of its own; its interpreter is named by MERGEKIT_PYTHON. Both write safetensors; both
are run as a process of their own, whose CPU time and largest resident size are read from the operating system and
include starting the interpreter and its libraries. DARE draws its own random numbers in each and is compared in the
tests by its mean. Under TIES two entries of equal size at the threshold may be kept the one or the other way round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import kobza

SIZE = os.environ.get("SIZE", "layers=16&width=640&heads=10&kv_heads=5&vocabulary=300")  # about 80M parameters
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


def run(command: list[str]) -> tuple[float, float]:
    """CPU seconds and the largest resident size [MB] of a process."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, state, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(state)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read().decode()[-2000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


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
            own, room = run([sys.executable, "-c", OURS, str(a), str(b), str(ours), method, json.dumps(options)])
            peer, their_room = run([python, "-c", THEIRS, recipe(method, a, b), str(theirs)])
            left, right = load_file(ours / "model.safetensors"), _all(theirs)
            apart = torch.cat([(left[n] - right[n]).abs().flatten() for n in left])
            worst, other = float(apart.max()), int((apart > 1e-6).sum())
            print(
                f"{method:8} {other} of {len(apart):,} entries differ by more than 1e-6, at most {worst:.2g}; "
                f"CPU {own:.1f} s against {peer:.1f} s, ratio {own / peer:.2f}; "
                f"peak {room:.0f} MB against {their_room:.0f} MB, ratio {room / their_room:.2f}"
            )


def _all(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


if __name__ == "__main__":
    main()
