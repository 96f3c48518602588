"""A TopK sparse autoencoder: a site's values as sums of few directions out of many.

Shared ground of the room, not a technique. Values are centered and scaled to a mean square of 1 per coordinate; the k
largest of W inner products are kept; the value is rebuilt from the k rows of the decoder. Latents that have not fired
for a while are drawn to what the others leave over (the auxiliary loss).

Source: Gao et al. (2024), arXiv:2406.04093: TopK (section 2.3), tied start, unit rows and auxiliary loss (appendix A).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.files import write_atomic
from kobza.models.fitting import fit

AUXILIARY = 1 / 32  # weight of the auxiliary loss (appendix A.2)
PATIENCE = 20  # updates without firing after which a latent counts as dead; at least width / k, see `train`
CODES = 4096  # rows encoded at once: their (rows, W) products stay small


@dataclass(frozen=True)
class Autoencoder:
    """A trained dictionary.

    Attributes:
        encoder: (W, D), bias: (W,).
        decoder: (W, D), rows of length 1: the directions.
        center: (D,), taken away first.
        scale: what is left is divided by it.
        k: latents kept per value.
        about: how it was trained, plain data.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    center: Tensor
    scale: float
    k: int
    about: dict[str, Any]

    @property
    def width(self) -> int:
        """W, the number of latents."""
        return len(self.decoder)

    @torch.inference_mode()
    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the strengths (N, k), not negative, and the latents (N, k) of values (N, D)."""
        parts = [_chosen(self._normal(part), self.encoder, self.bias, self.k) for part in values.split(CODES)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    @torch.inference_mode()
    def decode(self, strengths: Tensor, latents: Tensor) -> Tensor:
        """Return values (N, D) rebuilt from strengths and latents (N, k)."""
        return _rebuilt(strengths, latents, self.decoder) * self.scale + self.center

    def rebuild(self, values: Tensor) -> Tensor:
        """Return values (..., D) after encoding and decoding."""
        flat = values.reshape(-1, values.shape[-1]).float()
        return self.decode(*self.encode(flat)).reshape(values.shape).to(values)

    def _normal(self, values: Tensor) -> Tensor:
        return (values.float() - self.center) / self.scale

    def save(self, path: str | Path) -> Path:
        """Write it to a safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in ("encoder", "bias", "decoder", "center")}
        about = json.dumps({"scale": self.scale, "k": self.k, "about": self.about})
        return write_atomic(path, save(tensors, {"kobza.autoencoder": about}))

    @classmethod
    def load(cls, path: str | Path) -> Autoencoder:
        """Read what `save` wrote."""
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("encoder", "bias", "decoder", "center")}
            return cls(**tensors, **json.loads(file.metadata()["kobza.autoencoder"]))


def train(
    values: Tensor, *, width: int, k: int, steps: int, batch: int = 1024, rate: float = 1e-3, seed: int = 0,
    about: dict[str, Any] | None = None,
) -> tuple[Autoencoder, list[float]]:  # fmt: skip
    """Fit a dictionary to values.

    Args:
        values: (N, D).
        width: latents W [count, 1 ..].
        k: latents kept per value [count, 1 .. W].
        steps: updates [count, 1 ..].
        batch: values per update, drawn at random [count, 1 ..].
        rate: learning rate [per step, 0 < ..].
        seed: of start and batches.
        about: kept with it.

    Returns:
        The Autoencoder, and the share of the variance left unexplained at each step.

    Raises:
        OutOfRange: k exceeds the width, or there are no values.
    """
    if not 1 <= k <= width or len(values) < 2:
        raise OutOfRange(f"k={k}, width={width}, {len(values)} values: k from 1 to the width, at least 2 values.")
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        center = values.double().mean(0).float()
        scale = float((values - center).double().square().mean().sqrt()) or 1.0
        fitted = _Fitting(values, center, scale, width, k, batch, draw, torch.full((width,), -1))
        fit(fitted.parameters, fitted.loss, steps=steps, rate=rate, label="dictionary")
    encoder, bias, decoder = (p.detach() for p in fitted.parameters)
    return Autoencoder(encoder, bias, _unit(decoder), center, scale, k, about or {}), fitted.history


class _Fitting:
    """What changes while a dictionary is fitted."""

    def __init__(
        self, values: Tensor, center: Tensor, scale: float, width: int, k: int, batch: int, draw: torch.Generator,
        fired: Tensor,
    ) -> None:  # fmt: skip
        self.values, self.center, self.scale, self.k, self.batch, self.draw = values, center, scale, k, batch, draw
        self.fired = fired  # the step at which each latent was last among the k
        start = _unit(torch.randn(width, values.shape[1], generator=draw))
        self.parameters = [start.clone(), torch.zeros(width), start]  # tied start, untied afterwards
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.patience = max(PATIENCE, 4 * width // (k * batch))
        self.history: list[float] = []

    def loss(self, step: int) -> Tensor:
        encoder, bias, decoder = self.parameters
        with torch.no_grad():
            decoder.copy_(_unit(decoder))
        at = torch.randint(len(self.values), (self.batch,), generator=self.draw)
        x = (self.values[at] - self.center) / self.scale
        products = F.linear(x, encoder, bias)
        strengths, latents = products.topk(self.k, sorted=False)
        strengths = strengths.relu()
        left = x - _rebuilt(strengths, latents, decoder)
        error = left.square().mean()
        self.history.append(error.item())
        self.fired[latents[strengths > 0]] = step
        dead = torch.nonzero(step - self.fired > self.patience)[:, 0]
        return error + AUXILIARY * self._auxiliary(left.detach(), products, dead) if len(dead) else error

    def _auxiliary(self, left: Tensor, products: Tensor, dead: Tensor) -> Tensor:
        """Error of rebuilding what is left by the dead latents alone."""
        count = min(len(dead), max(self.k, left.shape[1] // 2))
        strengths, which = products[:, dead].topk(count, sorted=False)
        rebuilt = _rebuilt(strengths.relu(), dead[which], self.parameters[2])
        return (left - rebuilt).square().mean() / left.square().mean().clamp_min(1e-12)


def _chosen(x: Tensor, encoder: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    strengths, latents = F.linear(x, encoder, bias).topk(k)
    return strengths.relu(), latents


def _rebuilt(strengths: Tensor, latents: Tensor, decoder: Tensor) -> Tensor:
    """Sum of decoder rows, (N, D): only the k rows of each value are touched."""
    return F.embedding_bag(latents, decoder, per_sample_weights=strengths, mode="sum")


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
