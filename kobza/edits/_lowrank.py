"""The best approximation of low rank in the metric of what a layer reads."""

from __future__ import annotations

from torch import Tensor

from kobza.models.linear_algebra import eigen
from kobza.models.model import Factors


def whitened(W: Tensor, rank: int, H: Tensor | None = None) -> Factors:
    """A (M, R) and B (R, N) that minimize tr (W - A B) H (W - A B)^T, for second moments H (N, N) of the inputs.

    A = U and B = U^T W with U the strongest left directions of W H^1/2: the inverse of H is not needed, so H may be
    singular. Without H the least Frobenius error. Source: Eckart & Young (1936), doi:10.1007/BF02288367, in the
    metric of Wang et al. (2024), arXiv:2403.07378.
    """
    M = W.double()
    if H is None and M.shape[0] > M.shape[1]:
        V = eigen(M.T @ M)[1][:, :rank]
        return Factors((M @ V).float(), V.T.float())
    U = eigen(M @ M.T if H is None else M @ H.double() @ M.T)[1][:, :rank]
    return Factors(U.float(), (U.T @ M).float())
