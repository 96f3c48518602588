"""The chain rule of a new token: how probable the original finds its later parts, once it has said the first.

A token t that the old vocabulary spells s1 s2 .. sk has log P(s1) + log P(s2 .. sk | s1). So the output row of
s1, lowered by that constant, is a row for t: it says where t may begin and how rarely it is t that begins there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from kobza.core.progress import task
from kobza.models.model import Model
from kobza.models.states import final_states, head

BATCH = 256  # beginnings of tokens read at once
FLOOR = -16.0  # [nats]; below it a token has no probability worth speaking of
RIDGE = 1e-3  # of the direction that stands for a constant, in units of the states' mean square


def constant(states: Tensor) -> Tensor:
    """Return m (D,) with m h = 1 as nearly as a vector allows for all final states h (N, D).

    A head without bias cannot have a constant, but final states share a direction: a row w + c m is w with c added
    to its logits.
    """
    ridge = RIDGE * float(states.square().mean())
    gram = states.T @ states / len(states) + ridge * torch.eye(states.shape[1])
    return torch.linalg.solve(gram, states.mean(0))


def beginnings(splits: Sequence[Sequence[int]], limit: int) -> dict[tuple[int, ...], set[int]]:
    """Return the beginnings s1 .. sj that most splits share, at most `limit`, and the parts that follow each."""
    wanted: dict[tuple[int, ...], set[int]] = {}
    shared: Counter[tuple[int, ...]] = Counter()
    for parts in splits:
        for j in range(1, len(parts)):
            wanted.setdefault(tuple(parts[:j]), set()).add(parts[j])
            shared[tuple(parts[:j])] += 1
    return {beginning: wanted[beginning] for beginning, _ in shared.most_common(limit)}


@torch.inference_mode()
def continuations(model: Model, splits: Sequence[Sequence[int]], limit: int) -> tuple[Tensor, Tensor]:
    """Return log P(s2 .. sk | s1) of every split, and the states it was read from.

    The model reads each beginning s1 .. sj once, behind its start token. Where tokens need more beginnings than
    `limit`, those that most tokens share are read, and a step that was not read costs what steps cost on average.

    Returns:
        (logs [nats] (N,), never below FLOOR; states (P, D)).
    """
    wanted = beginnings(splits, limit)
    order = sorted(wanted, key=len)  # equal lengths together
    start = model.tokenizer.encode("", start=True)
    logs: dict[tuple[int, ...], float] = {}
    states = []
    with task("chain", len(order)) as work:
        for batch in _batches(order):
            h = final_states(model, torch.tensor([[*start, *beginning] for beginning in batch]))[:, -1]
            rows = head(model, h).float().log_softmax(-1).cpu()
            states.append(h.float().cpu())
            for beginning, row in zip(batch, rows, strict=True):
                logs |= {(*beginning, part): float(row[part]) for part in wanted[beginning]}
            work.step(len(batch))
    usual = sum(logs.values()) / max(1, len(logs))
    sums = [sum(logs.get(tuple(parts[: j + 1]), usual) for j in range(1, len(parts))) for parts in splits]
    return torch.tensor(sums).clamp_min(FLOOR), torch.cat(states) if states else torch.zeros(0, model.width)


def _batches(order: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    found: list[list[tuple[int, ...]]] = []
    for beginning in order:
        if not found or len(found[-1]) == BATCH or len(found[-1][0]) != len(beginning):
            found.append([])
        found[-1].append(beginning)
    return found
