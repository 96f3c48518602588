"""Keys and values in pages: runs that began together share what they read together, and memory is taken as it is used.

A run holds a table of pages for each row; forking and repeating rows copies tables, not pages. A page that several
hold is copied when one of them is about to write into it.

Source: Kwon et al. (2023), PagedAttention, arXiv:2309.06180, section 4.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.models.bare import BareStepper
from kobza.models.model import Model
from kobza.models.stepping import checked_rows

PAGE = 16  # positions


class Pool:
    """A stock of pages that many runs draw on.

    Attributes:
        keys, values: (L, N, K, P, E), N pages.
        counts: how many tables name each page.
    """

    def __init__(self, layers: int, kv_heads: int, page: int, width: int) -> None:
        self.keys, self.values = (torch.empty(layers, 0, kv_heads, page, width) for _ in range(2))
        self.counts: list[int] = []
        self._free: list[int] = []

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers, keys and values: 2 L K P E 4."""
        layers, _, kv_heads, page, width = self.keys.shape
        return 2 * layers * kv_heads * page * width * 4

    @property
    def used(self) -> int:
        """Pages that a table names."""
        return len(self.counts) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use, each counted once."""
        return self.used * self.page_bytes

    def take(self) -> int:
        """Return a free page, now held once; the stock doubles where there is none."""
        if not self._free:
            more = max(8, len(self.counts))
            self._free += range(len(self.counts) + more - 1, len(self.counts) - 1, -1)
            self.counts += [0] * more
            self.keys, self.values = (
                torch.cat([x, x.new_empty(x.shape[0], more, *x.shape[2:])], 1) for x in (self.keys, self.values)
            )
        page = self._free.pop()
        self.counts[page] = 1
        return page

    def own(self, page: int) -> int:
        """Return a page of the same contents that is held once: itself, or a copy."""
        if self.counts[page] == 1:
            return page
        new = self.take()
        for x in (self.keys, self.values):
            x[:, new] = x[:, page]
        self.counts[page] -= 1
        return new

    def share(self, pages: Sequence[int]) -> list[int]:
        """Hold pages once more."""
        for page in pages:
            self.counts[page] += 1
        return list(pages)

    def leave(self, pages: list[int], begin: int = 0) -> None:
        """Let go of pages from place `begin` of a table on, and shorten it."""
        for page in pages[begin:]:
            self.counts[page] -= 1
            if not self.counts[page]:
                self._free.append(page)
        del pages[begin:]


class PagedStepper(BareStepper):
    """A bare step whose cache lies in pages; see `stepping.Steps`.

    Args:
        model: a model for which `bare.misfit` is "".
        batch: rows fed together, all of equal length.
        page: positions of a page [positions, 1 ..].
        is_native: use the C loops where they are there.
    """

    def __init__(self, model: Model, batch: int = 1, *, page: int = PAGE, is_native: bool = True) -> None:
        if page < 1:
            raise OutOfRange(f"page is {page}; allowed is 1 position or more.")
        self.page = page
        self.pages: list[list[int]] = []  # per row
        super().__init__(model, batch, is_native=is_native)
        self._held_by([[] for _ in range(batch)])

    def _set_aside(self, room: int) -> None:
        self.pool = Pool(self.model.layers, self._kv_heads, self.page, self._head_width)
        self._look()

    def _held_by(self, pages: list[list[int]]) -> None:
        """Take over tables; their pages are let go of when this run is gone."""
        self.pages = pages
        self._end = weakref.finalize(self, _left, self.pool, pages)
        self._look()

    def _look(self) -> None:
        """See the stock and the tables as they are now."""
        self.keys, self.values = self.pool.keys, self.pool.values
        self.table = np.array(self.pages, np.int64).reshape(self.batch, -1)
        if self.weight is not None and self.weight.shape[-1] < self._room:
            self.weight = torch.nn.functional.pad(self.weight, (0, self._room - self.weight.shape[-1]))

    @property
    def nbytes(self) -> int:
        """Bytes of the pages this run holds, those it shares included; `pool.nbytes` counts every page once."""
        return len({page for row in self.pages for page in row}) * self.pool.page_bytes

    def _reserve(self, at: int, T: int) -> None:
        for row in self.pages:
            for n in range(at // self.page, (at + T - 1) // self.page + 1):
                if n == len(row):
                    row.append(self.pool.take())
                else:
                    row[n] = self.pool.own(row[n])
        self._look()

    def _places(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the page (B, T) and the place in it (1, T) of positions (T,)."""
        return torch.from_numpy(self.table)[:, at // self.page], (at % self.page)[None]

    def _store(self, n: int, keys: Tensor, values: Tensor, at: int) -> None:
        pages, places = self._places(torch.arange(at, at + keys.shape[2]))
        for x, new in ((self.keys, keys), (self.values, values)):
            x[n][pages, :, places] = new.transpose(1, 2).float()  # (B, T, K, E)

    def _stored(self, n: int, end: int) -> tuple[Tensor, Tensor]:
        table = torch.from_numpy(self.table)
        keys, values = (x[n][table].transpose(1, 2).flatten(2, 3)[:, :, :end] for x in (self.keys, self.values))
        return keys, values

    def _moved(self, begin: int, at: Tensor) -> None:
        old, new = self._places(at), self._places(torch.arange(begin, begin + len(at)))
        for x in (self.keys, self.values):
            x[:, new[0], :, new[1]] = x[:, old[0], :, old[1]]

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]; pages that hold nothing any more are let go of."""
        super().rollback(n)
        for row in self.pages:
            self.pool.leave(row, -(-self.length // self.page))
        self._look()

    def keep(self, places: Sequence[int] | Tensor) -> None:
        """Refuse: pages are shared with runs that keep other positions."""
        raise BadValue("a paged cache drops no single positions.", "Use another store.")

    def fork(self) -> PagedStepper:
        """Return a run that goes on from here by itself; pages are shared until one of both writes into them."""
        twin = copy.copy(self)
        twin._held = list(self._held)
        twin.weight = None if self.weight is None else self.weight.clone()
        twin._held_by([self.pool.share(row) for row in self.pages])
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row named twice is held twice, and stored once."""
        chosen = checked_rows(self, rows)
        new = [self.pool.share(self.pages[row]) for row in chosen]
        _left(self.pool, self.pages)
        self.pages[:] = new
        self.batch = len(chosen)
        self.weight = None if self.weight is None else self.weight[:, :, torch.tensor(chosen)]
        self._look()


def _left(pool: Pool, pages: list[list[int]]) -> None:
    for row in pages:
        pool.leave(row)


def paged_bytes(model: Any, positions: int, *, page: int = PAGE, rows: int = 1, shared: int = 0) -> int:
    """Return the bytes of rows of so many positions by formula, the first `shared` of which all have in common.

    Whole pages of the shared part are stored once; one that is cut is copied by every row but the last to write.
    """
    config = model.config
    heads = int(config.num_attention_heads)
    K = int(getattr(config, "num_key_value_heads", None) or heads)
    E = int(getattr(config, "head_dim", None) or model.width // heads)
    common = shared // page
    pages = common + rows * (-(-positions // page) - common)
    return pages * 2 * int(model.layers) * K * page * E * 4
