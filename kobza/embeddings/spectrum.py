"""Singular values of a matrix beside those of a random matrix of equal shape and spread; energy and effective ranks.

The random matrix has independent normal entries of the matrix's own standard deviation sigma. For M x N (M >= N) its
singular values fill the interval sigma (sqrt M - sqrt N) .. sigma (sqrt M + sqrt N); what lies above it is structure.
Sources: Marchenko & Pastur (1967), doi:10.1070/SM1967v001n04ABEH001994, for the edges; Roy & Vetterli (2007), "The
effective rank", EUSIPCO, for the rank from the entropy of s / sum s; the participation ratio (sum s^2)^2 / sum s^4 is
Bell & Dean's (1970), doi:10.1039/DF9705000055, taken of the energies s^2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.embeddings.base import Vectors
from kobza.models import linear_algebra

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


def table(
    model: Subject,
    *,
    where: str = "embed.in",
    center: Literal["both", "yes", "no"] = "both",
    random: bool = True,
    seed: int = 0,
) -> Table:
    """Singular values of the named matrices, summed up.

    Args:
        model: an opened model, or word vectors.
        where: pattern of matrix names, `embed.in` or `blocks.*.mlp.down`; must match at least one. Word vectors have
            one matrix, whatever the pattern.
        center: measure with the mean row taken off, as it is, or both ways.
        random: measure a random matrix of equal shape and standard deviation too.
        seed: of the random matrix [integer, 0 ..].

    Returns:
        One row per matrix and way: largest, median and smallest singular value; rank 50 % ... 99 % (directions that
        keep this share of the squared norm); participation and entropy rank [1 .. min(M, N)]; the edges between which
        a random matrix would lie, and how many values stand above the upper one. Figures: the values beside the
        random ones, and the cumulative energy.

    Raises:
        NothingMatched: `where` matches no matrix.
        BadValue: a name that matches is no matrix (a norm or a bias).

    Cost: one pass in float64 and an eigen-decomposition per matrix and way; nothing for a matrix seen before.
    """
    rows: list[dict[str, Any]] = []
    figures: list[Figure] = []
    for name, matrix in _matrices(model, where):
        spectra = {label: values(matrix, center=label == "centered") for label in _ways(center)}
        edges = marchenko_pastur(matrix.shape, linear_algebra.deviation(matrix))
        rows += [{"matrix": name, "way": way} | summary(s, edges[1]) for way, s in spectra.items()]
        if random:
            spectra["random, same shape and spread"] = random_values(matrix, seed=seed)
            rows.append({"matrix": name, "way": "random"} | summary(spectra["random, same shape and spread"], edges[1]))
        for row in rows[-len(spectra) :]:
            row |= {"lower edge": edges[0], "upper edge": edges[1]}
        if not figures:
            figures = [_values_figure(name, spectra, edges), _energy_figure(name, spectra)]
    note = "Ranks count directions; a random matrix of equal spread lies between the edges."
    return Table(rows, title=f"Singular values of {model.name}", note=note, figures=figures)


def values(matrix: Tensor, *, center: bool = False) -> Tensor:
    """Singular values of a matrix (M, N), descending, (min(M, N),) float64; with the mean row taken off if `center`.

    Through the Gram matrix, which is factorized once for a tensor that has not changed.
    """
    if not center:
        return linear_algebra.svd(matrix).values
    mean = linear_algebra.column_mean(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        return linear_algebra.svd(matrix - mean.to(matrix.dtype)).values
    return linear_algebra.eigen(linear_algebra.gram(matrix, center=mean))[0].clamp_min(0).sqrt()


def random_values(matrix: Tensor, *, seed: int) -> Tensor:
    """Singular values of normal numbers with the shape and standard deviation of a matrix; same seed, same values."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(matrix.shape, generator=generator)
    return linear_algebra.svd(drawn).values * linear_algebra.deviation(matrix)


def marchenko_pastur(shape: tuple[int, ...] | torch.Size, sigma: float) -> tuple[float, float]:
    """Edges sigma |sqrt M -+ sqrt N| of the singular values of an M x N matrix of independent entries."""
    a, b = math.sqrt(shape[0]), math.sqrt(shape[1])
    return sigma * abs(a - b), sigma * (a + b)


def ranks(spectrum: Tensor, shares: tuple[float, ...] = SHARES) -> list[int]:
    """For each share of the energy sum s^2, the least number of directions that keeps it."""
    energy = torch.cumsum(spectrum.double().square(), 0)
    return [min(int((energy < share * energy[-1]).sum()) + 1, len(energy)) for share in shares]


def participation(spectrum: Tensor) -> float:
    """(sum s^2)^2 / sum s^4 [1 .. count]: the number of equal values with this spread of energy; 0 for zeros."""
    energy = spectrum.double().square()
    return float(energy.sum() ** 2 / energy.square().sum()) if energy.sum() > 0 else 0.0


def entropy_rank(spectrum: Tensor) -> float:
    """exp of the entropy of s / sum s [1 .. count] (Roy & Vetterli 2007, definition 1); 0 for zeros."""
    share = spectrum.double() / spectrum.double().sum()
    return float(torch.special.entr(share).sum().exp()) if spectrum.sum() > 0 else 0.0


def summary(spectrum: Tensor, upper: float) -> dict[str, Any]:
    """The row that sums up a spectrum."""
    kept = {f"rank {share:.0%}": rank for share, rank in zip(SHARES, ranks(spectrum), strict=True)}
    middle = float(torch.quantile(spectrum, 0.5))
    return {
        "largest": float(spectrum[0]),
        "median": middle,
        "smallest": float(spectrum[-1]),
        **kept,
        "participation": participation(spectrum),
        "entropy rank": entropy_rank(spectrum),
        "above random": int((spectrum > upper).sum()),
    }


def _matrices(model: Subject, where: str) -> list[tuple[str, Tensor]]:
    if isinstance(model, Vectors):
        return [(model.name, model.matrix)]
    found = [(name, model.matrix(name)) for name in model.find(where)]
    flat = [name for name, matrix in found if matrix.ndim != 2]
    if flat:
        raise BadValue(f"{flat[0]!r} is a vector, not a matrix: it has no singular values", "See: kobza open MODEL")
    return found


def _ways(center: str) -> tuple[str, ...]:
    return {"both": ("as it is", "centered"), "yes": ("centered",), "no": ("as it is",)}[center]


def _values_figure(name: str, spectra: dict[str, Tensor], edges: tuple[float, float]) -> Figure:
    series = [{"name": way, "x": list(range(1, len(s) + 1)), "y": s.tolist()} for way, s in spectra.items()]
    lines = [
        {"y": edge, "label": label} for edge, label in zip(edges, ("lower edge", "upper edge"), strict=True) if edge
    ]
    caption = "A random matrix of equal shape and standard deviation fills the band between the Marchenko-Pastur edges."
    data = {"series": series, "logy": True, "hlines": lines}
    return Figure("lines", data, title=f"Singular values of {name}", caption=caption, x="rank", y="singular value")


def _energy_figure(name: str, spectra: dict[str, Tensor]) -> Figure:
    series = []
    for way, s in spectra.items():
        energy = torch.cumsum(s.double().square(), 0)
        series.append({"name": way, "x": list(range(1, len(s) + 1)), "y": (energy / energy[-1]).tolist()})
    caption = "Share of the squared norm kept by the strongest directions. It is not a measure of what the model loses."
    data = {"series": series, "hlines": [{"y": 0.9, "label": "90 %"}]}
    return Figure(
        "lines", data, title=f"Energy kept, {name}", caption=caption, x="directions kept", y="share of energy"
    )
