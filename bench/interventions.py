"""Ablation and patching on SmolLM2: planned against one hooked forward pass per cell, and against peer libraries.

    python bench/interventions.py [--transformer-lens PYTHON] [--nnsight PYTHON]

All neurons of a layer are switched off on a prompt of 7 tokens, planned; the naive way is timed on a sample of the
same cells, and both must agree within 1e-5 on it. CPU time of one thread, in one run. Wanted (ratio to naive): last
layer 93x, layer 20 at the last position 34x (all positions 9.6x), layer 10 20x, layer 0 13x, patching 24x.

A peer needs an environment of its own, since its requirements do not go with ours; torch comes first, so that no CUDA
package is drawn in:

    python -m venv ENV && ENV/bin/pip install -c constraints.txt torch && ENV/bin/pip install -c constraints.txt \
        "transformer-lens>=4,<5"        # or: nnsight

and its interpreter is given as PYTHON (ENV/bin/python); without one the peer is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core.errors import KobzaError
from kobza.interventions.base import Cell, Edit, Metric, Place, aligned_ids, metrics, places, prompt_ids
from kobza.interventions.planner import Run

TOLERANCE = 1e-5
NAIVE_CELLS = 12
PROMPT = "she sells sea shells by the"
TIME = "the time displayed is 9:00 {}. therefore, it is currently the"
PEERS = ("transformer_lens", "nnsight")


@dataclass(frozen=True)
class Job:
    """Cells of one grid."""

    name: str
    run: Run
    places: Sequence[Place]
    cells: Sequence[Cell]
    metric: Metric

    def sampled(self) -> list[int]:
        """Numbers of the cells that are also done the slow ways; those that change nothing are left out."""
        live = [i for i, cell in enumerate(self.cells) if not self.run.is_empty(cell)]
        return live[:: max(1, len(live) // NAIVE_CELLS)][:NAIVE_CELLS]

    def for_peers(self) -> dict[str, Any]:
        """The sampled cells as plain data."""
        chosen = [(self.places[i], self.cells[i][0]) for i in self.sampled()]
        is_neuron = chosen[0][0].site.name == "neuron"
        cells = [
            {"layer": p.site.layer, "neuron": p.site.index, "last": len(p.positions) == 1}
            if is_neuron
            else {"layer": p.site.layer, "position": p.positions[0], "vector": e.value[0].tolist()}
            for p, e in chosen
        ]
        kind = "neuron" if is_neuron else "resid_pre"
        return {
            "name": self.name, "kind": kind, "ids": self.run.ids, "token": self.metric.tokens[0], "cells": cells,
        }  # fmt: skip


def ablation(model: Any, where: str) -> Job:
    """Every neuron of a layer switched off."""
    ids = prompt_ids(model, PROMPT)
    run = Run(model, ids)
    chosen = places(model, ids, where)
    cells = [(Edit(p.site, p.positions, torch.tensor(0.0)),) for p in chosen]
    return Job(where, run, chosen, cells, metrics(model, "prob", run.top)[0])


def patching(model: Any) -> Job:
    """Every layer x position of the time of day."""
    source, target = (Run(model, ids) for ids in aligned_ids(model, TIME.format("am"), TIME.format("pm")))
    chosen = places(model, source.ids, "resid_pre.*@*")
    empty = [Edit(p.site, p.positions, torch.tensor(0.0)) for p in chosen]
    cells = [(Edit(e.site, e.positions, source.part(e)),) for e in empty]
    return Job("patch resid_pre.*@*", target, chosen, cells, metrics(model, "prob", source.top)[0])


def timed(job: Job, cells: Sequence[Cell], **how: Any) -> tuple[float, torch.Tensor]:
    """Milliseconds of CPU time per cell, and values."""
    begin = time.process_time()
    found = job.run.outcome(cells, [job.metric], **how).values[:, 0]
    return 1e3 * (time.process_time() - begin) / len(cells), found


def peer(library: str, python: str, model: Any, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a peer library takes and gives for the sampled cells of every job; {} without its environment."""
    if not python:
        print(f"{library}: left out, no interpreter was given")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        plan = Path(folder) / "jobs.json"
        plan.write_text(json.dumps([job.for_peers() for job in jobs]), encoding="utf-8")
        script = Path(__file__).with_name("interventions_peers.py")
        words = [python, str(script), library, str(Path(folder) / "model"), str(plan)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{library}: failed: {done.stderr.strip().splitlines()[-1]}")
        return {}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line(job: Job, peers: dict[str, dict[str, Any]]) -> str:
    """One row of the table: planned, naive and peers, with ratios and the largest difference of any."""
    ours, planned = timed(job, job.cells)
    at = job.sampled()
    few = [job.cells[i] for i in at]
    slow, naive = timed(job, few, how="naive")
    errors = [float((planned[at] - naive).abs().max())]
    shown = f"{job.name:24} {ours:8.2f} {slow:8.1f} {slow / ours:7.1f}x"
    for library in PEERS:
        found = peers[library].get(job.name)
        if found:
            errors.append(float((planned[at] - torch.tensor(found["probs"]).double()).abs().max()))
            shown += f" {found['milliseconds']:8.1f} {found['milliseconds'] / ours:7.1f}x"
        else:
            shown += f" {'-':>8} {'-':>8}"
    verdict = "equal" if max(errors) < TOLERANCE else "DIFFERENT"
    return f"{shown}  {max(errors):.1e} {verdict}"


def cheap(model: Any) -> None:
    """The last layer again, for a metric that needs the logits of two tokens only."""
    job = ablation(model, f"neuron.{model.layers - 1}.*")
    metric = metrics(model, "diff: sea| seas", job.run.top)
    begin = time.process_time()
    job.run.outcome(job.cells, metric, crosses=False)
    few = 1e3 * (time.process_time() - begin) / len(job.cells)
    slow, _ = timed(job, job.cells[:NAIVE_CELLS], how="naive")
    print(f"last layer, logits of two tokens only: {few:.3f} ms per cell, {slow / few:.0f}x")


def main() -> None:
    """Print a line per grid."""
    parser = argparse.ArgumentParser()
    for library in PEERS:
        parser.add_argument(f"--{library.replace('_', '-')}", default="", metavar="PYTHON")
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    try:
        model = kobza.open("smollm2")
    except KobzaError as error:
        print(f"skipped: {error}")
        return
    layers = (model.layers - 1, 20, 10, 0)
    jobs = [ablation(model, f"neuron.{layer}.*{at}") for layer in layers for at in ("", "@-1")] + [patching(model)]
    peers = {library: peer(library, given[library], model, jobs) for library in PEERS}
    print("ms of CPU time per cell; ratio of each to planned; largest difference of any to planned")
    print(f"{'grid':24} {'planned':>8} {'naive':>8} {'':8} " + " ".join(f"{p:>17}" for p in PEERS))
    for job in jobs:
        print(line(job, peers), flush=True)
    cheap(model)


if __name__ == "__main__":
    main()
