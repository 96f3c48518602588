"""Matrices stored and used as a product of two: W = A B, with A (M, R) and B (R, N)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Factors:
    """A matrix of shape (M, N) given as A (M, R) times B (R, N); stored and used factored.

    For a table of embeddings M is the vocabulary: row v is `A[v] @ B`.
    """

    A: Tensor
    B: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the product."""
        return self.A.shape[0], self.B.shape[1]

    @property
    def rank(self) -> int:
        """R, the number of directions kept."""
        return self.A.shape[1]

    def dense(self) -> Tensor:
        """The product A B, shape (M, N)."""
        return self.A @ self.B


class Compact(nn.Module):
    """A layer or table whose matrix is stored other than dense; its dense values are under the name `weight`."""

    def plain(self) -> nn.Module:
        """Return the dense layer or table that this one stands for."""
        raise NotImplementedError


class Factored(Compact):
    """What the factored modules share: the two factors, and the product under the name `weight`."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter) -> None:
        super().__init__()
        self.A = A  # (M, R)
        self.B = B  # (R, N)

    @property
    def weight(self) -> Tensor:
        """The product A B (M, N), made anew at each call; for code that asks a layer for its weight."""
        return self.A @ self.B

    def extra_repr(self) -> str:
        """Rows, rank and columns, as printed in the module tree."""
        return f"{self.A.shape[0]} x [{self.A.shape[1]}] x {self.B.shape[1]}"


class FactoredEmbedding(Factored):
    """A table of embeddings looked up factored: `A[ids] @ B`, times the family's own scale."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter, scale: Tensor | None = None) -> None:
        super().__init__(A, B)
        self.num_embeddings, self.embedding_dim = A.shape[0], B.shape[1]
        if scale is not None:
            self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(...) ids to (..., D) vectors."""
        vectors = nn.functional.embedding(input_ids, self.A) @ self.B
        scale: Any = getattr(self, "embed_scale", None)
        return vectors if scale is None else vectors * scale.to(vectors.dtype)


class FactoredLinear(Factored):
    """A linear layer used factored: `x @ B.T @ A.T + bias`.

    `is_transposed` says that the layer in whose place it stands stores its weight as inputs x outputs (Conv1D).
    """

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, bias: nn.Parameter | None = None, *, is_transposed: bool = False
    ) -> None:
        super().__init__(A, B)
        self.out_features, self.in_features = A.shape[0], B.shape[1]
        self.bias = bias
        self.is_transposed = is_transposed

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., M)."""
        return nn.functional.linear(nn.functional.linear(x, self.B), self.A, self.bias)


def factored_like(module: Any, A: nn.Parameter, B: nn.Parameter) -> Factored | None:
    """Return the factored module that takes the place of `module`, or None if its kind cannot be factored."""
    if isinstance(module, nn.Embedding) or hasattr(module, "num_embeddings"):
        scale = getattr(module, "embed_scale", None)
        own_forward = not isinstance(module, Compact) and type(module).forward is not nn.Embedding.forward
        if own_forward and scale is None:
            return None  # a lookup of another kind, e.g. OPT's shifted positions
        return FactoredEmbedding(A, B, torch.as_tensor(scale) if scale is not None else None)
    if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "in_features"):
        return FactoredLinear(A, B, module.bias, is_transposed=is_transposed(module))
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer stores (or, factored, stood for one that stores) its weight as inputs x outputs."""
    return isinstance(module, Conv1D) or getattr(module, "is_transposed", False) is True


def dense_like(factored: Compact) -> nn.Module:
    """Return the plain layer or table that a factored or coded one stands for."""
    if not isinstance(factored, FactoredLinear | FactoredEmbedding):
        return factored.plain()
    product = (factored.A @ factored.B).detach()
    plain: Any
    if isinstance(factored, FactoredLinear):
        M, N = product.shape
        if factored.is_transposed:
            plain, product = Conv1D(M, N), product.T.contiguous()
        else:
            plain = nn.Linear(N, M, bias=False, device="meta")
        plain.bias = factored.bias
    elif hasattr(factored, "embed_scale"):
        plain = ScaledEmbedding(product.shape[0], product.shape[1], factored.get_buffer("embed_scale"))
    else:
        plain = nn.Embedding(product.shape[0], product.shape[1], device="meta")
    plain.weight = nn.Parameter(product, requires_grad=False)
    return plain


class ScaledEmbedding(nn.Embedding):
    """A table of embeddings whose vectors are multiplied by a scale of the family (Gemma)."""

    embed_scale: Tensor

    def __init__(self, rows: int, width: int, scale: Tensor) -> None:
        super().__init__(rows, width, device="meta")
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(...) ids to (..., D) vectors."""
        return super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)
