"""Running many changed copies of one prompt, each computed only where it differs from the clean run.

A cell that first changes layer l at position p is equal to the clean run in all layers below l (they are skipped) and
at all positions before p (causality: their keys and values are taken from the clean run). So the clean run is made
once and kept; cells are sorted by the layer where they enter, and a batch grows on its way up: at each layer new rows
join with the clean stream. A neuron's change is a rank-one change of the stream behind its MLP, so even its own layer
is skipped. The head is applied only to the positions that a metric reads.

Blocks are called with the very arguments that the model's own forward gave them, so nothing about a family is
re-implemented; what cannot be started in the middle is refused (`Run` tries it on its own clean run first).
`how="naive"` runs the whole model once per cell with hooks; tests compare both.

Source: of the prefix sharing, the finding that activation patching repeats most of its work, Kramár et al. (2024),
arXiv:2403.00745, section 2; the plan itself is ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from kobza.core.errors import BadValue
from kobza.core.progress import task
from kobza.interventions.base import Cell, Edit, Metric
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import GLOBAL, Site
from kobza.models.states import head

How = Literal["planned", "naive"]
MEMORY = 1024  # MiB
UNKNOWN = -1  # in the place of a token
SMALL_GROUP = 16  # rows worth a batch of their own, rather than sharing one that begins at an earlier position
NAIVE = "Take how=naive: one whole forward pass per cell."


@dataclass(frozen=True)
class Outcome:
    """What C cells led to.

    Attributes:
        values: (C, metrics) float64.
        tops: (C,) the likeliest next token; `UNKNOWN` where it was not asked for.
    """

    values: Tensor
    tops: Tensor


@dataclass(frozen=True)
class _Row:
    """A cell in the terms of the plan: where it enters, and what is done to it on the way up."""

    number: int
    entry: int
    first: int
    stream: tuple[tuple[int, Edit], ...]  # (layer before which the stream is changed, edit)
    inner: tuple[Edit, ...]


class Run:
    """One prompt, run once and kept.

    Args:
        model: the model.
        ids: the T tokens of the prompt.

    Attributes:
        streams: L + 1 tensors (1, T, D): what enters each block, and what leaves the last one.
        last: (V,) logits at the last position.
    """

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self.model, self.ids = model, [int(i) for i in ids]
        self.length = len(self.ids)
        self.blocks = list(model.module.get_submodule(model.family.blocks))
        self.streams: list[Tensor] = []
        self._calls: list[dict[str, Any]] = []
        self._values: dict[tuple[str, int], Tensor] = {}
        self._cache = DynamicCache()  # without a config every layer keeps all positions, sliding ones too
        self._record()
        self.top = int(self.last.argmax())
        self._refusal: str | None = None

    @torch.inference_mode()
    def _record(self) -> None:
        handles = [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in self.blocks]
        handles.append(self.blocks[-1].register_forward_hook(self._leave))
        try:
            out = self.model.module(input_ids=self._tensor(), past_key_values=self._cache, use_cache=True)
        finally:
            for handle in handles:
                handle.remove()
        self.last = out.logits[0, -1].float().clone()  # a view would keep the logits of all positions
        rows = out.logits[0, :-1].float()
        targets = self._tensor()[0, 1:, None]
        self.nats = (rows.logsumexp(-1) - rows.gather(1, targets)[:, 0]).double()  # (T - 1,)

    def _enter(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(inspect.signature(block.forward).parameters, args, strict=False)) | kwargs
        self.streams.append(named.pop("hidden_states"))
        self._calls.append(named)

    def _leave(self, _: Any, __: Any, output: Any) -> None:
        self.streams.append(output[0] if isinstance(output, tuple) else output)

    def _tensor(self) -> Tensor:
        return torch.tensor([self.ids], device=self.model.device)

    @torch.inference_mode()
    def value(self, name: str, layer: int | None) -> Tensor:
        """Return the clean value at a site, (T, ...), computed from the clean stream of its layer alone.

        Raises:
            BadValue, UnknownName, OutOfRange: see `models.sites`.
        """
        if name in ("embed", "resid_pre"):
            return self.streams[layer or 0][0]
        if name == "resid_post":
            assert layer is not None
            return self.streams[layer + 1][0]
        if layer is None:
            raise BadValue(f"{name!r} lies behind all layers: its value is not kept.", "Name a site of a layer.")
        if (name, layer) not in self._values:
            with hooked(self.model, [Hook(Site(name, layer), lambda value: self._keep(name, layer, value))]):
                self._block(layer, self.streams[layer], 0)
        return self._values[name, layer]

    def _keep(self, name: str, layer: int, value: Tensor) -> None:
        self._values[name, layer] = value[0].clone()

    def part(self, edit: Edit) -> Tensor:
        """Return the clean values that an edit replaces, (P, ...)."""
        value = self.value(edit.site.name, edit.site.layer)[list(edit.positions)]
        return value if edit.site.index is None else value[:, edit.site.index]

    def is_empty(self, cell: Cell) -> bool:
        """Whether a cell puts in what is there already, bit for bit."""
        return all(torch.equal(edit.applied(own), own) for edit in cell for own in (self.part(edit),))

    # --- running cells ---

    @torch.inference_mode()
    def outcome(
        self,
        cells: Sequence[Cell],
        metrics: Sequence[Metric],
        *,
        how: How = "planned",
        batch: int = 256,
        memory: int = MEMORY,
        crosses: bool = True,
    ) -> Outcome:
        """Run cells and read metrics off them.

        Args:
            cells: the changed runs; one without edits, or whose edits change no bit, is the clean run itself.
            metrics: what to read.
            how: "planned", or "naive": one whole forward pass per cell.
            batch: rows run together at most.
            memory: MiB that the rows run together may take (an estimate, see `row_bytes`); a single row always runs.
            crosses: also find each cell's likeliest token. Without it, metrics that ask for the logits of some tokens
                (logit, diff) have only those computed, and `tops` are `UNKNOWN`.

        Raises:
            BadValue: a site or family that cannot be started in the middle.
        """
        few = None if crosses or how == "naive" else _few(metrics)
        clean = self._read(self.last[None], self.nats.sum()[None], metrics)
        values = clean.values.repeat(len(cells), 1)
        tops = clean.tops.repeat(len(cells))
        live = [i for i, cell in enumerate(cells) if how == "naive" or not self.is_empty(cell)]
        if how == "planned" and live:
            self.require_start_in_the_middle()
        rows = max(1, min(batch, memory * 2**20 // self.row_bytes(few)))
        planned = how == "planned"
        steps = self._planned(cells, live, metrics, rows, few) if planned else self._naive(cells, live, metrics)
        with task("cells", len(live)) as shown:
            for at, found in steps:
                values[at] = found.values
                tops[at] = found.tops
                shown.step(len(at))
        return Outcome(values, tops if few is None else torch.full_like(tops, UNKNOWN))

    def row_bytes(self, few: Sequence[int] | None = None) -> int:
        """Return the bytes one row takes at most: stream, MLP and attention of its positions, and logits."""
        config = self.model.config
        inner = int(getattr(config, "intermediate_size", None) or 4 * self.model.width)
        looks = int(config.num_attention_heads) * self.length
        states = self.length * (8 * self.model.width + 4 * inner + 3 * looks)  # an estimate, not a measurement
        return states * self.streams[0].element_size() + 12 * (len(few) if few else self.model.vocabulary)

    def clean(self, metrics: Sequence[Metric]) -> Outcome:
        """Return the outcome of the prompt as it is."""
        return self.outcome([()], metrics)

    @torch.inference_mode()
    def nats_of(self, cell: Cell) -> Tensor:
        """Return the nats (T - 1,) of each token of the prompt but the first, in one changed run, by a whole pass."""
        with hooked(self.model, [Hook(edit.site, _putter(edit)) for edit in cell]):
            logits = self.model.module(input_ids=self._tensor(), use_cache=False).logits[0, :-1].float()
        return (logits.logsumexp(-1) - logits.gather(1, self._tensor()[0, 1:, None])[:, 0]).double()

    def _read(self, last: Tensor, nats: Tensor, metrics: Sequence[Metric]) -> Outcome:
        per_token = nats / max(1, self.length - 1)
        columns = [per_token if m.name == "loss" else m.read(last) for m in metrics]
        return Outcome(torch.stack([c.double().cpu() for c in columns], 1), last.argmax(-1).cpu())

    def _naive(
        self, cells: Sequence[Cell], live: list[int], metrics: Sequence[Metric]
    ) -> Iterator[tuple[list[int], Outcome]]:
        for number in live:
            with hooked(self.model, [Hook(edit.site, _putter(edit)) for edit in cells[number]]):
                logits = self.model.module(input_ids=self._tensor(), use_cache=False).logits[0].float()
            targets = self._tensor()[0, 1:, None]
            nats = (logits[:-1].logsumexp(-1) - logits[:-1].gather(1, targets)[:, 0]).double().sum()
            yield [number], self._read(logits[-1:], nats[None], metrics)

    def _planned(
        self,
        cells: Sequence[Cell],
        live: list[int],
        metrics: Sequence[Metric],
        batch: int,
        few: Sequence[int] | None,
    ) -> Iterator[tuple[list[int], Outcome]]:
        with_loss = any(metric.name == "loss" for metric in metrics)
        renamed = [replace(m, tokens=tuple(few.index(t) for t in m.tokens)) for m in metrics] if few else metrics
        for rows in _batches([self._row(i, cells[i]) for i in live], batch):
            first = min(row.first for row in rows)
            final = self._climb(rows, first, whole=with_loss)
            last = head(self.model, final[:, -1], tokens=few).float()
            nats = self._nats(final, first) if with_loss else torch.zeros(len(rows))
            yield [row.number for row in rows], self._read(last, nats, renamed)

    def _nats(self, final: Tensor, first: int) -> Tensor:
        """Sum of nats (B,) of the prompt's tokens: clean before `first`, changed from there on."""
        before = self.nats[:first].sum()
        targets = self._tensor()[0, first + 1 :, None]
        found = []
        for row in final[:, :-1]:  # a row at a time: the logits of a whole batch would not fit
            logits = head(self.model, row).float() if len(row) else row.new_zeros(0, 1)
            found.append((logits.logsumexp(-1) - logits.gather(1, targets)[:, 0]).double().sum() + before)
        return torch.stack(found)

    def _row(self, number: int, cell: Cell) -> _Row:
        """Translate a cell; a change of neurons of one layer becomes one of the stream behind it."""
        cell = self._lowered(cell)
        stream = tuple((layer, edit) for edit in cell if (layer := _stream_layer(edit.site)) is not None)
        inner = tuple(edit for edit in cell if _stream_layer(edit.site) is None)
        for edit in inner:
            if edit.site.layer is None:
                raise BadValue(f"site '{edit.site}' lies behind all layers: it cannot be planned.", NAIVE)
        entry = min([layer for layer, _ in stream] + [int(edit.site.layer or 0) for edit in inner])
        return _Row(number, entry, min(min(edit.positions) for edit in cell), stream, inner)

    def _lowered(self, cell: Cell) -> Cell:
        layers = {edit.site.layer for edit in cell}
        has_norm_behind = "norm2_post" in self.model.family.block
        names = {(edit.site.name, edit.site.index is None) for edit in cell}
        if names != {("neuron", False)} or len(layers) > 1 or has_norm_behind or _repeats(cell):
            return cell
        return tuple(self._rank_one(edit) for edit in cell)

    def _rank_one(self, edit: Edit) -> Edit:
        layer, index = edit.site.layer, edit.site.index
        assert layer is not None and index is not None
        old = self.part(edit)
        scale = self.model.family.scale.get("mlp_out", "")
        column = self.model.matrix(f"blocks.{layer}.mlp.down")[:, index]
        column = column * float(getattr(self.model.config, scale)) if scale else column
        change = (edit.applied(old) - old)[:, None] * column.to(old)
        return Edit(Site("resid_post", layer), edit.positions, change, adds=True)

    def _climb(self, rows: Sequence[_Row], first: int, *, whole: bool) -> Tensor:
        """Return the states behind the final norm (B, S, D); rows sorted by entry.

        S positions from `first` on, or, if not the whole is asked for, the last one: no other is read.
        """
        stream = self.streams[0][:0, first:]
        for layer in range(rows[0].entry, len(self.blocks) + 1):
            if layer == len(self.blocks) and not whole:  # closed form: what is left is the norm and the head
                stream, first = stream[:, -1:], self.length - 1
            joining = sum(row.entry == layer for row in rows)
            if joining:
                clean = self.streams[layer][:, first:]
                stream = torch.cat([stream, clean.expand(joining, -1, -1)])
            present = rows[: len(stream)]
            stream = _changed(
                stream, [(i, e) for i, row in enumerate(present) for at, e in row.stream if at == layer], first
            )
            if layer < len(self.blocks):
                stream = self._edited_block(layer, stream, present, first)
        return self.normed(stream)

    def normed(self, stream: Tensor) -> Tensor:
        """Return a stream (..., D) behind the final norm.

        Raises:
            BadValue: where the norm stands is not known.
        """
        side, _, path = self.model.family.sites.get("final", "").partition(" ")
        if side != "out":
            raise BadValue(f"where {self.model.name!r} has its final norm is not known.", NAIVE)
        final: Tensor = self.model.module.get_submodule(path)(stream)
        return final

    def _edited_block(self, layer: int, stream: Tensor, rows: Sequence[_Row], first: int) -> Tensor:
        by_site: dict[str, list[tuple[int, Edit]]] = {}
        for i, row in enumerate(rows):
            for edit in row.inner:
                if edit.site.layer == layer:
                    by_site.setdefault(edit.site.name, []).append((i, edit))
        hooks = [Hook(Site(name, layer), _changer(edits, first)) for name, edits in by_site.items()]
        with hooked(self.model, hooks):
            return self._block(layer, stream, first)

    def _block(self, layer: int, stream: Tensor, first: int) -> Tensor:
        """Call one block on the positions from `first` on, with the clean keys and values before them."""
        past = _Prefix(self._cache.layers[layer], first) if first else None
        fit = _Fit(past, first, self.length, stream)
        out = self.blocks[layer](stream, **{key: fit(key, value) for key, value in self._calls[layer].items()})
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def require_start_in_the_middle(self) -> None:
        """Try the plan on the clean run: all layers, the later half of the positions.

        Raises:
            BadValue: the result is not the model's own, so nothing planned would be either.
        """
        if self._refusal is None:
            self._refusal = self._try()
        if self._refusal:
            raise BadValue(f"{self.model.name!r} ({self.model.family.name}) {self._refusal}", NAIVE)

    def _try(self) -> str:
        for first in {0, self.length // 2}:
            stream = self.streams[0][:, first:]
            try:
                for layer in range(len(self.blocks)):
                    stream = self._block(layer, stream, first)
                found = head(self.model, self.normed(stream)[:, -1])[0].float()
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                return f"cannot be started in the middle: {str(error).splitlines()[0][:80]}"
            if float((found - self.last).abs().max()) > 1e-3 * float(self.last.abs().max()):
                return "gives other logits when it is started in the middle."
        return ""


def _stream_layer(site: Site) -> int | None:
    """The layer before which the stream itself is what the site names; None for a site inside a block."""
    if site.name == "embed":
        return 0
    if site.name in GLOBAL or site.layer is None:
        return None
    return {"resid_pre": site.layer, "resid_post": site.layer + 1}.get(site.name)


def _repeats(cell: Cell) -> bool:
    """Whether two edits of a cell touch one value: then the later one must see the earlier."""
    touched = [(edit.site, position) for edit in cell for position in edit.positions]
    return len(set(touched)) < len(touched)


def _batches(rows: list[_Row], batch: int) -> Iterator[list[_Row]]:
    """Yield batches of rows, each sorted by entry; rows of one first position together where they are many."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=lambda r: (r.first, r.entry)):
        if groups and (groups[-1][-1].first == row.first or len(groups[-1]) < SMALL_GROUP):
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        ordered = sorted(group, key=lambda r: r.entry)
        yield from (ordered[i : i + batch] for i in range(0, len(ordered), batch))


def _changed(value: Tensor, edits: list[tuple[int, Edit]], first: int) -> Tensor:
    """Return a value (B, S, ...) with the edits put into their rows; not the same storage if there are any."""
    if not edits:
        return value
    value = value.clone()
    for row, edit in edits:
        spots = [p - first for p in edit.positions]
        if min(spots) < 0:  # positions that nobody reads any more
            edit, spots = _from(edit, first)
        at = (row, spots) if edit.site.index is None else (row, spots, edit.site.index)
        value[at] = edit.applied(value[at])
    return value


def _from(edit: Edit, first: int) -> tuple[Edit, list[int]]:
    """An edit of the stream without its positions before `first`, and the others counted from there."""
    kept = [i for i, p in enumerate(edit.positions) if p >= first]
    is_full = edit.value.ndim == (2 if edit.site.index is None else 1)  # else it has no dimension of positions
    has_own = is_full and len(edit.value) == len(edit.positions)
    value = edit.value[kept] if has_own else edit.value
    return replace(edit, value=value), [edit.positions[i] - first for i in kept]


def _few(metrics: Sequence[Metric]) -> list[int] | None:
    """The tokens whose logits are all that the metrics ask for; None if they need more."""
    if any(metric.name not in ("logit", "diff") for metric in metrics):
        return None
    return sorted({token for metric in metrics for token in metric.tokens})


def _changer(edits: list[tuple[int, Edit]], first: int) -> Callable[[Tensor], Tensor]:
    return lambda value: _changed(value, edits, first)


def _putter(edit: Edit) -> Callable[[Tensor], Tensor]:
    """The function of a hook that puts one edit into a whole run of one row, part (1, T, ...)."""

    def put(part: Tensor) -> Tensor:
        new = part.clone()
        new[0, list(edit.positions)] = edit.applied(part[0, list(edit.positions)])
        return new

    return put


class _Prefix(DynamicCache):
    """Clean keys and values of one layer before position `first`, in front of what the block computes itself."""

    def __init__(self, layer: Any, first: int) -> None:
        super().__init__()
        self.prefix = (layer.keys[:, :, :first], layer.values[:, :, :first])

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return prefix and new together; nothing is kept."""
        B = len(keys)
        k, v = (past.expand(B, -1, -1, -1) for past in self.prefix)
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


@dataclass
class _Fit:
    """Turns an argument of a block, recorded for all positions, into one for those from `first` on."""

    past: _Prefix | None
    first: int
    length: int
    stream: Tensor

    def __call__(self, name: str, value: Any) -> Any:
        if isinstance(value, Cache):
            return self.past
        if name == "use_cache":
            return self.past is not None
        if name == "attention_mask" and value is None and self.first:
            return self._causal()
        if isinstance(value, tuple):
            return tuple(self(name, one) for one in value)
        if isinstance(value, Tensor) and value.ndim:
            # (T,), (1, T), (1, T, E), and masks (1, 1, T, T): the position asking is behind the batch and heads
            return value.narrow({1: 0, 2: 1, 3: 1, 4: 2}[value.ndim], self.first, self.length - self.first)
        return value

    def _causal(self) -> Tensor:
        """A mask (1, 1, S, T): without one, S queries at T keys would be read as if both began together."""
        allowed = torch.ones(self.length, self.length, dtype=torch.bool, device=self.stream.device).tril()
        return allowed[self.first :][None, None]
