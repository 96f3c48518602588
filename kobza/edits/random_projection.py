"""Random projection: squeeze every row through a random subspace and back, W P P+.

With P (N, k) Gaussian and P+ its pseudo-inverse, P P+ is the orthogonal projection on a random k-dimensional subspace:
k/N times the identity, plus an error matrix R without direction. All distances shrink nearly alike (Johnson &
Lindenstrauss), which is why it can hurt a model less than a truncated SVD with half its error.

Sources: Johnson & Lindenstrauss (1984), doi:10.1090/conm/026/737400; moments of the entries of P P+ follow from the
Beta distribution of its diagonal (see `picture`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.figure import Figure
from kobza.edits import base
from kobza.models.model import Factors, Model

SHOWN = 96  # rows and columns of the operator that a picture shows


def apply(
    model: Model,
    *,
    where: str = "embed",
    rank: int = 384,
    rescale: bool = False,
    store: Literal["dense", "factors"] = "dense",
    seed: int = 0,
) -> Model:
    """Project the rows of every chosen matrix W (M, N) on a random subspace of `rank` dimensions.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix.
        rank: dimensions of the subspace [count, 1 .. columns]; all columns change nothing.
        rescale: multiply by columns / rank, which makes the mean diagonal of the operator 1.
        store: dense: the product, of the old shape and bytes. factors: A (M, r) and B (r, N), stored and used so.
        seed: of the subspace; each matrix draws from a generator of (seed, its name) [integer, 0 ..].

    Returns:
        A fork; equal seeds give equal bits. The relative error is near sqrt(1 - k/N), rescaled near sqrt(N/k - 1).

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        OutOfRange: `rank` exceeds the columns of a matrix; the message names it and its shape.

    Cost: O(M N rank) per matrix.
    """
    names = base.select(model, where)
    for name in names:
        base.require_rank(name, model.matrix(name).shape, rank, model.matrix(name).shape[1])
    tensors: dict[str, Tensor | Factors] = {}
    for name in names:
        W = model.matrix(name)
        if rank == W.shape[1] and store == "dense":
            tensors[name] = W  # the whole space: the very same numbers
            continue
        Q = subspace(W.shape[1], rank, base.generator(seed, name)).to(W)
        A, B = W @ Q, Q.T * (W.shape[1] / rank if rescale else 1.0)
        tensors[name] = Factors(A, B) if store == "factors" else A @ B
    options = {"where": where, "rank": rank, "rescale": rescale, "store": store}
    return base.edited(model, "random_projection", options, tensors, seed=seed)


def subspace(width: int, rank: int, numbers: torch.Generator) -> Tensor:
    """Return an orthonormal basis (N, k), float64, of the span of k Gaussian vectors; P P+ = Q Q^T."""
    P = torch.randn(width, rank, generator=numbers, dtype=torch.float64)
    return torch.linalg.qr(P)[0]


def operator(width: int, rank: int, *, seed: int = 0) -> Tensor:
    """Return P P+ (N, N), float64, as `apply` uses it on the input end of a model of that width."""
    if not 1 <= rank <= width:
        raise OutOfRange(f"rank={rank} is not a number of dimensions of {width}; allowed: 1 .. {width}.")
    Q = subspace(width, rank, base.generator(seed, "embed"))
    return Q @ Q.T


def statistics(width: int, rank: int, *, seed: int = 0) -> dict[str, Any]:
    """Return mean and spread of the entries of P P+, seen and expected.

    Expected: mean diagonal k/N exactly (the trace is k); variance of the diagonal 2k(N-k) / (N^2 (N+2)); of the
    rest k(N-k) / (N (N-1) (N+2)).
    """
    N, k = width, rank
    P = operator(width, rank, seed=seed)
    rest = P[~torch.eye(N, dtype=torch.bool)]
    return {
        "diagonal_mean": float(P.trace()) / N,
        "diagonal_mean_expected": k / N,
        "diagonal_std": float(P.diagonal().std(correction=0)),
        "diagonal_std_expected": (2 * k * (N - k) / (N**2 * (N + 2))) ** 0.5,
        "rest_mean": float(rest.mean()) if N > 1 else 0.0,
        "rest_std": float(rest.std(correction=0)) if N > 1 else 0.0,
        "rest_std_expected": (k * (N - k) / (N * max(N - 1, 1) * (N + 2))) ** 0.5,
    }


def picture(width: int = 576, rank: int = 384, *, seed: int = 0) -> Figure:
    """Draw the corner of P P+: a diagonal near k/N on a ground of small numbers without pattern, f I + R.

    Args:
        width: N, dimensions of the embedding [count, 1 ..].
        rank: k, dimensions of the subspace [count, 1 .. width].
        seed: of the subspace [integer, 0 ..].
    """
    found = statistics(width, rank, seed=seed)
    shown = min(SHOWN, width)
    corner = operator(width, rank, seed=seed)[:shown, :shown]
    caption = (
        f"The first {shown} rows and columns of P P+ for {rank} of {width} dimensions (seed {seed}). Diagonal "
        f"{found['diagonal_mean']:.4f} ± {found['diagonal_std']:.4f} (expected {rank / width:.4f} ± "
        f"{found['diagonal_std_expected']:.4f}), all else 0 ± {found['rest_std']:.4f} "
        f"(expected {found['rest_std_expected']:.4f}): every vector comes back at {rank / width:.2f} of its length "
        "plus a random error."
    )
    data = {"values": corner.tolist(), "diverging": True}
    return Figure("image", data, title="What a random projection does: f I + R", caption=caption, x="to", y="from")
