"""Matrices stored and used as a product of two: W = A B, with A (M, R) and B (R, N)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


class Factored(nn.Module):
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
        """(..., ) ids to (..., D) vectors."""
        vectors = nn.functional.embedding(input_ids, self.A) @ self.B
        return vectors * self.embed_scale.to(vectors.dtype) if hasattr(self, "embed_scale") else vectors


class FactoredLinear(Factored):
    """A linear layer used factored: `x @ B.T @ A.T + bias`."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__(A, B)
        self.out_features, self.in_features = A.shape[0], B.shape[1]
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., M)."""
        return nn.functional.linear(nn.functional.linear(x, self.B), self.A, self.bias)


def factored_like(module: nn.Module, A: nn.Parameter, B: nn.Parameter) -> Factored | None:
    """Return the factored module that takes the place of `module`, or None if its kind cannot be factored."""
    if isinstance(module, (nn.Embedding, FactoredEmbedding)):
        scale = getattr(module, "embed_scale", None)
        own_forward = type(module).forward not in (nn.Embedding.forward, FactoredEmbedding.forward)
        if own_forward and scale is None:
            return None  # a lookup of another kind, e.g. OPT's shifted positions
        return FactoredEmbedding(A, B, torch.as_tensor(scale) if scale is not None else None)
    if isinstance(module, nn.Linear | FactoredLinear) or type(module).__name__ == "Conv1D":
        return FactoredLinear(A, B, module.bias)
    return None
