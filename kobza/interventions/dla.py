"""Direct logit attribution: what each layer, head or neuron writes straight into the answer.

The last stream is a sum: embed + all attn_out + all mlp_out, and attn_out is a sum over heads, mlp_out one over
neurons. With the scale of the final norm held at its value, the logit of a token is linear in that sum, so it falls
into one number per part. What a part does through later layers is not seen: the exact ablation stands beside it.

Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits"; Wang et al. (2022),
arXiv:2211.00593, section 3.1; self-repair behind a direct effect: McGrath et al. (2023), arXiv:2307.15771.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import Edit, Metric, Place, metrics, positions, prompt_ids, record, shown_tokens
from kobza.interventions.planner import Run
from kobza.models.model import Model
from kobza.models.sites import Site
from kobza.models.states import head

Split = Literal["layers", "heads", "neurons"]
PROBE = 1e4  # length of probes of a norm: its epsilon (1e-5 and the like) vanishes beside it
NORMS = {"attn_out": "norm1_post", "mlp_out": "norm2_post"}
POINTS = {"embed": 0, "attn_out": 1, "z": 1, "mlp_out": 2, "neuron": 2}


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with its scale held at one input x (D): linear, up to a constant.

    Attributes:
        gain: (D,) what each coordinate is multiplied by, the frozen scale included.
        is_centered: whether the mean over coordinates is taken away first (LayerNorm).
        constant: (D,) added behind.
    """

    gain: Tensor
    is_centered: bool
    constant: Tensor

    @classmethod
    def at(cls, norm: Any, x: Tensor) -> FrozenNorm:
        """Find gain and constant by probing the module, whatever its class.

        Raises:
            BadValue: it is neither an RMS norm nor a LayerNorm: probed and actual values differ.
        """
        signs = torch.ones_like(x)
        signs[1::2] = -1
        up, down, flat = norm(torch.stack([PROBE * signs, -PROBE * signs, PROBE * torch.ones_like(x)]))
        constant, weight = (up + down) / 2, (up - down) / 2 * signs
        is_centered = bool((flat - constant).abs().max() < 1e-2 * weight.abs().max())
        moved = (x - x.mean() if is_centered else x) * weight
        real = norm(x) - constant
        scale = (moved @ real) / (moved @ moved)
        if not torch.allclose(moved * scale, real, rtol=1e-3, atol=1e-3 * float(real.abs().max())):
            raise BadValue(f"{type(norm).__name__} is no norm that divides by one scale per position.")
        return cls(weight * scale, is_centered, constant)

    def linear(self, part: Tensor) -> Tensor:
        """Return what a part (..., D) of x contributes to the normed value."""
        part = part - part.mean(-1, keepdim=True) if self.is_centered else part
        return part * self.gain

    def pulled(self, direction: Tensor) -> Tensor:
        """Return the direction (D,) in front of the norm that reads what `direction` reads behind it."""
        back = direction * self.gain
        return back - back.mean() if self.is_centered else back


def run(
    model: Model,
    *,
    prompt: str,
    metric: str = "logit",
    split: Literal["layers", "heads", "neurons"] = "layers",
    at: str = "-1",
    top: int = 100,
    exact: bool = True,
    batch: int = 256,
) -> Result:
    """Split the logit of a token into what each part of the model writes into it directly.

    Args:
        model: the model; it is not changed.
        prompt: the text that is run.
        metric: logit or diff; a token may follow a colon (else the likeliest).
        split: layers (embed, attn_out, mlp_out), heads (attn_out by head), or neurons (mlp_out by neuron).
        at: one position, whose next token is asked about: a number, `last`, or a token in quotes.
        top: largest rows of the table [count, 1 ..].
        exact: also set each row's part to zero at that position, and state the correlation; without it the result is
            labelled uncontrolled.
        batch: exact cells run together at most [count, 1 ..].

    Returns:
        A Result: a table of parts (largest first) with `direct` [logit], `over mean` (less what the part writes
        into the average token, which no probability sees) and, with exact, the change when the part is missing; and
        readings `metric`, `sum` (of all parts), `rest` (biases, and a soft cap's bend), `correlation`.

    Raises:
        BadValue: another metric; a final norm that cannot be frozen; several positions.
        OutOfRange, EmptyText, NothingMatched: see `interventions.base`.

    Cost: one forward pass; exact costs a partial one per row.
    """
    given = locals()
    ids = prompt_ids(model, prompt)
    clean = Run(model, ids)
    spot = _spot(model, ids, at)
    wanted = _metric(model, clean, metric, spot)
    readers, value = _readers(clean, wanted, spot)
    parts = list(_parts(clean, split, spot, readers))
    total = sum(direct for _, direct, _ in parts)
    made = record(model, "dla", given, prompt=ids)
    shown = sorted(parts, key=lambda part: -abs(part[1]))[:top]
    changes = _exact(clean, [place for place, _, _ in shown], wanted, spot, batch) if exact else []
    label = "" if exact else " (uncontrolled)"
    caption = f"Direct contributions to {wanted.text} at position {spot} of {prompt!r}, by {split}, {model.name}."
    rows = [_row(place, direct, over, changes[i : i + 1]) for i, (place, direct, over) in enumerate(shown)]
    units = dict.fromkeys(("direct", "over mean", "without it"), "logit")
    table = Table(
        rows, units=units, title=f"Written directly into {wanted.text}{label}", note=caption,
        figures=[_figure(parts, split, caption)],
    )  # fmt: skip
    readings = [
        Reading("metric", value, "logit", record=made, note=f"after {shown_tokens(model, ids)[spot]!r}"),
        Reading("sum", total, "logit", record=made, note=f"of {len(parts)} parts"),
        Reading("rest", value - total, "logit", record=made, note="biases, and the bend of a soft cap"),
    ]
    if exact:
        readings.append(_correlation(rows, made))
    return Result(f"Direct logit attribution by {split}{label}", readings, [table], made_by=made)


def _spot(model: Model, ids: list[int], at: str) -> int:
    groups = positions(model, ids, at)
    if len(groups) != 1 or len(groups[0][0]) != 1:
        raise BadValue(f"at={at!r} is not a single position.", "Give a number, last, or a token in quotes.")
    return groups[0][0][0]


def _metric(model: Model, clean: Run, text: str, spot: int) -> Metric:
    logits = head(model, clean.normed(clean.streams[-1][:, spot]))[0]
    found = metrics(model, text, int(logits.argmax()))
    if len(found) != 1 or found[0].name not in ("logit", "diff"):
        raise BadValue(f"metric {text!r} is not linear in the stream.", "Take logit or diff.")
    return found[0]


@torch.inference_mode(False)
def _readers(clean: Run, metric: Metric, spot: int) -> tuple[Tensor, float]:
    """Directions (2, D) of the last stream that read the metric and the mean logit; and the metric's value."""
    x = clean.streams[-1][0, spot].clone()
    state = clean.normed(x).detach().requires_grad_()
    with torch.enable_grad():
        logits = head(clean.model, state[None]).float()
        value = metric.read(logits)[0]
        wanted = torch.autograd.grad(value, state, retain_graph=True)[0]
        # a difference of two tokens loses the mean by itself
        mean = torch.zeros_like(wanted) if metric.name == "diff" else torch.autograd.grad(logits.mean(), state)[0]
    norm = FrozenNorm.at(clean.normed, x)
    return torch.stack([norm.pulled(wanted), norm.pulled(mean)]), float(value.detach())


def _parts(clean: Run, split: Split, spot: int, readers: Tensor) -> Iterator[tuple[Place, float, float]]:
    """Yield (place, contribution, contribution beyond the mean token's) of every part."""
    sites = [Site("embed")]
    for layer in range(clean.model.layers):
        sites.append(Site("z" if split == "heads" else "attn_out", layer))
        sites.append(Site("neuron" if split == "neurons" else "mlp_out", layer))
    for site in sites:
        found = _read(clean, site, spot, readers).double().tolist()
        for index, (direct, mean) in enumerate(found):
            is_split = site.name in ("z", "neuron")
            one = Site(site.name, site.layer, index if is_split else None)
            yield Place(one, (spot,), str(spot)), direct, direct - mean


def _read(clean: Run, site: Site, spot: int, readers: Tensor) -> Tensor:
    """What each part of a site contributes to the two readers, (parts, 2)."""
    if site.name == "z":
        assert site.layer is not None
        return head_outs(clean, site.layer, spot) @ readers.T
    value = clean.value(site.name, site.layer)[spot]
    if site.name != "neuron":
        return (readers @ value)[None]
    through = _written(clean, site.layer or 0, "mlp_out", spot)
    down = clean.model.matrix(f"blocks.{site.layer}.mlp.down")  # (D, F)
    seen = torch.stack([through.pulled(reader) for reader in readers]) if through else readers
    return value[:, None] * (seen * _scale(clean.model, "mlp_out") @ down).T


def head_outs(clean: Run, layer: int, spot: int) -> Tensor:
    """Return what each head adds to the stream at a position, (H, D); with the output bias they sum to attn_out."""
    z = clean.value("z", layer)[spot]  # (H, E)
    o = clean.model.matrix(f"blocks.{layer}.attn.o").unflatten(1, z.shape)  # (D, H, E)
    outs = torch.einsum("dhe,he->hd", o, z) * _scale(clean.model, "attn_out")
    through = _written(clean, layer, "attn_out", spot)
    return through.linear(outs) if through else outs


def _scale(model: Model, site: str) -> float:
    entry = model.family.scale.get(site, "")
    return float(getattr(model.config, entry)) if entry else 1.0


def _written(clean: Run, layer: int, site: str, spot: int) -> FrozenNorm | None:
    """The norm between a sublayer and the stream, frozen at what went into it; None where there is none."""
    path = clean.model.family.block.get(NORMS[site])
    if path is None:
        return None
    seen: list[Tensor] = []
    norm = clean.blocks[layer].get_submodule(path)
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, spot]))
    try:
        with torch.inference_mode():
            clean._block(layer, clean.streams[layer], 0)
    finally:
        handle.remove()
    return FrozenNorm.at(norm, seen[0])


def _exact(clean: Run, chosen: list[Place], metric: Metric, spot: int, batch: int) -> list[float]:
    """Change of the metric when a place is set to zero; of the tokens up to the position asked about."""
    if not chosen:
        raise OutOfRange("top=0: at least 1 row.")
    cut = clean if spot == clean.length - 1 else Run(clean.model, clean.ids[: spot + 1])
    cells = [(Edit(place.site, place.positions, torch.tensor(0.0)),) for place in chosen]
    found = cut.outcome(cells, [metric], batch=batch).values[:, 0]
    return (found - cut.clean([metric]).values[0, 0]).tolist()


def _row(place: Place, direct: float, over: float, change: list[float]) -> dict[str, object]:
    row: dict[str, object] = {"part": place.short, "direct": direct, "over mean": over}
    return row | ({"without it": change[0]} if change else {})


def _correlation(rows: list[dict[str, Any]], made: dict[str, Any]) -> Reading:
    both = torch.tensor([[row["direct"], -row["without it"]] for row in rows if row["part"] != "embed"]).double()
    both = both - both.mean(0)
    value = float((both[:, 0] @ both[:, 1]) / (both[:, 0].norm() * both[:, 1].norm()).clamp_min(1e-30))
    note = f"of direct contribution and loss by zeroing, {len(both)} largest parts without the embedding"
    return Reading("correlation", value, "", record=made, note=note)


def _figure(parts: list[tuple[Place, float, float]], split: Split, caption: str) -> Figure:
    words = f"Contribution beyond the mean token's [logit]. {caption}"
    if split == "layers":
        series = [
            {"name": name, "x": [p.site.layer for p, *_ in own], "y": [over for *_, over in own]}
            for name in ("attn_out", "mlp_out")
            for own in [[part for part in parts if part[0].site.name == name]]
        ]
        data: dict[str, Any] = {"series": series, "hlines": [{"y": 0, "label": ""}]}
        return Figure("lines", data, title="Direct contributions", caption=words, x="layer", y="logit")
    if split == "heads":
        values: dict[int, list[float]] = {}
        for place, _, over in parts:
            if place.site.name == "z":
                values.setdefault(place.site.layer or 0, []).append(over)
        data = {"values": list(values.values()), "rows": list(map(str, values)), "diverging": True}
        return Figure("image", data, title="Direct contributions", caption=words, x="head", y="layer")
    best = sorted(parts, key=lambda part: -abs(part[2]))[:30]
    data = {"labels": [place.short for place, *_ in best], "values": [over for *_, over in best]}
    return Figure("bars", data, title="Direct contributions", caption=words, y="logit")
