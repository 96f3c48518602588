"""Spectrum and low-rank factors of a table of embeddings: through the Gram matrix, against `torch.linalg.svd`.

From one factorization come the factors of every rank r: B = V_r^T, and A = W V_r (or U_r S_r). Two ratios are
printed: up to all right factors, from which a sweep starts, and with the left factor of full rank multiplied out too.
One thread, one table, one run; seconds are CPU time, because the machine may be busy. Wanted: the factorization at
least 5x faster, all values equal within 1e-4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import kobza
from kobza.core.errors import KobzaError
from kobza.models.linear_algebra import Svd, svd

WANTED = 5.0  # times faster
TOLERANCE = 1e-4  # relative, of every singular value
REPEATS = 3


def table() -> tuple[str, Tensor]:
    """Return the table of SmolLM2 (49152, 576), or a random one of its shape and a like spectrum."""
    try:
        return "SmolLM2-135M", kobza.open("smollm2").matrix("embed").clone()
    except KobzaError:
        draw = torch.Generator().manual_seed(0)
        return "random numbers", torch.randn(49152, 576, generator=draw) * torch.linspace(1, 0.02, 576)


def cpu_seconds(make: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least CPU time of a few runs, and the last result."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        found = make()
        times.append(time.process_time() - begin)
    return min(times), found


def multiplied(found: Svd) -> tuple[Tensor, Tensor]:
    """Return A (M, N) and B (N, N); their first r columns and rows are the factors of rank r."""
    return found.factors(found.matrix.shape[1])


def main() -> None:
    """Print the times, their ratios and the largest differences."""
    torch.set_num_threads(1)
    name, W = table()
    ours, found = cpu_seconds(lambda: svd(W.clone()))  # a copy each time: nothing is remembered
    product, (A, B) = cpu_seconds(lambda: multiplied(found))
    peer, (U, S, Vt) = cpu_seconds(lambda: torch.linalg.svd(W, full_matrices=False))
    exact = torch.linalg.svdvals(W.double())
    k = 2 * W.shape[1] // 3
    errors = [float((W.double() - (left[:, :k] @ right[:k]).double()).norm()) for left, right in ((A, B), (U * S, Vt))]
    print(f"table of {name}, {W.shape[0]} x {W.shape[1]}, float32, one thread, CPU seconds (least of {REPEATS})")
    print(f"spectrum and right factors of all ranks:  {ours:.2f} s, values {worst(found.values, exact):.0e} off")
    print(f"left factors of all ranks:               +{product:.2f} s")
    print(f"torch.linalg.svd:                         {peer:.2f} s, values {worst(S, exact):.0e} off")
    print(f"ratio {peer / ours:.1f}x (wanted {WANTED:.0f}x); with the left factors {peer / (ours + product):.1f}x")
    print(f"Frobenius error at rank {k}: {errors[0]:.5f} and {errors[1]:.5f}")
    assert worst(found.values, exact) < TOLERANCE, "singular values differ"
    assert peer / ours > WANTED, "slower than wanted"


def worst(values: Tensor, exact: Tensor) -> float:
    """Return the largest relative error of singular values (R,)."""
    return float(((values.double() - exact) / exact).abs().max())


if __name__ == "__main__":
    main()
