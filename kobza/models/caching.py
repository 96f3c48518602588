"""The bare step with keys and values stored as small whole numbers.

A block's entries are unpacked into one buffer that all blocks share, so that float32 is never held for more than one
block; what a feed adds is packed when its block is done, and within that feed seen as it was.

Source: keys per channel in groups of positions, values per position (Liu et al. 2024, KIVI, arXiv:2402.02750, section
3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.models import attention
from kobza.models.bare import BareStepper
from kobza.models.model import Model
from kobza.models.stepping import checked_rows

GROUP = 32  # positions that share a scale where keys are packed per channel (KIVI, table 4)
SCALES = 4  # bytes: least value and step, float16 each
Along = Literal["token", "channel"]


class Packed:
    """Vectors (B, K, S, E) of one block, packed in groups.

    Args:
        bits: of a stored number [bits, 4 or 8].
        along: what shares a least value and a step: a vector ("token"), or a channel over 32 positions ("channel").
        empty: (B, K, 0, E).
    """

    def __init__(self, bits: int, along: Along, empty: Tensor) -> None:
        self.bits = bits
        self.group = GROUP if along == "channel" else 1
        self.dim = -2 if along == "channel" else -1
        self.rest = empty  # behind the last full group
        self.codes, self.scales = self._coded(empty)

    def _coded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (B, K, S / G, G, E bits / 8) and scales (2, B, K, S / G, 1, E or 1) of full groups."""
        values = values.unflatten(2, (values.shape[2] // self.group, self.group))
        low, high = values.amin(self.dim, keepdim=True), values.amax(self.dim, keepdim=True)
        most = 2**self.bits - 1
        scales = torch.stack([low, (high - low) / most]).half()
        low, step = scales.float()
        codes = ((values - low) / step.clamp(min=1e-12)).round().clamp(0, most).byte()
        return (codes[..., ::2] | codes[..., 1::2] << 4 if self.bits == 4 else codes), scales

    def add(self, values: Tensor) -> None:
        """Put vectors (B, K, T, E) behind what is stored."""
        values = torch.cat([self.rest, values], 2)
        full = values.shape[2] // self.group * self.group
        codes, scales = self._coded(values[:, :, :full])
        self.codes, self.scales = torch.cat([self.codes, codes], 2), torch.cat([self.scales, scales], 3)
        self.rest = values[:, :, full:].clone()

    def read(self) -> Tensor:
        """Return all vectors (B, K, S, E): within half a step of what they were, and the rounding of scales."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
        low, step = self.scales.float()
        return torch.cat([(codes.float() * step + low).flatten(2, 3), self.rest], 2)

    def cut(self, length: int) -> None:
        """Keep the first vectors; a group that is cut in two is unpacked."""
        full = length // self.group
        self.rest = self.read()[:, :, full * self.group : length].clone()
        self.codes, self.scales = self.codes[:, :, :full].clone(), self.scales[:, :, :, :full].clone()

    def rows(self, at: Tensor) -> None:
        """Go on with these rows, in this order."""
        self.codes, self.scales = self.codes.index_select(0, at), self.scales.index_select(1, at)
        self.rest = self.rest.index_select(0, at)

    def take(self, at: Tensor) -> None:
        """Keep the vectors (B, K, n) of every head; where each has scales of its own."""
        at = at[..., None, None]
        self.codes = self.codes.gather(2, at.expand(*at.shape[:3], *self.codes.shape[3:]))
        self.scales = self.scales.gather(3, at.expand(2, *at.shape[:3], *self.scales.shape[4:]))

    def replace(self, begin: int, at: Tensor) -> None:
        """Put the vectors at some places in a row from `begin` on, and forget what follows."""
        chosen = self.read()[:, :, at]
        self.cut(begin)
        self.add(chosen)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and what is not packed yet."""
        return self.codes.nbytes + self.scales.nbytes + self.rest.nbytes


def cache_bytes(model: Model, positions: int, *, bits: int = 32, keys: Along = "token", batch: int = 1) -> int:
    """Return the bytes that a cache of so many positions takes, by formula.

    Of 32 bits: 2 L B K S E 4. Else a vector of E numbers takes E bits / 8 + 4 bytes; keys per channel take E 4 bytes of
    scales for every 32 positions instead, and the last S mod 32 stay float32.
    """
    config = model.config
    heads = int(config.num_attention_heads)
    K = int(getattr(config, "num_key_value_heads", None) or heads)
    E = int(getattr(config, "head_dim", None) or model.width // heads)
    rows = model.layers * batch * K
    if bits == 32:
        return 2 * rows * positions * E * 4
    per_token = positions * (E * bits // 8 + SCALES)
    if keys == "token":
        return 2 * rows * per_token
    groups, rest = divmod(positions, GROUP)
    return rows * (per_token + groups * E * (GROUP * bits // 8 + SCALES) + rest * E * 4)


class PackedStepper(BareStepper):
    """A bare step whose cache is packed; see `stepping.Steps`.

    Args:
        model: a model for which `bare.misfit` is "".
        batch: rows fed together, all of equal length.
        bits: of a stored number [bits, 4 or 8].
        keys: share a step per position and head ("token") or per channel over 32 positions ("channel"), of which the
            unfinished last 32 stay float32. Values are packed per position and head.
        nearest: keys of the highest scores that a head attends to; 0 attends to all [keys, 0 ..].

    Raises:
        BadValue: other bits, or heads of odd width with 4.
    """

    def __init__(self, model: Model, batch: int = 1, *, bits: int = 8, keys: Along = "token", nearest: int = 0) -> None:
        if bits not in (4, 8):
            raise BadValue(f"a cache of {bits} bits: give 4 or 8.")
        self.is_per_channel = keys == "channel"
        super().__init__(model, batch, nearest=nearest)
        if self._head_width % 2 and bits == 4:
            raise BadValue(f"heads of odd width {self._head_width} cannot be packed two numbers to a byte.")
        empty = torch.empty(batch, self._kv_heads, 0, self._head_width)
        self.store = [(Packed(bits, keys, empty), Packed(bits, "token", empty)) for _ in range(model.layers)]

    def _set_aside(self, room: int) -> None:
        """Make the buffers that all blocks share, (1, B, K, S, E), seen as one per block."""
        buffers = torch.empty(2, 1, self.batch, self._kv_heads, room, self._head_width)
        self.keys, self.values = (buffer.expand(self.model.layers, -1, -1, -1, -1) for buffer in buffers)
        self._sized(room)

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored; the buffers that all blocks share come on top."""
        return sum(side.nbytes for side in self._sides())

    def _sides(self) -> Iterator[Packed]:
        return (side for sides in self.store for side in sides)

    def _through(self, states: Tensor, first: int, last: int, at: int, parents: Sequence[int] | None = None) -> Tensor:
        """Run blocks first .. last-1, each over what was stored for it."""
        T = states.shape[1]
        begin = at - self.dropped
        self._reserve(begin, T)
        cos, sin = self._turned(at, T, parents)
        visible = None if parents is None else attention.lineage(parents)
        for n in range(first, last):
            buffers = (self.keys[n], self.values[n])
            for buffer, side in zip(buffers, self.store[n], strict=True):
                buffer[:, :, :begin] = side.read()
            if self._is_small(states):
                states = states.float().contiguous()
                self._loops(slice(n, n + 1), states, cos, sin, begin, 0, 1, visible)
            else:
                states = self._plain(n, states.to(self.model.dtype), cos, sin, begin, visible)
            for buffer, side in zip(buffers, self.store[n], strict=True):
                side.add(buffer[:, :, begin : begin + T])
        return states

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length, less what was dropped]."""
        super().rollback(n)
        for side in self._sides() if n else ():
            side.cut(self.length - self.dropped)

    def _moved(self, begin: int, at: Tensor) -> None:
        for side in self._sides():
            side.replace(begin, at)

    def keep(self, places: Sequence[int] | Tensor) -> None:
        """Drop all stored positions but these; see `BareStepper.keep`.

        Raises:
            BadValue: keys packed per channel, whose groups cannot lose single positions.
        """
        if self.is_per_channel:
            raise BadValue("keys packed per channel cannot drop single positions.", "Pack them per token.")
        at = self.checked_places(places)
        for n, sides in enumerate(self.store):
            for side in sides:
                side.take(at[n])
        self._weigh(at)
        self.dropped = self.length - at.shape[-1]

    def fork(self) -> PackedStepper:
        """Return a run that goes on from here by itself; the cache is copied."""
        twin = copy.copy(self)
        twin.store, twin._held = copy.deepcopy(self.store), list(self._held)
        twin._set_aside(self.keys.shape[3])
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        chosen = checked_rows(self, rows)
        for side in self._sides():
            side.rows(torch.tensor(chosen))
        self.batch = len(chosen)
        self._set_aside(self.keys.shape[3])
