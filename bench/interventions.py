"""Ablation and patching on SmolLM2: planned against one hooked forward pass per cell, CPU time of one thread.

All neurons of a layer are switched off on a prompt of 7 tokens, planned; the naive way is timed on a sample of the
same cells, and both must agree within 1e-5 on it. Wanted: last layer 93x, layer 20 at the last position 34x (all
positions 9.6x), layer 10 20x, layer 0 13x, patching 24x.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

import kobza
from kobza.core.errors import KobzaError
from kobza.interventions.base import Cell, Edit, Metric, aligned_ids, metrics, places, prompt_ids
from kobza.interventions.planner import Run

TOLERANCE = 1e-5
NAIVE_CELLS = 8
PROMPT = "she sells sea shells by the"
TIME = "the time displayed is 9:00 {}. therefore, it is currently the"


def compared(name: str, run: Run, cells: Sequence[Cell], metric: Metric) -> None:
    """Print milliseconds per cell both ways, their ratio and the largest difference."""
    begin = time.process_time()
    planned = run.outcome(cells, [metric]).values
    ours = (time.process_time() - begin) / len(cells)
    step = max(1, len(cells) // NAIVE_CELLS)
    begin = time.process_time()
    naive = run.outcome(cells[::step], [metric], how="naive").values
    theirs = (time.process_time() - begin) / len(naive)
    error = float((planned[::step] - naive).abs().max())
    verdict = "equal" if error < TOLERANCE else "DIFFERENT"
    print(f"{name:32} {ours * 1e3:8.2f} {theirs * 1e3:8.1f} {theirs / ours:7.1f}x  {error:.1e} {verdict}", flush=True)


def ablation(model: Any, where: str) -> None:
    """Switch every neuron of a layer off."""
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    cells = [(Edit(p.site, p.positions, torch.tensor(0.0)),) for p in places(model, ids, where)]
    compared(where, run, cells, metrics(model, "prob", run.top)[0])


def patching(model: Any) -> None:
    """Every layer x position of the time of day."""
    source, target = (Run(model, ids) for ids in aligned_ids(model, TIME.format("am"), TIME.format("pm")))
    empty = [Edit(p.site, p.positions, torch.tensor(0.0)) for p in places(model, source.ids, "resid_pre.*@*")]
    cells = [(Edit(e.site, e.positions, source.part(e)),) for e in empty]
    compared("patch resid_pre.*@*", target, cells, metrics(model, "prob", source.top)[0])


def main() -> None:
    """Print a line per grid."""
    torch.set_num_threads(1)
    try:
        model = kobza.open("smollm2")
    except KobzaError as error:
        print(f"skipped: {error}")
        return
    print(f"{'grid':32} {'planned':>8} {'naive':>8}  ms of CPU time per cell, ratio, largest difference")
    for layer in (model.layers - 1, 20, 10, 0):
        for position in ("", "@-1"):
            ablation(model, f"neuron.{layer}.*{position}")
    patching(model)


if __name__ == "__main__":
    main()
