"""The run of a module without a cache: all that was read is read again with every token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kobza.models import attention
from kobza.models.model import Model
from kobza.models.states import head
from kobza.models.stepping import (
    Ids,
    check_rollback,
    checked,
    checked_batch,
    checked_layers,
    checked_path,
    checked_rows,
    checked_tree,
)


class Rereader:
    """The run of a module without a cache: all that was read is read again with every token; see `Steps`.

    Args:
        model: the model to run.
        batch: rows fed together, all of equal length.
    """

    def __init__(self, model: Model, batch: int = 1) -> None:
        self.model = model
        self.batch = checked_batch(batch)
        self.length = 0
        self._ids = torch.empty(batch, 0, dtype=torch.long)

    @torch.inference_mode()
    def _read(self, ids: Ids, keep: int) -> Any:
        self._ids = torch.cat([self._ids, checked(self, ids, keep).cpu()], 1)
        self.length = self._ids.shape[1]
        return self._run(self._ids, keep)

    @torch.inference_mode()
    def _run(self, ids: Tensor, keep: int) -> Any:
        return self.model.module(input_ids=ids.to(self.model.device), logits_to_keep=keep, output_hidden_states=True)

    def feed(self, ids: Ids, *, keep: int = 1) -> Tensor:
        """Read more tokens; see `Steps.feed`."""
        logits: Tensor = self._read(ids, keep).logits.float()
        return logits[:, 0] if keep == 1 else logits

    @torch.inference_mode()
    def feed_layers(self, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
        """Read more tokens, and read out several depths; see `Steps.feed_layers`."""
        wanted = checked_layers(self.model, layers)
        out = self._read(ids, 1)
        norm = self.model.module.get_submodule(self.model.family.modules["norm"])
        found = {n: head(self.model, norm(out.hidden_states[n][:, -1])).float() for n in wanted}
        return found | {self.model.layers: out.logits[:, -1].float()}

    def feed_states(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Read more tokens; see `Steps.feed_states`."""
        out = self._read(ids, 1)
        return out.logits[:, -1].float(), out.hidden_states[-1][:, -len(torch.as_tensor(ids)[0]) :]

    def feed_tree(self, ids: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read a tree of tokens, one branch after the other; see `Steps.feed_tree`."""
        fed = checked_tree(self, ids, parents).cpu()
        rows, states = [], []
        for seen in attention.lineage(parents):
            out = self._run(torch.cat([self._ids, fed[:, seen]], 1), 1)
            rows.append(out.logits[0, -1].float())
            states.append(out.hidden_states[-1][0, -1])
        self._ids = torch.cat([self._ids, fed], 1)
        self.length += len(parents)
        return torch.stack(rows), torch.stack(states)

    def prune(self, n: int, path: Sequence[int]) -> None:
        """Of the last `n` tokens keep some; see `Steps.prune`."""
        chosen = checked_path(self, n, path)
        begin = self.length - n
        self._ids = self._ids[:, [*range(begin), *(begin + place for place in chosen)]]
        self.length = self._ids.shape[1]

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]."""
        check_rollback(self, n)
        self._ids = self._ids[:, : self.length - n]
        self.length -= n

    def fork(self) -> Rereader:
        """Return a run that goes on from here by itself."""
        return copy.copy(self)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        self._ids = self._ids[checked_rows(self, rows)]
        self.batch = len(self._ids)
