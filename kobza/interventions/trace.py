"""Trace: the values at any site of a run, as a table of their sizes and as a file of their numbers.

Source: the residual stream read at named points, Elhage et al. (2021), "A Mathematical Framework for Transformer
Circuits"; single coordinates far above the rest (in `largest`): Dettmers et al. (2022), arXiv:2208.07339.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kobza.core.errors import NothingMatched
from kobza.core.figure import Figure
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.interventions.base import Place, command, places, prompt_ids, record, shown_tokens
from kobza.models.model import Model
from kobza.models.trace import trace


def run(model: Model, *, prompt: str, over: str = "resid_post.*", into: str = "") -> Result:
    """Run a prompt once and tell how large the values at every named place are.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run.
        over: places, `resid_post.*`, `pattern.18.6@-1`, `neuron.29.1123`, `k_rot.3@' am'`; several joined by
            semicolons.
        into: a safetensors file for the values themselves, whole sites (`models.trace.Trace.load` reads it).

    Returns:
        A Result with one table: per place and position the Euclidean norm, mean, largest absolute value and where it
        is; and a picture of the norm, layers x positions, of each kind of site that is in every layer.

    Raises:
        BadValue, UnknownName, OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: one forward pass.
    """
    given = locals()
    ids = prompt_ids(model, prompt)
    chosen = places(model, ids, over)
    if not chosen:
        raise NothingMatched(f"{over!r} names no place.")
    wholes = {(place.site.name, place.site.layer): str(_whole(place)) for place in chosen}
    found = trace(model, ids, list(wholes.values()))
    if into:
        found.save(into)
    shown = shown_tokens(model, ids)
    rows = [row for place in chosen for row in _rows(place, found[wholes[place.site.name, place.site.layer]], shown)]
    caption = command(model, "trace", given)
    table = Table(rows, title="Values", note=caption, figures=_pictures(rows, shown, caption))
    made = record(model, "trace", given, prompt=ids) | {"command": caption}
    return Result(f"Trace of {model.name}", tables=[table], made_by=made)


def _whole(place: Place) -> str:
    return place.site.name if place.site.layer is None else f"{place.site.name}.{place.site.layer}"


def _rows(place: Place, value: Tensor, shown: Sequence[str]) -> list[dict[str, object]]:
    """One row per position of a place; -inf of masked scores is left out."""
    return [_row(place, value[at], at, shown[at]) for at in place.positions]


def _row(place: Place, value: Tensor, at: int, token: str) -> dict[str, object]:
    part = value if place.site.index is None else value[place.site.index]
    flat = part.flatten().double()
    flat = flat[flat.isfinite()]
    where = int(flat.abs().argmax())
    return {
        "site": str(place.site), "layer": place.site.layer, "position": at, "token": token,
        "norm": float(flat.norm()), "mean": float(flat.mean()), "largest": float(flat[where]), "at": where,
    }  # fmt: skip


def _pictures(rows: Sequence[dict[str, object]], shown: Sequence[str], caption: str) -> list[Figure]:
    """The norm, layers x positions, of each site asked in several layers."""
    kinds: dict[str, dict[tuple[object, object], object]] = {}
    for row in rows:
        name, *rest = str(row["site"]).split(".")
        key = ".".join([name, "*", *rest[1:]])
        kinds.setdefault(key, {})[row["layer"], row["position"]] = row["norm"]
    found = []
    for key, norms in kinds.items():
        layers, spots = (sorted({place[axis] for place in norms}) for axis in (0, 1))  # type: ignore[type-var]
        if len(layers) < 2:
            continue
        data = {
            "values": [[norms.get((layer, at)) for at in spots] for layer in layers],
            "rows": list(map(str, layers)),
            "columns": [f"{at} {shown[int(str(at))]}" for at in spots],
            "diverging": False,
        }
        found.append(Figure("image", data, title=f"Norm of {key}", caption=caption, x="position", y="layer"))
    return found
