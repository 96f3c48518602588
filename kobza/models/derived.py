"""Sites that no module hands on: what each head adds to the stream, and what a norm divides by.

They are computed from what goes into a module; a change of them is carried into what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kobza.models.sites import Place, Site, heads

if TYPE_CHECKING:
    from kobza.models.model import Model


@dataclass(frozen=True)
class Derived:
    """A value beside a module.

    Attributes:
        read: from the module's input to the value, (B, T, X) or (B, T, H, D).
        written: from the module's output, the old and the new value to the new output.
    """

    read: Callable[[Tensor], Tensor]
    written: Callable[[Tensor, Tensor, Tensor], Tensor]


def derived(model: Model, site: Site, place: Place) -> Derived:
    """Return how the value of a `head_out` or a scale is made and put back."""
    if place.side == "heads":
        return _head_outputs(model, site, place)
    return Derived(lambda given: scale(place.module, given), lambda *values: _rescaled(place.module, *values))


def _head_outputs(model: Model, site: Site, place: Place) -> Derived:
    W = model.matrix(f"blocks.{site.layer}.attn.o")  # (D, H E)
    by_head = W.unflatten(1, (heads(model, site.name), -1))  # (D, H, E)

    def read(given: Tensor) -> Tensor:
        z = given.unflatten(-1, by_head.shape[1:])
        return torch.einsum("bthe,dhe->bthd", z, by_head.to(z)) * place.scale

    def written(output: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return output + (new - old).sum(2) / place.scale

    return Derived(read, written)


def scale(norm: Any, given: Tensor) -> Tensor:
    """Return what a norm divides by, (B, T, 1): root mean square (RMSNorm) or standard deviation (LayerNorm)."""
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    wide = given.float()
    wide = wide if _is_root_mean_square(norm) else wide - wide.mean(-1, keepdim=True)
    return (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt().to(given.dtype)


def _is_root_mean_square(norm: Any) -> bool:
    return "rms" in type(norm).__name__.lower()


def _rescaled(norm: Any, output: Tensor, old: Tensor, new: Tensor) -> Tensor:
    bias = getattr(norm, "bias", None)
    return output * (old / new) if bias is None else (output - bias) * (old / new) + bias
