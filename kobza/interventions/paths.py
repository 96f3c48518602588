"""Path patching: how much of a part's effect reaches another part straight, past everything between them.

Two runs differ in a word. The sender's output of one run is put into the other, but only the receiver is allowed to see
it: all attention between them (and, with through=nothing, all MLPs) keeps its own value. What the receiver computes
from the changed stream is then put into a run that is otherwise untouched, and the metric is read.

With through=nothing the stream at the receiver is exactly its own plus the sender's difference, so nothing between them
is run at all. As a control a random difference of equal norm takes the sender's place.

Sources: Wang et al. (2022), arXiv:2211.00593 (section 3.1, appendix B); Goldowsky-Dill et al. (2023), arXiv:2304.05969.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.result import Reading, Result
from kobza.interventions.base import (
    Edit,
    Metric,
    Place,
    aligned_ids,
    generator,
    metrics,
    places,
    record,
    shown_tokens,
)
from kobza.interventions.grid import Grid
from kobza.interventions.planner import Outcome, Run
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import Site
from kobza.models.states import head

SENDERS = ("embed", "head_out", "attn_out", "mlp_out")
BEHIND = ("resid_mid", "gate", "up", "neuron", "mlp_out")  # of a block: behind its attention
BEFORE = ("q", "k", "v", "q_rot", "k_rot", "scores", "pattern", "z", "head_out", "attn_out", "resid_pre")
Through = Literal["nothing", "mlps"]


def run(
    model: Model,
    *,
    clean: str,
    corrupt: str,
    senders: str = "head_out.*.*",
    receiver: str = "logits",
    metric: str = "logit",
    through: Literal["nothing", "mlps"] = "nothing",
    direction: Literal["denoise", "noise"] = "denoise",
    controls: int = 1,
    batch: int = 64,
    seed: int = 0,
) -> Result:
    """Patch the direct path from each sender to one receiver.

    Args:
        model: the model; it is not changed.
        clean: the prompt with the answer asked about.
        corrupt: the same prompt with a word changed; it must have as many tokens.
        senders: places that write into the stream: `head_out.*.*`, `mlp_out.*`, `attn_out.3@-1`, `embed@*`; several
            joined by semicolons. Those that stand behind the receiver are left out.
        receiver: one place that reads from it: `q.18.6`, `k.1.2`, `v.18.2@-1`, `mlp_out.20`; or logits, at the last
            position.
        metric: prob, logit, diff or top1; a token may follow a colon (else the clean run's likeliest).
        through: nothing: MLPs between keep their values; mlps: they are computed again from what reaches them.
        direction: denoise puts the clean sender into the corrupt run, noise the corrupt one into the clean run.
        controls: random differences tried per sender; 0 leaves the result uncontrolled [count, 0 ..].
        batch: senders run together at most [count, 1 ..].
        seed: of the random differences [integer, 0 ..].

    Returns:
        A Result: a table of senders (largest change first) with its picture, and readings `clean`, `corrupt`,
        `largest`, `control` (largest change by a random difference).

    Raises:
        BadValue: prompts that do not correspond, a sender that does not write into the stream, a receiver that is no
            single place, or no sender in front of it.
        UnknownName, OutOfRange, NothingMatched: see `interventions.base`.

    Cost: per sender the receiver's block and what lies above it; with through=mlps also all blocks between.
    """
    given = locals()
    ids, other_ids = aligned_ids(model, clean, corrupt)
    runs = {"clean": Run(model, ids), "corrupt": Run(model, other_ids)}
    source, target = (runs["clean"], runs["corrupt"]) if direction == "denoise" else (runs["corrupt"], runs["clean"])
    wanted = metrics(model, metric, runs["clean"].top)[:1]
    if wanted[0].name == "loss" or batch < 1 or controls < 0:
        raise BadValue(f"metric={metric!r}, batch={batch}, controls={controls}: take prob, logit, diff or top1.")
    paths = _Paths(target, _receiver(model, target.ids, receiver), through, wanted[0], batch)
    chosen = [place for place in places(model, ids, senders) if paths.is_behind(place)]
    if not chosen:
        raise BadValue(f"no sender of {senders!r} stands in front of {receiver!r}.", "Senders write, receivers read.")
    changes = [_difference(source, target, place) for place in chosen]
    base = target.clean(wanted)
    caption = (
        f"{direction}, {senders} -> {receiver} through {through}: clean {clean!r}, corrupt {corrupt!r}, {metric}, "
    )
    caption += f"{model.name}."
    grid = Grid(model, chosen, wanted, paths.outcome(chosen, changes), base, shown_tokens(model, ids), caption)
    made = record(model, "paths", given, clean=ids, corrupt=other_ids)
    readings = [_end(name, one, wanted[0], made) for name, one in runs.items()] + [_largest(grid, made)]
    draw = generator(seed)
    placebo = [paths.outcome(chosen, [_random(one, draw) for one in changes]).values[:, 0] for _ in range(controls)]
    if placebo:
        readings.append(_control(grid, torch.stack(placebo) - base.values[0, 0], made))
    label = "" if placebo else " (uncontrolled)"
    table = grid.table(f"Change by the path to {receiver}{label}")
    return Result(f"Paths from {senders} to {receiver}{label}", readings, [table], made_by=made)


def _receiver(model: Model, ids: Sequence[int], text: str) -> Place | None:
    """The place that receives, or None for the logits."""
    if text == "logits":
        return None
    found = places(model, ids, text)
    if len(found) != 1 or found[0].site.name not in (*BEFORE, *BEHIND):
        raise BadValue(
            f"{text!r} is not one place that reads the stream.", "Write q.18.6, v.3.0@-1, mlp_out.20, logits."
        )
    if found[0].site.name in BEHIND and model.family.is_parallel(model.config):
        raise BadValue(f"in {model.name!r} attention and MLP read the same stream: {text!r} sees no attention.")
    return found[0]


def _difference(source: Run, target: Run, place: Place) -> Tensor:
    """What the sender adds to the stream in one run beyond the other, (T, D); 0 outside its positions."""
    if place.site.name not in SENDERS:
        raise BadValue(f"{place.address!r} does not write into the stream.", f"Senders: {', '.join(SENDERS)}.")
    if place.site.name == "head_out" and "norm1_post" in target.model.family.block:
        raise BadValue("behind a norm the outputs of heads do not add up.", "Take attn_out.")
    empty = Edit(place.site, place.positions, torch.tensor(0.0))
    found = torch.zeros_like(target.streams[0][0])
    found[list(place.positions)] = source.part(empty) - target.part(empty)
    return found


def _random(difference: Tensor, draw: torch.Generator) -> Tensor:
    """A random vector of equal norm at every position."""
    noise = torch.randn(difference.shape, generator=draw).to(difference)
    return noise / noise.norm(dim=1, keepdim=True).clamp_min(1e-12) * difference.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class _Paths:
    """The direct paths of one run to one receiver."""

    target: Run
    receiver: Place | None
    through: Through
    metric: Metric
    batch: int

    def is_behind(self, sender: Place) -> bool:
        """Whether the receiver sees what the sender writes."""
        if self.receiver is None or sender.site.name == "embed":
            return True
        own, other = int(sender.site.layer or 0), int(self.receiver.site.layer or 0)
        is_same = own == other and sender.site.name != "mlp_out" and self.receiver.site.name in BEHIND
        return own < other or is_same

    @torch.inference_mode()
    def outcome(self, senders: Sequence[Place], changes: Sequence[Tensor]) -> Outcome:
        """Run every path and read the metric."""
        found = []
        for at in range(0, len(senders), self.batch):
            part = slice(at, at + self.batch)
            streams = self._arriving(senders[part], torch.stack(list(changes[part])))
            found.append(self._read(streams))
        return Outcome(torch.cat([one.values for one in found]), torch.cat([one.tops for one in found]))

    def _arriving(self, senders: Sequence[Place], changes: Tensor) -> Tensor:
        """The stream (S, T, D) that enters the receiver's block: its own, plus what comes along the paths.

        A sender in the receiver's own block is counted in: between the two stand only the stream and a norm.
        """
        last = self._layer
        if self.through == "nothing":
            return self.target.streams[last] + changes
        begins = torch.tensor([_begin(place) for place in senders])

        def beginning(half: int) -> Tensor:
            return torch.where((begins == half)[:, None, None], changes, 0.0)

        first = max(0, int(begins.min()) // 2)
        stream = self.target.streams[first] + beginning(-1)
        for layer in range(first, last):
            stream = self._block(layer, stream, beginning(2 * layer)) + beginning(2 * layer + 1)
        return stream + beginning(2 * last)

    def _block(self, layer: int, stream: Tensor, inside: Tensor) -> Tensor:
        """One block whose attention keeps its own value, plus what a sender adds there."""
        kept = self.target.value("attn_out", layer)
        with hooked(self.target.model, [Hook(Site("attn_out", layer), lambda value: (kept + inside).to(value))]):
            return self.target._block(layer, stream, 0)

    @property
    def _layer(self) -> int:
        return len(self.target.blocks) if self.receiver is None else int(self.receiver.site.layer or 0)

    def _read(self, streams: Tensor) -> Outcome:
        if self.receiver is None:
            logits = head(self.target.model, self.target.normed(streams[:, -1])).float()
            return Outcome(self.metric.read(logits)[:, None].double().cpu(), logits.argmax(-1).cpu())
        site, spots = self.receiver.site, list(self.receiver.positions)
        values = self._received(site, streams)[:, spots]
        values = values if site.index is None else values[:, :, site.index]
        cells = [(Edit(site, self.receiver.positions, value),) for value in values]
        return self.target.outcome(cells, [self.metric], batch=self.batch)

    def _received(self, site: Site, streams: Tensor) -> Tensor:
        """What the receiver's site holds (S, T, ...) when its block is entered by these streams."""
        seen: list[Tensor] = []
        layer = self._layer
        hooks = [Hook(Site(site.name, layer), lambda value: seen.append(value.clone()))]
        if site.name in BEHIND:
            kept = self.target.value("attn_out", layer)
            hooks.insert(0, Hook(Site("attn_out", layer), lambda value: kept.expand_as(value)))
        with hooked(self.target.model, hooks):
            self.target._block(layer, streams, 0)
        return seen[0]


def _begin(sender: Place) -> int:
    """When a sender writes, in half blocks: 2 layer for attention, 2 layer + 1 for the MLP, -1 for the embedding."""
    if sender.site.name == "embed":
        return -1
    return 2 * int(sender.site.layer or 0) + (sender.site.name == "mlp_out")


def _end(name: str, run: Run, metric: Metric, made: dict[str, object]) -> Reading:
    value = float(run.clean([metric]).values[0, 0])
    return Reading(name, value, metric.unit, record=made, note=f"top token {run.model.tokenizer.show(run.top)!r}")


def _largest(grid: Grid, made: dict[str, object]) -> Reading:
    at = grid.largest(1)[0]
    note = f"change by {grid.places[at].short}"
    return Reading("largest", float(grid.changes[at, 0]), grid.metrics[0].unit, record=made, note=note)


def _control(grid: Grid, changes: Tensor, made: dict[str, object]) -> Reading:
    at = int(changes.abs().max(0).values.argmax())
    worst = float(changes[int(changes[:, at].abs().argmax()), at])
    live = grid.changes[:, 0] != 0
    beaten = int((changes.abs().max(0).values >= grid.changes[:, 0].abs())[live].sum())
    note = f"largest change by a random difference of equal norm, at {grid.places[at].short}; "
    note += f"{beaten} of {int(live.sum())} senders do no more than theirs"
    return Reading("control", worst, grid.metrics[0].unit, record=made, note=note)
