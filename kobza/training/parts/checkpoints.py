"""Checkpoints that survive a kill at any moment: weights, optimizer, random state and history, whole or not at all.

A checkpoint is a folder `step-00000120` with `tensors.safetensors` and `state.json`, written beside its place, synced
and renamed. The newest two stay; whatever cannot be read is passed over. A sampler whose state is forgotten makes a
resumed run look better (batches repeat), so the state of every generator is part of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kobza.core.errors import BadValue, CannotWrite
from kobza.core.files import atomic_directory
from kobza.models.saving import write_safetensors

SCHEMA = "kobza.checkpoint/1"
KEEP = 2


@dataclass
class State:
    """All that a run needs to go on as if nothing had happened.

    Attributes:
        step: updates done.
        seconds: of training so far.
        tokens: seen so far.
        weights: what is trained, by name.
        optimizer: its `state_dict`.
        random: states of generators by name, as bytes (n,).
        history: rows of the log.
        best: {"step", "value"} of the best evaluation.
        best_weights: the weights there, {} where nobody asked.
        plan: what was asked for; a run with another plan does not go on from here.
    """

    step: int
    seconds: float
    tokens: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Raises:
        CannotWrite: the disk is full or read-only; the checkpoints before it are untouched and used on resuming.
    """
    tensors: dict[str, Tensor] = {f"weights.{name}": tensor.detach() for name, tensor in state.weights.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
    tensors |= {f"random.{name}": tensor for name, tensor in state.random.items()}
    plain = _taken_apart(state.optimizer, "optimizer", tensors)
    numbers = {key: getattr(state, key) for key in ("step", "seconds", "tokens", "history", "best", "plan")}
    place = folder / f"step-{state.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_directory(place, replace=True) as part:
            write_safetensors(part / "tensors.safetensors", tensors)
            text = json.dumps({"schema": SCHEMA, **numbers, "optimizer": plain})
            (part / "state.json").write_text(text, encoding="utf-8")
    except CannotWrite as error:
        before = found(folder)
        kept = f"The checkpoint '{before[0]}' is whole." if before else "There is no checkpoint before it."
        raise CannotWrite(error.message, f"{kept} Free some room; the same command goes on from there.") from error
    for old in found(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    for torn in folder.glob(".step-*.part"):  # of a run that was killed while it wrote
        shutil.rmtree(torn, ignore_errors=True)
    return place


def found(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def put_aside(folder: Path, step: int) -> None:
    """Rename the checkpoint of a step to `broken-step-...`: weights whose very next loss is not finite are not good."""
    place = folder / f"step-{step:08d}"
    if place.exists():
        aside = folder / f"broken-{place.name}"
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)


def load(folder: Path, plan: Mapping[str, Any], may_differ: Sequence[str] = ()) -> State | None:
    """Return the newest checkpoint that can be read, or None.

    Args:
        folder: of the run.
        plan: what is asked for now.
        may_differ: parts of the plan that may be others now.

    Raises:
        BadValue: it belongs to a run with another plan; the message names what differs.
    """
    for place in found(folder):
        try:
            data = json.loads((place / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(place / "tensors.safetensors")
        except (OSError, ValueError, SafetensorError):
            continue
        if data.get("schema") != SCHEMA:
            continue
        _require_same(place, data["plan"], json.loads(json.dumps(plan)), may_differ)
        parts = {kind: _under(tensors, kind) for kind in ("weights", "best", "random")}
        optimizer = _put_together(data.pop("optimizer"), tensors)
        del data["schema"]
        return State(
            weights=parts["weights"], best_weights=parts["best"], random=parts["random"], optimizer=optimizer, **data
        )
    return None


def _require_same(place: Path, seen: Mapping[str, Any], wanted: Mapping[str, Any], but: Sequence[str]) -> None:
    differing = [key for key in sorted({*seen, *wanted} - {*but}) if seen.get(key) != wanted.get(key)]
    if differing:
        said = ", ".join(f"{key}: {seen.get(key)} there, {wanted.get(key)} now" for key in differing[:4])
        raise BadValue(
            f"the checkpoint '{place}' belongs to another run ({said}).", "Name another folder, or remove this one."
        )


def _under(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name[len(kind) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return plain data in which each tensor is {"tensor": its name in `tensors`}; keys keep their type."""
    if isinstance(value, Tensor):
        # a tensor must be contiguous to be written, and a scalar has no axis
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _taken_apart(part, f"{name}.{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return [_taken_apart(part, f"{name}.{n}", tensors) for n, part in enumerate(value)]
    return value


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _put_together(part, tensors) for key, part in value["items"]}
    return [_put_together(part, tensors) for part in value] if isinstance(value, list) else value


def generator_state(generator: torch.Generator) -> Tensor:
    """Return the state of a generator as bytes (n,)."""
    return generator.get_state().clone()
