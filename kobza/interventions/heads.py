"""Induction heads and previous-token heads, found by their attention on repeated random tokens.

A random text of n tokens is read twice. An induction head at a token of the second half looks at the token that
followed its first occurrence, n - 1 back; a previous-token head looks one back; a duplicate-token head looks n back.
As a control, the heads found are switched off together beside as many random ones: a true induction head costs loss
in the second half.

Sources: Olsson et al. (2022), arXiv:2209.11895 (induction); Wang et al. (2022), arXiv:2211.00593 (duplicate tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

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


def run(
    model: Model, *, length: int = 32, repeats: int = 2, count: int = 10, controls: int = 3, seed: int = 0
) -> Result:
    """Look where every head looks, and switch the strongest induction heads off.

    Args:
        model: the model; it is not changed.
        length: random tokens that are read twice [count, 4 ..].
        repeats: random texts over which attention is averaged [count, 1 ..].
        count: strongest induction heads switched off together; at most half of all [count, 1 ..].
        controls: random sets of as many heads switched off; 0 leaves the result uncontrolled [count, 0 ..].
        seed: of tokens and random sets [integer, 0 ..].

    Returns:
        A Result: a table of heads (strongest induction first) with the mean attention [share, 0 .. 1] they pay to
        the induction target, the previous token and the duplicate; a picture, layers x heads; and readings in nats
        per token of the second half: `clean`, `without` (change when the heads are off), `control`.

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
    readings = _readings(model, texts[0], length, looks[0], count, controls, draw, made)
    label = "" if readings[-1].name == "control" else " (uncontrolled)"
    return Result(f"Heads of {model.name}{label}", readings, [table], made_by=made)


def _text(model: Model, length: int, draw: torch.Generator) -> list[int]:
    """Start token if there is one, then random tokens twice; special tokens are left out."""
    special = set(model.tokenizer.special.values())
    ids = [i for i in range(min(len(model.tokenizer), model.vocabulary)) if i not in special]
    chosen = [ids[i] for i in torch.randperm(len(ids), generator=draw)[:length].tolist()]
    start = [] if model.tokenizer.start_id is None else [model.tokenizer.start_id]
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


def _readings(
    model: Model, ids: Sequence[int], length: int, induction: Tensor, count: int, controls: int,
    draw: torch.Generator, made: dict[str, object],
) -> list[Reading]:  # fmt: skip
    H = induction.shape[1]
    order = induction.flatten().argsort(descending=True, stable=True).tolist()
    taken = max(1, min(count, len(order) // 2))
    best, rest = order[:taken], order[taken:]
    sets = [best] + [[rest[i] for i in torch.randperm(len(rest), generator=draw)[:taken]] for _ in range(controls)]
    clean = Run(model, ids)
    base = _second_half(clean, (), length)
    off = [
        _second_half(clean, _off(one, H, len(ids)), length) - base for one in (sets if len(rest) >= taken else [best])
    ]
    names = " ".join(f"L{one // H}H{one % H}" for one in best)
    unit = "nat"
    found = [
        Reading("clean", base, unit, record=made, note="per token of the second half"),
        Reading("without", off[0], unit, record=made, note=f"change without {names}"),
    ]
    if len(off) > 1:
        note = f"mean change without {taken} random other heads, {len(off) - 1} sets"
        mean = sum(off[1:]) / (len(off) - 1)
        spread = "smallest and largest of the sets"
        found.append(Reading("control", mean, unit, min(off[1:]), max(off[1:]), spread, made, note))
    return found


def _off(heads: Sequence[int], H: int, T: int) -> Cell:
    zero = torch.tensor(0.0)
    return tuple(Edit(Site("z", one // H, one % H), tuple(range(T)), zero) for one in heads)


def _second_half(clean: Run, cell: Cell, length: int) -> float:
    """Mean nats per token of the second half but its first token, which nothing foretells."""
    return float(clean.nats_of(cell)[-(length - 1) :].mean())
