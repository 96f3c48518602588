"""The chain rule of a new token, heard where it may stand: behind places of a text at which its first part is likely.

Behind the start token alone a model knows little of what goes on: that the digits after a space make a year, or that
" nom" becomes " nominee". So each first part is given places of a text, drawn in proportion to the probability that it
has there, and the original reads the later parts behind them. All that is read behind one window of the text, behind
whichever of its places, is the branches of one tree and read at once.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.core.errors import WrongVocabulary
from kobza.core.progress import task
from kobza.core.texts import Text
from kobza.edits import _chain, base
from kobza.models.attention import depths, lineage
from kobza.models.model import Model
from kobza.models.states import body, head

WINDOW = 128  # tokens of a window of the text
MOST, EACH = 16, 16  # places that a first part gets at most; tokens that share it for each of them
BRANCHES = 256  # tokens of branches read at once
ROWS = 512  # states whose logits are held at once

Beginning = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a tree may grow: behind token `at` of window `window` (-1: behind nothing)."""

    window: int
    at: int


class Reader:
    """The original, as it reads trees of tokens.

    Args:
        model: the original.
        dtype: of the numbers in body and head.
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.model = model
        self.module = copy.deepcopy(model.module).to(dtype).requires_grad_(False)
        self.table = model.matrix("embed.out").detach().to(dtype, copy=True)

    def states(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Return the state behind each token of a tree, which sees itself and those it follows, (T, D) float32."""
        mask = torch.zeros(len(ids), len(ids), dtype=self.table.dtype)
        mask = mask.masked_fill(~lineage(parents), torch.finfo(mask.dtype).min)
        where = torch.tensor([depths(parents)])
        found = body(self.module, input_ids=torch.tensor([ids]), attention_mask=mask[None, None], position_ids=where)
        return found[0].float()

    def logs(self, states: Tensor) -> Tensor:
        """Return log-probabilities (T, V)."""
        return head(self.model, states, table=self.table).float().log_softmax(-1)

    def can_branch(self) -> bool:
        """Whether the family reads a tree as it reads its branches; tried on four tokens."""
        a, b, c, d = (n % self.model.vocabulary for n in (5, 6, 7, 8))
        try:
            tree, plain = self.states([a, b, c, d], [-1, 0, 1, 0]), self.states([a, d], [-1, 0])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            return False
        far = float((tree[3] - self.states([a, c], [-1, 0])[1]).abs().max())
        return float((tree[3] - plain[1]).abs().max()) < 0.1 * far


@torch.inference_mode()
def chances(
    model: Model,
    splits: Sequence[Sequence[int]],
    texts: Sequence[Text],
    *,
    windows: int,
    places: int,
    limit: int,
    dtype: torch.dtype,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return log P(s2 .. sk | s1) of every split: behind the start token plus the mean over places of texts.

    Args:
        model: the original.
        splits: old tokens that each new one is spelled by.
        texts: what the windows are taken from.
        windows: how many [count, 0 ..]; with none it is `_chain.continuations`, and for a family that reads no trees.
        places: that a first part gets at least [count, 1 ..].
        limit: beginnings that are read, as in `_chain.continuations`.
        dtype: of the numbers in body and head.
        seed: of windows and places.

    Returns:
        (logs [nats] (N,), never below `_chain.FLOOR` and at most 0; states (P, D) behind the tokens of the windows).
    """
    reader = Reader(model, dtype) if windows else None
    runs = cut(model, texts, windows, seed)
    if reader is None or not runs or not reader.can_branch():
        return _chain.continuations(model, splits, limit)
    wanted = _chain.beginnings(splits, limit)
    trees: dict[int, list[Beginning]] = defaultdict(list)
    for beginning in sorted(wanted, key=len):
        trees[beginning[0]].append(beginning)
    states = [reader.states(run, range(-1, len(run) - 1)) for run in runs]
    drawn = draw(model, reader, states, _shares(splits, trees), places, seed)
    start = model.tokenizer.encode("", start=True)
    heard = {first: [Place(len(runs), len(start) - 1), *drawn[first]] for first in trees}
    said = _read(reader, [*runs, start], heard, trees, wanted)
    return _joined(splits, heard, said), torch.cat(states)


def cut(model: Model, texts: Sequence[Text], count: int, seed: int) -> list[list[int]]:
    """Return windows of old tokens, start token first, spread over the texts; parts it cannot say are left out."""
    size = min(WINDOW, (model.context or 2 * WINDOW) // 2)
    draws = torch.rand(count, generator=base.generator(seed, "windows")).tolist()
    start, found = model.tokenizer.encode("", start=True), []
    for n, share in enumerate(draws):
        text = texts[n * len(texts) // count].data
        at = int(share * max(1, len(text) - 8 * size))
        raw = text[max(0, text.find(b" ", at)) :][: 16 * size]
        try:
            ids = model.tokenizer.encode(raw.decode("utf-8", "ignore"))[:size]
        except WrongVocabulary:
            continue
        if len(ids) > 1:
            found.append([*start, *ids])
    return found


def draw(
    model: Model, reader: Reader, states: Sequence[Tensor], shares: Mapping[int, int], places: int, seed: int
) -> dict[int, list[Place]]:
    """Return places for each first part, drawn without repeating in proportion to the probability it has there.

    Args:
        model, reader: the original.
        states: of each window (T, D).
        shares: tokens that begin with each first part.
        places: that each gets at least; one more for `EACH` tokens, up to `MOST`.
        seed: of the draws.
    """
    every = [Place(n, at) for n, run in enumerate(states) for at in range(len(run))]
    H = torch.cat(list(states))  # (P, D)
    total = torch.cat([head(model, h, table=reader.table).float().logsumexp(-1) for h in H.split(ROWS)])
    generator = base.generator(seed, "places")
    found: dict[int, list[Place]] = {}
    for firsts in torch.tensor(list(shares)).split(ROWS):
        ids = firsts.tolist()
        logs = head(model, H, tokens=ids).float() - total[:, None]  # (P, firsts)
        noise = -torch.empty_like(logs).exponential_(generator=generator).log()  # Gumbel: the largest are a draw
        order = (logs + noise).topk(min(max(MOST, places), len(every)), 0).indices.T.tolist()
        for id, best in zip(ids, order, strict=True):
            found[id] = [every[n] for n in best[: max(places, min(MOST, shares[id] // EACH))]]
    return found


def _shares(splits: Sequence[Sequence[int]], trees: Mapping[int, object]) -> dict[int, int]:
    found = dict.fromkeys(trees, 0)
    for parts in splits:
        if parts and parts[0] in found:
            found[parts[0]] += 1
    return found


Said = dict[tuple[int, Place], dict[Beginning, float]]


def _read(
    reader: Reader,
    runs: Sequence[list[int]],
    heard: Mapping[int, Sequence[Place]],
    trees: Mapping[int, Sequence[Beginning]],
    wanted: Mapping[Beginning, set[int]],
) -> Said:
    """Return log P(part | place, beginning) of all wanted parts, by first part and place."""
    jobs: dict[int, list[tuple[int, Place]]] = defaultdict(list)
    for first, places in heard.items():
        for place in places:
            jobs[place.window].append((first, place))
    said: Said = {}
    with task("chain", sum(map(len, jobs.values()))) as work:
        for window, every in jobs.items():
            for batch in _batches(every, trees):
                _grow(reader, runs[window], batch, trees, wanted, said)
                work.step(len(batch))
    return said


def _batches(
    every: Sequence[tuple[int, Place]], trees: Mapping[int, Sequence[Beginning]]
) -> Iterator[list[tuple[int, Place]]]:
    batch: list[tuple[int, Place]] = []
    size = 0
    for job in every:
        if batch and size + len(trees[job[0]]) > BRANCHES:
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += len(trees[job[0]])
    yield batch


def _grow(
    reader: Reader,
    run: list[int],
    batch: Sequence[tuple[int, Place]],
    trees: Mapping[int, Sequence[Beginning]],
    wanted: Mapping[Beginning, set[int]],
    said: Said,
) -> None:
    """Read the trees of some first parts behind their places in one window."""
    stem = max(place.at for _, place in batch) + 1
    ids, parents = list(run[:stem]), list(range(-1, stem - 1))
    nodes: list[tuple[tuple[int, Place], Beginning]] = []
    for job in batch:
        index: dict[Beginning, int] = {(): job[1].at}
        for beginning in trees[job[0]]:
            parents.append(index[beginning[:-1]])  # a beginning's own is as frequent, so it is read too
            index[beginning] = len(ids)
            ids.append(beginning[-1])
            nodes.append((job, beginning))
    states = reader.states(ids, parents)[stem:]
    for at in range(0, len(nodes), ROWS):
        rows = reader.logs(states[at : at + ROWS])
        for (job, beginning), row in zip(nodes[at : at + ROWS], rows, strict=True):
            parts = list(wanted[beginning])
            found = said.setdefault(job, {})
            found |= {(*beginning, part): log for part, log in zip(parts, row[parts].tolist(), strict=True)}


def _joined(splits: Sequence[Sequence[int]], heard: Mapping[int, Sequence[Place]], said: Said) -> Tensor:
    """Add up the steps at each place; then the start's probability and the mean of the others'."""
    every = [log for logs in said.values() for log in logs.values()]
    usual = sum(every) / max(1, len(every))
    found = []
    for parts in splits:
        if len(parts) < 2:
            found.append(0.0)
            continue
        steps = [tuple(parts[: j + 1]) for j in range(1, len(parts))]
        runs = [said[parts[0], place] for place in heard.get(parts[0], ())]
        start, *others = [sum(run.get(step, usual) for step in steps) for run in runs] or [usual * len(steps)]
        total = math.exp(start) + sum(map(math.exp, others)) / max(1, len(others))
        found.append(min(0.0, math.log(max(total, 1e-30))))
    return torch.tensor(found).clamp_min(_chain.FLOOR)
