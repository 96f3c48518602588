"""The stages of a transplant that read a text: one constant against leaks, and tables that learn from the original.

In the second stage nothing but rows of tokens moves, and only of those that the new vocabulary uses otherwise than the
old one did: new tokens, and copied ones that stand mostly in splits the old vocabulary does not make. Windows of the
text are chosen so that many such tokens occur, each of them often enough. The loss is the surprise at the next token
plus, wherever both vocabularies end a token at the same byte, the cross entropy to what the original says there, told
in new tokens: what it gives an old token goes to the first new token of its bytes.

A row learns by its own measure (Adagrad, one number a row), so that a row seen three times moves and one that is only
never the answer does not.

Sources: Adagrad, Duchi et al. (2011), jmlr.org/papers/v12/duchi11a.html; one number a row: Naumov et al. (2019),
arXiv:1906.00091.
"""

from __future__ import annotations

import copy
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import EmptyText, NotFinite, WrongVocabulary
from kobza.core.progress import progress, task
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits._chain import constant
from kobza.models.fitting import schedule
from kobza.models.model import Model
from kobza.models.passes import fed_ids, scored_states
from kobza.models.states import body, head
from kobza.tokens.base import Tokenizer
from kobza.tokens.mapping import Match

WINDOW, BATCH = 128, 4  # tokens of the new vocabulary in a window, windows read per update
OTHERWISE = 0.5  # share of its places in which a copied token stands in a new split, so that its row may learn
DAMPING = 4  # squared gradients of usual size that every row is counted to have had before its first
WARMUP = 0.1


def leak(model: Model, rows: Sequence[int], texts: Sequence[Text], tokens: int) -> tuple[float, Tensor]:
    """Find one constant that, taken off the logits of some rows, gives them the probability that the texts do.

    A row w becomes w - constant * m, m as in `_chain.constant`.

    Args:
        model: the moved model.
        rows: ids of new rows.
        texts: what to read.
        tokens: how many tokens, shared over the texts [count, 2 ..].

    Returns:
        (constant [nats], m (D,)). The constant is the root of a convex condition and is searched between -2 and 12.
    """
    states, logs, used = [], [], 0
    chosen = torch.tensor(list(rows), dtype=torch.long)
    is_new = torch.zeros(model.vocabulary, dtype=torch.bool)
    is_new[chosen] = True
    with torch.inference_mode():
        for text in progress(texts, "leak"):
            ids = torch.tensor(model.tokenizer.encode(text[: 16 * tokens].data)[: max(2, tokens // len(texts))])
            used += int(is_new[ids].sum())
            for _, h, is_logits in scored_states(model, ids, min(512, model.context or 512), 0):
                if is_logits:
                    raise EmptyText(f"the head of {model.name!r} cannot be applied apart, which leak=fit needs.")
                states.append(h.float().cpu())
                for at in range(0, len(h), 128):
                    logits = head(model, h[at : at + 128]).float().cpu()
                    new = logits[:, chosen].logsumexp(1)
                    logs.append(new - logits[:, ~is_new].logsumexp(1))  # log odds of a new row
    H, odds = torch.cat(states), torch.cat(logs)
    low, high, wanted = -2.0, 12.0, (used + 0.5) / (len(odds) + 1)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float((odds - middle).sigmoid().mean()) > wanted else (low, middle)
    return (low + high) / 2, constant(H)


@dataclass(frozen=True)
class Window:
    """A piece of text in both vocabularies.

    Attributes:
        new, old: ids.
        here, there: places in `new` and in `old` before which both have read the same bytes.
        other: places in `new` inside a span that the vocabularies cut differently.
    """

    new: list[int]
    old: list[int]
    here: Tensor
    there: Tensor
    other: list[int]


class Learner:
    """The rows that learn, at the one end or the two ends of a moved model.

    Args:
        original, moved: before and after.
        found: which tokens both have.
        ids: the rows.
        dtype: of the numbers in bodies and heads; rows and their steps are float32.
    """

    def __init__(self, original: Model, moved: Model, found: Match, ids: Iterable[int], dtype: torch.dtype) -> None:
        self.original, self.moved = original, moved
        self.ids, self.dtype = torch.tensor(sorted(ids)), dtype
        ends = ["embed"] if moved.is_tied else ["embed.in", "embed.out"]
        with torch.inference_mode(False):
            self.tables = {end: moved.matrix(end).detach().float().clone() for end in ends}
            self.rows = {end: table[self.ids].clone().requires_grad_() for end, table in self.tables.items()}
            self.module = copy.deepcopy(original.module).to(dtype).requires_grad_(False)
            self.known = original.matrix("embed.out").detach().to(dtype, copy=True)
            self.head = self.tables[ends[-1]].to(dtype)
        self.seen = dict.fromkeys(ends, torch.zeros(len(self.ids)))
        first = firsts(moved.tokenizer, original.tokenizer, found)
        self.sayable = torch.nonzero(first >= 0)[:, 0]
        self.first = first[self.sayable]
        self.is_composed = torch.zeros(len(found.same), dtype=torch.bool)
        self.is_composed[found.composed] = True
        self.skipped = 1 if moved.tokenizer.start_id is None else 0  # tokens of a window that nothing stands before

    def loss(self, windows: Sequence[Window]) -> Tensor:
        """Return surprise plus cross entropy to the original, in nats a token."""
        inner, outer = min(self.tables), max(self.tables)  # embed.in, embed.out, or embed for both
        ids = torch.tensor([window.new for window in windows])
        fed = torch.stack([fed_ids(row, self.moved.tokenizer.start_id) for row in ids])
        table = self.tables[inner].index_copy(0, self.ids, self.rows[inner])
        states = body(self.module, inputs_embeds=_looked_up(self.moved, table, fed).to(self.dtype))
        table = self.head.index_copy(0, self.ids, self.rows[outer].to(self.dtype))
        logs = head(self.moved, states.reshape(-1, states.shape[-1]), table=table).float().log_softmax(-1)
        targets = ids[:, self.skipped :].reshape(-1)
        places, wanted = self._said(windows)
        plain = ~self.is_composed[targets[places]]  # what comes there, the original cannot say in one token
        surprise = -logs.gather(1, targets[:, None]).sum()
        return (surprise - (wanted[plain] * logs[places[plain]]).sum()) / len(targets)

    @torch.no_grad()
    def _said(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Return places among the states of all windows, (n,), and what the original says there, (n, V')."""
        start, longest = self.original.tokenizer.start_id, max(len(window.old) for window in windows)
        fed = [fed_ids(torch.tensor(window.old), start) for window in windows]
        padded = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in fed])
        states = body(self.module, input_ids=padded)  # causal: what is padded behind is not heard
        skipped = 1 if start is None else 0
        places, heard = [], []
        for n, window in enumerate(windows):
            both = (window.here >= self.skipped) & (window.there >= skipped)
            places.append(window.here[both] - self.skipped + n * (len(window.new) - self.skipped))
            heard.append(states[n, window.there[both] - skipped])
        said = head(self.original, torch.cat(heard), table=self.known).float().softmax(-1)
        told = said.new_zeros(len(said), len(self.is_composed)).index_add_(1, self.first, said[:, self.sayable])
        return torch.cat(places), told

    @torch.no_grad()
    def step(self, windows: Sequence[Window], rate: float) -> None:
        """Move every row against its gradient; the usual gradient is that of the rows whose tokens stand there."""
        is_there = torch.isin(self.ids, torch.tensor([id for window in windows for id in window.new]))
        for end, rows in self.rows.items():
            assert rows.grad is not None
            now = rows.grad.square().mean(1)
            self.seen[end] = self.seen[end] + now
            if bool(is_there.any()):
                damped = self.seen[end] + DAMPING * now[is_there].median()
                rows -= rate * rows.grad / damped.sqrt().clamp_min(1e-20)[:, None]
            rows.grad = None

    def learned(self) -> dict[str, Tensor]:
        """Return the tables with the rows as they are now."""
        return {end: table.index_copy(0, self.ids, self.rows[end].detach()) for end, table in self.tables.items()}


def distil(
    original: Model,
    moved: Model,
    found: Match,
    texts: Sequence[Text],
    *,
    steps: int,
    rate: float,
    dtype: torch.dtype,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Let rows of a moved model learn from the original; the body is frozen.

    Args:
        original, moved: before and after.
        found: which tokens both have.
        texts: what to read.
        steps, rate, dtype, seed: updates, learning rate, numbers of the body, order.

    Returns:
        Tables as `with_vocabulary` takes them, and facts: rows that learned, windows read, first and last mean of
        the loss [nats a token].

    Raises:
        EmptyText: no window of the texts is cut differently. NotFinite: the loss is not finite.
    """
    every = [window for text in texts for window in windows(moved.tokenizer, original.tokenizer, text)]
    chosen = choose(every, steps * BATCH)
    if not chosen:
        raise EmptyText(f"the texts hold no window of {WINDOW} tokens that both vocabularies cut differently.")
    order = torch.randperm(len(chosen), generator=base.generator(seed, "distil")).tolist()
    learner = Learner(original, moved, found, rows(every, chosen, set(found.composed)), dtype)
    losses = []
    with task("distil", steps) as work, torch.inference_mode(False), torch.enable_grad():
        for step in range(steps):
            batch = [chosen[order[(step * BATCH + n) % len(order)]] for n in range(BATCH)]
            loss = learner.loss(batch)
            if not bool(torch.isfinite(loss)):
                raise NotFinite(f"distil: the loss is not finite at step {step} of {steps}.", "Lower the rate.")
            loss.backward()
            learner.step(batch, rate * schedule(step, steps, WARMUP))
            losses.append(loss.item())
            work.step(note=f"loss {losses[-1]:.4f}")
    part = max(1, min(10, steps // 4))
    means = [sum(run) / len(run) for run in (losses[:part], losses[-part:])]
    return learner.learned(), {"losses": means, "rows": len(learner.ids), "windows": len(chosen)}


def windows(new: Tokenizer, old: Tokenizer, text: Text) -> list[Window]:
    """Cut a text into windows of WINDOW new tokens; bytes that the old vocabulary cannot say are no window."""
    tokens, lacking = new.split(text.data), set(old.missing_bytes())
    found = []
    for at in range(0, len(tokens) - WINDOW + 1, WINDOW):
        run = tokens[at : at + WINDOW]
        raw = text.data[run[0].start : run[-1].end]
        if not lacking & set(raw):
            found.append(_window([token.id for token in run], old.encode(raw), new, old))
    return found


def _window(ids: list[int], spelled: list[int], new: Tokenizer, old: Tokenizer) -> Window:
    _, here, there = np.intersect1d(_read(new, ids), _read(old, spelled), return_indices=True)
    other: list[int] = []
    ends = zip([*here[1:], len(ids)], [*there[1:], len(spelled)], strict=True)
    for a, b, (c, d) in zip(here, there, ends, strict=True):
        if c - a > 1 or d - b > 1:
            other += range(a, c)
    return Window(ids, spelled, torch.from_numpy(here), torch.from_numpy(there), other)


def choose(every: Sequence[Window], count: int) -> list[Window]:
    """Return the windows with most tokens in new splits, of which those already chosen have few: greedy cover."""
    covered: Counter[int] = Counter()

    def gain(window: Window) -> float:
        return sum(1 / (1 + covered[window.new[at]]) for at in window.other)

    heap = [(-gain(window), n) for n, window in enumerate(every) if window.other]
    heapq.heapify(heap)
    found: list[Window] = []
    while heap and len(found) < count:
        _, n = heapq.heappop(heap)
        now = gain(every[n])  # gains only fall: what is still at the front is the best
        if heap and now < -heap[0][0] - 1e-9:
            heapq.heappush(heap, (-now, n))
            continue
        found.append(every[n])
        covered.update(every[n].new[at] for at in every[n].other)
    return found


def rows(every: Sequence[Window], chosen: Sequence[Window], composed: set[int]) -> set[int]:
    """Return the tokens of chosen windows that learn: new ones, and those used otherwise than before."""
    used = Counter(id for window in every for id in window.new)
    otherwise = Counter(window.new[at] for window in every for at in window.other)
    there = {window.new[at] for window in chosen for at in window.other}
    return {id for id in there if id in composed or otherwise[id] >= OTHERWISE * used[id]}


def firsts(new: Tokenizer, old: Tokenizer, found: Match) -> Tensor:
    """Return for every old token the first of the new tokens that say its bytes, (V,); -1 where none do."""
    back = {id: n for n, id in reversed(list(enumerate(found.same))) if id >= 0}
    return torch.tensor([back[id] if id in back else _first(new, old.bytes_of(id)) for id in range(len(old))])


def _first(new: Tokenizer, data: bytes) -> int:
    try:
        return [*new.encode(data), -1][0]
    except WrongVocabulary:  # a byte that it cannot say
        return -1


def _looked_up(model: Model, table: Tensor, ids: Tensor) -> Tensor:
    scale = torch.as_tensor(getattr(model.module.get_input_embeddings(), "embed_scale", 1.0)).float()
    return table[ids] * scale


def _read(tokenizer: Tokenizer, ids: Sequence[int]) -> Any:
    """Bytes read before each token, (T,)."""
    sizes = [len(tokenizer.bytes_of(id)) for id in ids]
    return np.cumsum([0, *sizes[:-1]])
