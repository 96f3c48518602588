"""Induction heads and previous-token heads, found by their attention on repeated random tokens.

A random text of n tokens is read twice. An induction head at a token of the second half looks at the token that
followed its first occurrence, n - 1 back; a previous-token head looks one back; a duplicate-token head looks n back.
As a control, the heads found are switched off together beside as many random bystanders: heads that look at none of
the three. Previous-token heads are no control, for induction heads read what they write; any other heads are drawn as
well, and shown apart. Zero can break a model by itself (a head that always writes the same is a bias): the mean cannot.

Sources: Olsson et al. (2022), arXiv:2209.11895 (induction); Wang et al. (2022), arXiv:2211.00593 (duplicate tokens,
mean instead of zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import Cell, Edit, generator, record
from kobza.interventions.planner import Run
from kobza.models.model import Model
from kobza.models.sites import Site

KINDS = ("induction", "previous", "duplicate")
Kind = Literal["zero", "mean"]
BYSTANDER = 0.2  # attention to each of the three targets below which a head counts as one


def run(
    model: Model,
    *,
    length: int = 32,
    repeats: int = 2,
    count: int = 10,
    kind: Literal["zero", "mean"] = "zero",
    controls: int = 8,
    alone: bool = False,
    seed: int = 0,
) -> Result:
    """Look where every head looks, and switch the strongest induction heads off.

    Args:
        model: the model; it is not changed.
        length: random tokens that are read twice [count, 4 ..].
        repeats: random texts over which attention is averaged [count, 1 ..].
        count: strongest induction heads switched off together; at most half of all [count, 1 ..].
        kind: what a head puts out when it is off: zero, or its mean over the text's positions but the first.
        controls: random sets of as many heads switched off, of bystanders and of any others; 0 leaves the result
            uncontrolled [count, 0 ..].
        alone: also switch off every head by itself (a column of the table).
        seed: of tokens and random sets [integer, 0 ..].

    Returns:
        A Result: a table of heads (strongest induction first) with the mean attention [share, 0 .. 1] they pay to
        the induction target, the previous token and the duplicate; a picture, layers x heads; and readings in nats
        per token of the second half of the first text: `clean`, `without` (change when the heads are off),
        `control_any` and `control` (median change without as many other heads: any, and bystanders, whose attention
        to each of the three is below 0.2; low and high are the smallest and largest of the sets).

    Raises:
        OutOfRange: the texts exceed the trained context.

    Cost: a forward pass per random text with attention weights, and one per set switched off.
    """
    given = locals()
    if length < 4 or repeats < 1 or count < 1 or controls < 0:
        raise OutOfRange(f"length={length}, repeats={repeats}, count={count}, controls={controls} are too small.")
    draw = generator(seed)
    texts = [_text(model, length, draw) for _ in range(repeats)]
    looks = torch.stack([_looks(model, ids, length) for ids in texts]).mean(0)
    made = record(model, "heads", given, first=texts[0])
    table = _table(model, looks, length, repeats, seed)
    switch = _Switch(Run(model, texts[0]), length, kind)
    if alone:
        flat = [row["layer"] * looks.shape[2] + row["index"] for row in table]
        table = table.with_column("alone", [switch.change([one]) for one in flat], "nat")
    readings = _readings(switch, looks, count, controls, draw, made)
    label = "" if readings[-1].name == "control" else " (uncontrolled)"
    return Result(f"Heads of {model.name}{label}", readings, [table], made_by=made)


def _text(model: Model, length: int, draw: torch.Generator) -> list[int]:
    """Start token if there is one, then random tokens twice; special tokens are left out."""
    special = set(model.tokenizer.special.values())
    ids = [i for i in range(min(len(model.tokenizer), model.vocabulary)) if i not in special]
    chosen = [ids[i] for i in torch.randperm(len(ids), generator=draw)[:length].tolist()]
    start = model.tokenizer.encode("", start=True)
    whole = start + 2 * chosen
    if len(chosen) < length or (model.context and len(whole) > model.context):
        raise OutOfRange(f"length={length}: {model.name!r} has {len(ids)} tokens and a context of {model.context}.")
    return whole


@torch.inference_mode()
def patterns(model: Model, ids: Sequence[int]) -> Tensor:
    """Return the attention of every head (L, H, T, T), rows summing to 1, by the plain ("eager") attention.

    The model's own way of attending is set back afterwards, also on an error.
    """
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        # on a fork: asking for attention leaves hooks of transformers on the module asked
        module = model.fork().module
        out = module(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, output_attentions=True)
    finally:
        config._attn_implementation = before
    return torch.stack([layer[0].float() for layer in out.attentions])


def _looks(model: Model, ids: Sequence[int], length: int) -> Tensor:
    """Mean attention (3, L, H) of the second half to the induction target, the previous token, the duplicate."""
    found = patterns(model, ids)
    T = len(ids)
    rows = torch.arange(T - length, T, device=found.device)
    back = (length - 1, 1, length)
    return torch.stack([found[:, :, rows, rows - distance].mean(-1) for distance in back]).cpu()


def _table(model: Model, looks: Tensor, length: int, repeats: int, seed: int) -> Table:
    _, L, H = looks.shape
    rows = [
        {"head": f"L{layer}H{head}", "layer": layer, "index": head}
        | {kind: float(looks[i, layer, head]) for i, kind in enumerate(KINDS)}
        for layer in range(L)
        for head in range(H)
    ]
    caption = f"Mean attention over {repeats} random texts of 2 x {length} tokens, seed {seed}, {model.name}."
    figures = [_picture(looks[i], kind, caption) for i, kind in enumerate(KINDS)]
    units = dict.fromkeys(KINDS, "share")
    table = Table(rows, units=units, title="Where heads look", note=caption, figures=figures)
    return table.sorted("induction", reverse=True)


def _picture(values: Tensor, kind: str, caption: str) -> Figure:
    L, H = values.shape
    data = {"values": values.tolist(), "rows": list(map(str, range(L))), "columns": list(map(str, range(H)))}
    words = f"{kind} attention [share]. {caption}"
    return Figure("image", {**data, "diverging": False}, title=f"{kind} heads", caption=words, x="head", y="layer")


class _Switch:
    """Heads of one run switched off together; heads are numbered through all layers."""

    def __init__(self, clean: Run, length: int, kind: Kind) -> None:
        self.clean, self.length, self.kind = clean, length, kind
        self.heads = int(clean.model.config.num_attention_heads)
        self.base = self._loss(())

    def change(self, heads: Sequence[int]) -> float:
        """Change of the loss in the second half [nat per token]."""
        return self._loss(tuple(self._off(*divmod(one, self.heads)) for one in heads)) - self.base

    def _off(self, layer: int, head: int) -> Edit:
        site = Site("z", layer, head)
        if self.kind == "zero":
            return Edit(site, tuple(range(self.clean.length)), torch.tensor(0.0))
        # the first position keeps its own: it is a sink of attention, unlike all others
        mean = self.clean.value("z", layer)[1:, head].double().mean(0).float()
        return Edit(site, tuple(range(1, self.clean.length)), mean)

    def _loss(self, cell: Cell) -> float:
        """Mean nats per token of the second half but its first token, which nothing foretells."""
        return float(self.clean.nats_of(cell)[-(self.length - 1) :].mean())

    def names(self, heads: Sequence[int]) -> str:
        """How the field writes them: L18H6 L17H4."""
        return " ".join(f"L{one // self.heads}H{one % self.heads}" for one in heads)


def _readings(
    switch: _Switch, looks: Tensor, count: int, controls: int, draw: torch.Generator, made: dict[str, object]
) -> list[Reading]:
    flat = looks.flatten(1)  # (3, L H)
    order = flat[0].argsort(descending=True, stable=True).tolist()
    taken = max(1, min(count, len(order) // 2))
    best, rest = order[:taken], order[taken:]
    bystanders = [one for one in rest if float(flat[:, one].max()) < BYSTANDER]
    found = [
        Reading("clean", switch.base, "nat", record=made, note="per token of the second half"),
        Reading("without", switch.change(best), "nat", record=made, note=f"change without {switch.names(best)}"),
    ]
    for name, pool, what in (("control_any", rest, "other heads"), ("control", bystanders, "bystanders")):
        if controls and len(pool) >= taken:
            sets = [[pool[i] for i in torch.randperm(len(pool), generator=draw)[:taken]] for _ in range(controls)]
            found.append(_control(name, switch, sets, f"{taken} of {len(pool)} {what}", made))
    return found


def _control(name: str, switch: _Switch, sets: list[list[int]], what: str, made: dict[str, object]) -> Reading:
    changes = [switch.change(one) for one in sets]
    worst = switch.names(sets[max(range(len(sets)), key=changes.__getitem__)])
    below = sum(change < 1 for change in changes)
    note = f"median change without {what}, {len(sets)} sets, {below} below 1; the largest: {worst}"
    spread = "smallest and largest of the sets"
    return Reading(name, median(changes), "nat", min(changes), max(changes), spread, made, note)
