"""llama.cpp behind the interface of `stepping`: a GGUF file run as it is stored, through llama-cpp-python.

The weights stay quantized, so logits differ from those of the opened Model by the rounding of llama.cpp's own
arithmetic (8-bit activations). Rows of a batch are llama.cpp's sequences in one unified cache.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import BadValue, InputRefused, MissingExtra, OutOfMemory, OutOfRange, Unavailable
from kobza.models.model import Model
from kobza.models.stepping import Ids, check_rollback, checked, checked_path, checked_rows

CONTEXT = 8192  # positions at most: the cache is set aside as a whole
ROWS = 32  # rows at most; half of the sequences, so that rows can be copied before old ones go
BATCH = 512  # tokens handed over at once


def library() -> Any:
    """Return the module `llama_cpp`, silenced.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import llama_cpp
    except ImportError:
        raise MissingExtra.of("the backend llama", "llama-cpp-python", "llama") from None
    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p(0))
    return llama_cpp


@lru_cache(maxsize=1)
def _silence() -> Any:
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)  # kept: C holds its address


@lru_cache(maxsize=2)
def _opened(path: str, stamp: tuple[int, int]) -> Any:
    """The file as llama.cpp holds it; `stamp` tells it from another file that stood at that place before."""
    from llama_cpp import _internals

    lib = library()
    try:
        return _internals.LlamaModel(path_model=path, params=lib.llama_model_default_params(), verbose=False)
    except ValueError as error:
        raise InputRefused(f"llama.cpp does not read {path}: {error}.") from None


class LlamaStepper:
    """The run of a GGUF file by llama.cpp; see `stepping.Steps`.

    Args:
        model: a model opened from a GGUF file and not edited since.
        batch: rows fed together [count, 1 .. 32].

    Raises:
        BadValue: the model is edited or does not come from a GGUF file. MissingExtra: llama.cpp is not installed.
    """

    def __init__(self, model: Model, batch: int = 1) -> None:
        if not 1 <= batch <= ROWS:
            raise OutOfRange(f"batch {batch}: llama.cpp runs 1 .. {ROWS} rows here.")
        if model.origin.kind != "gguf" or model.changes:
            what = f"was edited ({model.changes[-1]})" if model.changes else f"was opened from {model.origin.kind!r}"
            raise BadValue(f"llama.cpp runs GGUF files as they are; '{model.name}' {what}.", "Use the backend auto.")
        self.model, self.batch, self.length = model, batch, 0
        self._lib = library()
        about = os.stat(model.origin.path)
        self._weights = _opened(model.origin.path, (about.st_mtime_ns, about.st_size))
        self._context = self._begun()
        self._rows = list(range(batch))
        self._tokens = self._internals.LlamaBatch(n_tokens=BATCH, embd=0, n_seq_max=1, verbose=False)

    @property
    def _internals(self) -> Any:
        from llama_cpp import _internals

        return _internals

    def _begun(self) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = min(self.model.context or CONTEXT, CONTEXT)
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.n_seq_max, params.kv_unified, params.no_perf = 2 * ROWS, True, True
        try:
            context = self._internals.LlamaContext(model=self._weights, params=params, verbose=False)
        except ValueError:
            raise OutOfMemory(f"llama.cpp found no room for a cache of {params.n_ctx} positions.") from None
        weakref.finalize(self, context.close)  # the weights, which outlive this run, would hold the cache for ever
        return context

    def feed(self, ids: Ids, *, keep: int = 1) -> Tensor:
        """Read more tokens; see `Steps.feed`.

        Raises:
            OutOfRange: a wrong shape, or more positions than the model or the cache has.
        """
        fed = checked(self, ids, keep).tolist()
        T = len(fed[0])
        if (self.length + T) * self.batch > self._context.n_ctx():
            raise OutOfRange(f"{self.batch} x {self.length + T} positions exceed the cache of llama.cpp here, "
                             f"{self._context.n_ctx()}.")  # fmt: skip
        entries = [(row, t) for t in range(T) for row in range(self.batch)]
        found: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
        for first in range(0, len(entries), BATCH):
            self._decode(fed, entries[first : first + BATCH], T - keep, found)
        self.length += T
        rows = [[found[row, t] for t in range(T - keep, T)] for row in range(self.batch)]
        logits = torch.from_numpy(np.array(rows))
        return logits[:, 0] if keep == 1 else logits

    def _decode(self, fed: list[list[int]], entries: list[tuple[int, int]], first_kept: int, found: Any) -> None:
        batch = self._tokens.batch
        batch.n_tokens = len(entries)
        for i, (row, t) in enumerate(entries):
            batch.token[i], batch.pos[i] = fed[row][t], self.length + t
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, self._rows[row]
            batch.logits[i] = t >= first_kept
        state = self._lib.llama_decode(self._context.ctx, batch)
        if state:
            raise Unavailable(f"llama.cpp gave up with state {state} on {len(entries)} tokens.")
        for i, (row, t) in enumerate(entries):
            if t >= first_kept:
                pointer = self._lib.llama_get_logits_ith(self._context.ctx, i)
                found[row, t] = np.ctypeslib.as_array(pointer, shape=(self.model.vocabulary,)).copy()

    def feed_layers(self, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
        """Refuse: llama.cpp gives no states of layers."""
        raise BadValue("llama.cpp reads out no layer but the last.", "Use the backend auto.")

    def feed_states(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Refuse: llama.cpp gives no states of layers."""
        raise BadValue("llama.cpp gives no states of layers.", "Use the backend auto.")

    def feed_tree(self, ids: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Refuse: tokens of one sequence follow each other here."""
        raise BadValue("llama.cpp is not fed trees here.", "Use the backend auto.")

    def prune(self, n: int, path: Sequence[int]) -> None:
        """Refuse, for the same reason, any path but the first tokens."""
        chosen = checked_path(self, n, path)
        if chosen != list(range(len(chosen))):
            raise BadValue("llama.cpp is not fed trees here.", "Use the backend auto.")
        self.rollback(n - len(chosen))

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]."""
        check_rollback(self, n)
        self.length -= n
        for row in self._rows:
            self._lib.llama_memory_seq_rm(self._context.memory, row, self.length, -1)

    def fork(self) -> LlamaStepper:
        """Return a run that goes on from here by itself; the cache is copied."""
        twin = LlamaStepper(self.model, self.batch)
        for old, new in zip(self._rows, twin._rows, strict=True):
            size = self._lib.llama_state_seq_get_size(self._context.ctx, old)
            state = (ctypes.c_uint8 * size)()
            self._lib.llama_state_seq_get_data(self._context.ctx, state, size, old)
            self._lib.llama_state_seq_set_data(twin._context.ctx, state, size, new)
        twin.length = self.length
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        chosen = checked_rows(self, rows)
        if len(chosen) > ROWS:
            raise OutOfRange(f"{len(chosen)} rows: llama.cpp runs 1 .. {ROWS} here.")
        free = [n for n in range(2 * ROWS) if n not in self._rows][: len(chosen)]
        for row, new in zip(chosen, free, strict=True):
            self._lib.llama_memory_seq_cp(self._context.memory, self._rows[row], new, 0, -1)
        for old in self._rows:
            self._lib.llama_memory_seq_rm(self._context.memory, old, 0, -1)
        self._rows, self.batch = free, len(chosen)
