"""A model fed step by step with its keys and values kept: one interface over several backends, and plain sampling.

auto           bare where it fits, else transformers
transformers   every family, hooks and edits of any kind (`Stepper`; `rereading.py` for modules without a cache)
bare           Llama-type models without module overhead (`bare.py`)
paged          the same with its cache in pages, which forks and rows share (`paging.py`)
llama          llama.cpp for a GGUF file (`llama.py`; the extra `llama`)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kobza.core.errors import BadValue, EmptyText, OutOfRange, UnknownName
from kobza.models import attention, rules
from kobza.models.model import Model

CROPPABLE = {"full_attention", "sliding_attention", "chunked_attention"}
BACKENDS = ("auto", "transformers", "bare", "paged", "llama")
_CHOSEN: ContextVar[str] = ContextVar("backend", default="auto")
Ids = Tensor | Sequence[Sequence[int]]  # (B, T)


class Steps(Protocol):
    """A run that goes on.

    Attributes:
        model: the model that runs.
        batch: B, rows fed together, all of equal length.
        length: tokens read so far.
    """

    model: Model
    batch: int
    length: int

    def feed(self, ids: Ids, *, keep: int = 1) -> Tensor:
        """Read (B, T) more tokens; return float32 logits behind the last `keep`: (B, V), or (B, keep, V)."""

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]."""

    def fork(self) -> Steps:
        """Return a run that goes on from here by itself."""

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may be named several times."""

    def feed_tree(self, ids: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read T tokens of a tree, each seeing the text and those it follows; a run of one row.

        Args:
            ids: (T,) tokens.
            parents: (T,) index of the token each follows, smaller than its own; -1 is the text so far.

        Returns:
            Float32 logits (T, V) and the states behind the final norm (T, D). `prune` must be called next.
        """

    def prune(self, n: int, path: Sequence[int]) -> None:
        """Of the last `n` tokens keep those at rising places `path` [index, 0 .. n - 1], as one row of text."""

    def feed_layers(self, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
        """Read more tokens; return {layers run: logits (B, V) of norm and head behind so many}, the last included."""

    def feed_states(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Read more tokens; return the logits behind the last (B, V) and the states behind the final norm (B, T, D)."""


def steps(model: Model, batch: int = 1, *, backend: str = "") -> Steps:
    """Begin a run of a model.

    Args:
        model: the model to run.
        batch: rows fed together [count, 1 ..].
        backend: one of `BACKENDS`; "" takes the one of the surrounding `using`, else "auto".

    Raises:
        UnknownName: no such backend. BadValue: the model does not fit the backend; the message says why.
        MissingExtra: llama.cpp is not installed.
    """
    chosen = backend or _CHOSEN.get()
    if chosen not in BACKENDS:
        raise UnknownName.of("backend", chosen, BACKENDS)
    if chosen == "llama":
        from kobza.models.llama import LlamaStepper

        return LlamaStepper(model, batch)
    if chosen == "transformers":
        return plain(model, batch)
    from kobza.models import bare

    reason = bare.misfit(model)
    if chosen in ("bare", "paged") and reason:
        raise BadValue(f"'{model.name}' does not fit the bare step: {reason}.", "Use the backend transformers.")
    if chosen == "paged":
        from kobza.models.paging import PagedStepper

        return PagedStepper(model, batch)
    if not reason:
        return bare.BareStepper(model, batch)
    return plain(model, batch)


def plain(model: Model, batch: int = 1) -> Steps:
    """Begin a run of the transformers module, with its cache where it has one."""
    if getattr(model.module, "has_cache", True):
        return Stepper(model, batch)
    from kobza.models.rereading import Rereader

    return Rereader(model, batch)


def chosen_backend() -> str:
    """Return the backend of the surrounding `using`, else "auto"."""
    return _CHOSEN.get()


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Let every run begun inside the `with` use this backend."""
    if backend not in BACKENDS:
        raise UnknownName.of("backend", backend, BACKENDS)
    token = _CHOSEN.set(backend)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def checked(run: Steps, ids: Ids, keep: int) -> Tensor:
    """Return fed ids (B, T) as a tensor after checking their shape and the trained positions.

    Raises:
        OutOfRange: a wrong shape, or more positions than the model was trained for.
    """
    fed = torch.as_tensor(ids, dtype=torch.long)
    if fed.ndim != 2 or fed.shape[0] != run.batch or fed.shape[1] < keep or keep < 1:
        raise OutOfRange(f"fed ids {tuple(fed.shape)} with keep={keep}: need ({run.batch}, T), 1 <= keep <= T.")
    context = getattr(run, "context", run.model.context)  # some runs read more
    if context and run.length + fed.shape[1] > context:
        total = run.length + fed.shape[1]
        raise OutOfRange(f"{total} positions exceed the {context} that {run.model.name!r} was trained for.")
    return fed


def checked_batch(batch: int) -> int:
    """Return the number of rows of a run.

    Raises:
        OutOfRange: it is below 1.
    """
    if batch < 1:
        raise OutOfRange(f"batch {batch} is not a number of rows: give 1 or more.")
    return batch


def check_rollback(run: Steps, n: int) -> None:
    """Raise OutOfRange unless 0 <= n <= length."""
    if not 0 <= n <= run.length:
        raise OutOfRange(f"cannot take back {n} of {run.length} tokens.")


def checked_rows(run: Steps, rows: Sequence[int]) -> list[int]:
    """Return the rows after checking that there are some and that the run has them."""
    if not rows or not all(0 <= row < run.batch for row in rows):
        raise OutOfRange(f"rows {list(rows)} of a run of {run.batch}: name one or more of 0 .. {run.batch - 1}.")
    return list(rows)


def checked_tree(run: Steps, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
    """Return the ids of a tree (1, T) after checking it.

    Raises:
        OutOfRange: several rows, unequal lengths, or a token that follows a later one.
    """
    if run.batch != 1 or len(ids) != len(parents) or not all(-1 <= p < n for n, p in enumerate(parents)):
        raise OutOfRange(
            f"a tree of {len(ids)} tokens and parents {list(parents)} in {run.batch} rows: one row, a parent each, "
            "earlier than its child."
        )
    return checked(run, [list(ids)], 1)


def checked_path(run: Steps, n: int, path: Sequence[int]) -> list[int]:
    """Return the places to keep of the last n tokens after checking them."""
    check_rollback(run, n)
    places = [-1, *path, n]
    if any(a >= b for a, b in itertools.pairwise(places)):
        raise OutOfRange(f"places {list(path)} of the last {n} tokens: they must rise from 0 to {n - 1} at most.")
    return places[1:-1]


class Stepper:
    """The run of any transformers module; see `Steps`.

    Args:
        model: the model to run.
        batch: rows fed together, all of equal length.
    """

    def __init__(self, model: Model, batch: int = 1) -> None:
        self.model = model
        self.batch = checked_batch(batch)
        self.length = 0
        self._cache = self._empty()

    def _empty(self) -> DynamicCache:
        kinds = set(getattr(self.model.config, "layer_types", None) or ())
        # without a config every layer keeps all positions, so that sliding ones can be rolled back too
        return DynamicCache() if kinds <= CROPPABLE else DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def feed(self, ids: Ids, *, keep: int = 1) -> Tensor:
        """Read more tokens; see `Steps.feed`.

        Raises:
            OutOfRange: a wrong shape, or more positions than the model was trained for.
        """
        fed = checked(self, ids, keep)
        out = self.model.module(
            input_ids=fed.to(self.model.device), past_key_values=self._cache, use_cache=True, logits_to_keep=keep
        )
        self.length += fed.shape[1]
        logits: Tensor = out.logits[:, -keep:].float()
        return logits[:, 0] if keep == 1 else logits

    @torch.inference_mode()
    def feed_layers(self, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
        """Read more tokens, and read out several depths; see `Steps.feed_layers`."""
        from kobza.models.states import head

        fed = checked(self, ids, 1).to(self.model.device)
        wanted = checked_layers(self.model, layers)
        out = self.model.module(
            input_ids=fed, past_key_values=self._cache, use_cache=True, logits_to_keep=1, output_hidden_states=True
        )
        self.length += fed.shape[1]
        norm = self.model.module.get_submodule(self.model.family.modules["norm"])
        found = {n: head(self.model, norm(out.hidden_states[n][:, -1])).float() for n in wanted}
        return found | {self.model.layers: out.logits[:, -1].float()}

    @torch.inference_mode()
    def feed_states(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Read more tokens; see `Steps.feed_states`."""
        fed = checked(self, ids, 1).to(self.model.device)
        out = self.model.module(
            input_ids=fed, past_key_values=self._cache, use_cache=True, logits_to_keep=1, output_hidden_states=True
        )
        self.length += fed.shape[1]
        return out.logits[:, -1].float(), out.hidden_states[-1]

    @torch.inference_mode()
    def feed_tree(self, ids: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read a tree of tokens; see `Steps.feed_tree`.

        Raises:
            BadValue: a family whose layers do not all attend to the whole text.
        """
        fed = checked_tree(self, ids, parents).to(self.model.device)
        T, S = len(parents), self.length + len(parents)
        if set(getattr(self.model.config, "layer_types", None) or ()) - {"full_attention"}:
            raise BadValue(f"'{self.model.name}' has layers that see a part of the text only: no trees.")
        visible = torch.ones(1, 1, T, S, dtype=torch.bool, device=fed.device)
        visible[..., self.length :] = attention.lineage(parents)
        mask = torch.zeros_like(visible, dtype=self.model.dtype)
        mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
        out = self.model.module(
            input_ids=fed, past_key_values=self._cache, use_cache=True, attention_mask=mask,
            position_ids=(self.length + torch.tensor([attention.depths(parents)], device=fed.device)),
            output_hidden_states=True,
        )  # fmt: skip
        self.length = S
        return out.logits[0].float(), out.hidden_states[-1][0]

    def prune(self, n: int, path: Sequence[int]) -> None:
        """Of the last `n` tokens keep some; see `Steps.prune`."""
        chosen = checked_path(self, n, path)
        if chosen != list(range(len(chosen))):
            begin = self.length - n
            at = torch.tensor([*range(begin), *(begin + place for place in chosen)])
            for layer in self._cache.layers:
                layer.keys, layer.values = (x.index_select(-2, at.to(x.device)) for x in (layer.keys, layer.values))
            self.length = len(at)
        else:
            self.rollback(n - len(chosen))

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]."""
        check_rollback(self, n)
        if n == self.length:
            self._cache = self._empty()
        elif n:
            self._cache.crop(-n)
        self.length -= n

    def fork(self) -> Stepper:
        """Return a run that goes on from here by itself; the cache is copied."""
        import copy

        twin = copy.copy(self)
        twin._cache = copy.deepcopy(self._cache)
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        chosen = checked_rows(self, rows)
        if chosen != list(range(self.batch)):
            self._cache.batch_select_indices(torch.tensor(chosen))
        self.batch = len(chosen)


def checked_layers(model: Model, layers: Sequence[int]) -> list[int]:
    """Return depths below the last, sorted, after checking them.

    Raises:
        OutOfRange: a depth that the model does not have.
        BadValue: a family whose last norm is not known.
    """
    if not all(1 <= n <= model.layers for n in layers):
        raise OutOfRange(f"layers {list(layers)}: '{model.name}' has 1 .. {model.layers}.")
    if "norm" not in model.family.modules:
        raise BadValue(f"the last norm of '{model.name}' ({model.family.name}) is not known: no early read-out.")
    return sorted(set(layers) - {model.layers})


def generate(
    model: Model,
    ids: Sequence[int],
    *,
    tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[tuple[int, float]]:
    """Go on with a text, token by token.

    Args:
        model: the model that speaks.
        ids: the prompt, with its start token if it shall have one.
        tokens: how many at most [count, 0 ..].
        temperature: of the softmax; 0 takes the likeliest token [ratio, 0 ..].
        top_k: draw among the k likeliest; 0: among all [count, 0 .. V].
        top_p: draw among the likeliest that together have this probability (Holtzman et al. 2020) [share, 0 < .. 1].
        seed: of the draws.
        stop: ids that end the text; the one met is yielded last.

    Yields:
        (id, log2 of the probability that the model itself, at temperature 1 and without cuts, gave it).
        Ends early where the trained context is full.
    """
    if not len(ids):
        raise EmptyText("generation needs a prompt of at least one token (the start token will do).")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or tokens < 0:
        seen = f"temperature={temperature}, top_p={top_p}, top_k={top_k}, tokens={tokens}"
        raise OutOfRange(f"{seen}: need temperature, top_k, tokens >= 0 and 0 < top_p <= 1.")
    return _generate(model, list(ids), tokens, temperature, top_k, top_p, seed, set(stop))


def _generate(
    model: Model, ids: list[int], tokens: int, temperature: float, top_k: int, top_p: float, seed: int, stop: set[int]
) -> Iterator[tuple[int, float]]:
    run = plain(model)
    generator = torch.Generator().manual_seed(seed)
    new = ids
    for _ in range(tokens):
        if model.context and run.length and run.length + len(new) > model.context:
            return
        logits = run.feed([new])[0].cpu()
        chosen = draw(logits, temperature, top_k, top_p, generator)
        yield chosen, float(logits.double().log_softmax(-1)[chosen]) / math.log(2)
        if chosen in stop:
            return
        new = [chosen]


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Return one id drawn from logits (V,); temperature 0: the likeliest, the smallest id among equals."""
    if temperature == 0:
        return int(logits.argmax())
    shaped = rules.temper(logits.float(), temperature)
    shaped = rules.top_k(shaped, top_k) if top_k else shaped
    shaped = rules.top_p(shaped, top_p) if top_p < 1 else shaped
    return int(torch.multinomial(shaped.softmax(-1), 1, generator=generator))
