"""Cost: what removing parts of a model costs in bits per byte of a text.

The same places are replaced at every position of the text, and the yardstick is read with and without, paired over
chunks. With controls: equally many other places of the same kind and layers, drawn at random.

Sources: Michel et al. (2019), arXiv:1905.10650 (a model without single heads); the code length, Shannon (1948).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import Place, command, generator, record, sets, width
from kobza.interventions.replacing import Replacement
from kobza.measures import bits_per_byte
from kobza.models.hooks import hooked
from kobza.models.model import Model
from kobza.models.sites import GLOBAL, Site


def run(
    model: Model,
    *,
    over: str = "block.*",
    text: str = "topics",
    kind: Literal["zero", "mean", "value", "resample", "noise"] = "zero",
    value: float = 0.0,
    strength: float = 1.0,
    calibration: str = "source",
    limit: int = 4000,
    window: int = 1024,
    together: bool = False,
    controls: int = 1,
    seed: int = 0,
) -> Result:
    """Measure bits per byte while the named places are replaced at every position.

    Args:
        model: the model; it is not changed.
        over: places without positions, `z.18.6`, `mlp_out.*`, `block.3`; places joined by `+` are removed together;
            several joined by semicolons.
        text: the text that is measured.
        kind: what is put there: zero; the mean over `calibration`; `value`; a sample or noise (see ablate).
        value: the number put there by kind=value [number].
        strength: of the noise, in standard deviations over `calibration` [factor, 0 ..].
        calibration: a named text or a file; its first 256 tokens give mean, deviation and samples.
        limit: bytes taken from the beginning of the text [bytes, 0 ..]; 0 takes all.
        window: tokens the model sees at most [tokens, 1 ..].
        together: all places are one set, instead of one after another.
        controls: random sets of as many other places of the same kind per set [count, 0 ..].
        seed: of the random sets, samples and noise [integer, 0 ..].

    Returns:
        A Result: readings `clean` and, of the costliest set, `without` and `control`; a table with bits per byte of
        every set, its cost over the unedited model with a paired 95 % interval, and the mean cost of its controls.

    Raises:
        BadValue: a place with a position, which a text of another length does not have.
        UnknownName, OutOfRange: see `interventions.base`.

    Cost: one pass over the text per set and per control.
    """
    given = locals()
    if controls < 0:
        raise OutOfRange(f"controls={controls}: 0 or more.")
    chosen = _sets(model, over, together)
    replacement = Replacement(model, kind, value, strength, calibration, seed)
    made = record(model, "cost", given) | {"command": command(model, "cost", given)}

    def measured(sites: Sequence[Site]) -> Reading:
        with hooked(model, replacement.hooks(sites)):
            return bits_per_byte.measure(model, text, limit=limit, window=window, overlap=min(256, window // 4))

    clean = bits_per_byte.measure(model, text, limit=limit, window=window, overlap=min(256, window // 4))
    draw, rows, readings = generator(seed), [], []
    with task("sets", len(chosen) * (1 + controls)) as shown:
        for name, sites in chosen:
            without = measured(sites)
            shown.step()
            others = [_others(model, sites, draw) for _ in range(controls)]
            control = [measured(one) for one in others if one]
            shown.step(controls)
            rows.append(_row(name, clean, without, control))
            readings.append((without, control))
    table = Table(rows, units=dict.fromkeys(("bits_per_byte", "cost", "low", "high", "control"), "bit/B"),
                  title=f"What it costs to remove them ({kind})", note=made["command"])  # fmt: skip
    label = "" if controls else " (uncontrolled)"
    return Result(f"Cost of {over}{label}", _readings(clean, rows, readings), [table.sorted("cost", reverse=True)],
                  made_by=made)  # fmt: skip


def _sets(model: Model, over: str, together: bool) -> list[tuple[str, list[Site]]]:
    """Names and sites of the sets; positions are refused."""
    found = sets(model, [0], over)
    if "@" in over:
        raise BadValue(f"{over!r} names a position; a text is changed at all of them.", "Leave the position out.")
    each: list[tuple[str, list[Place]]] = [(place.short, list(place.members)) for place in found]
    if together:
        each = [(over, list(dict.fromkeys(member for _, members in each for member in members)))]
    return [(name, [member.site for member in members]) for name, members in each]


def _others(model: Model, sites: Sequence[Site], draw: torch.Generator) -> list[Site]:
    """As many other places of the same kind: other indices of any layer, or other layers; [] if there are too few."""
    taken = set(sites)
    found: list[Site] = []
    for site in sites:
        if site.name in GLOBAL:
            return []
        indices = range(width(model, site)) if site.index is not None else [None]
        left = [replace(site, layer=layer, index=i) for layer in range(model.layers) for i in indices]
        left = [one for one in left if one not in taken]
        if not left:
            return []
        found.append(left[int(torch.randint(len(left), (), generator=draw))])
        taken.add(found[-1])
    return found


def _row(name: str, clean: Reading, without: Reading, control: Sequence[Reading]) -> dict[str, object]:
    difference = clean.compare(without)
    row = {"without": name, "bits_per_byte": without.value, "cost": difference.value}
    row |= {"low": difference.low, "high": difference.high}
    costs = [one.value - clean.value for one in control]
    return row | {"control": sum(costs) / len(costs) if costs else None}


def _readings(
    clean: Reading, rows: Sequence[dict[str, object]], found: Sequence[tuple[Reading, Sequence[Reading]]]
) -> list[Reading]:
    at = max(range(len(rows)), key=lambda i: found[i][0].value)
    without, control = found[at]
    named = [replace(clean, name="clean"), replace(without, name="without", note=f"without {rows[at]['without']}")]
    note = "without as many others, drawn at random"
    return named + [replace(one, name="control", note=note) for one in control[:1]]
