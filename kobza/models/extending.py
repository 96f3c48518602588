"""Self-extend: positions far away are counted in groups, so that a model reads texts longer than it was trained for.

Keys within the window are seen where they are, those before it by the number of their group; no weight changes. The
rotation is applied when keys are read, once for each way of counting, so only the torch path of the bare step serves.

Source: Jin et al. (2024), arXiv:2401.01325, section 3.2 and the pseudocode of appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.models.bare import BareStepper, rotated
from kobza.models.model import Model


class ExtendedStepper(BareStepper):
    """A bare step that counts far positions in groups; see `stepping.Steps`.

    Args:
        model: a model for which `bare.misfit` is "".
        batch: rows fed together, all of equal length.
        group: positions of a group [positions, 1 ..]; 1 changes nothing.
        window: distance from which on groups are counted [positions, 1 .. trained context].

    Attributes:
        context: positions that can be read, group x (trained - window) + window.

    Raises:
        OutOfRange: an option outside its range.
    """

    def __init__(self, model: Model, batch: int = 1, *, group: int = 4, window: int = 512) -> None:
        trained = model.context or 0
        if group < 1 or not 1 <= window <= trained:
            raise OutOfRange(f"group {group}, window {window}: need 1 or more, and 1 .. {trained} (trained positions).")
        self.group, self.window = group, window
        super().__init__(model, batch, is_native=False)
        self.context = group * (trained - window) + window

    def _turned(self, at: int, T: int, parents: object = None) -> tuple[Tensor, Tensor]:
        """Leave queries and keys as they are: they are rotated when read."""
        if at + T > len(self.cos):
            self._rotations(max(2 * len(self.cos), at + T))
        return torch.ones(T, self._head_width), torch.zeros(T, self._head_width)

    def _attended(self, n: int, q: Tensor, at: int, visible: Tensor | None) -> Tensor:
        T = q.shape[2]
        keys, values = (x.float().repeat_interleave(self._heads // self._kv_heads, 1) for x in self._stored(n, at + T))
        own, there = torch.arange(at, at + T), torch.arange(at + T)
        near = self._scores(q, keys, own, there)
        # a query stands behind its group by what the window is longer than its groups: both counts meet there
        far = self._scores(q, keys, own // self.group + self.window - self.window // self.group, there // self.group)
        distance = own[:, None] - there
        scores = torch.where(distance < self.window, near, far).masked_fill(distance < 0, -torch.inf)
        return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)

    def _scores(self, q: Tensor, keys: Tensor, own: Tensor, there: Tensor) -> Tensor:
        q, keys = (rotated(x.float(), self.cos[at], self.sin[at]) for x, at in ((q, own), (keys, there)))
        return q @ keys.transpose(-1, -2) * self._scale
