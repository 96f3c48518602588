"""Low rank: keep the r directions of a matrix that matter most, by its own norm or by what a text says matters.

The plain method minimizes |W - W'|. The weighted one minimizes |D^1/2 (W - W') M^1/2|, in closed form too: row weights
D say which tokens count, the metric M says which directions do. For a table of embeddings both come from the second
order of the loss, factored into rows and columns: at the input end token counts times second moments of the gradient,
at the output end p (1 - p) times second moments of the final states, for a tied table the sum of both ends.

Sources: Eckart & Young (1936), doi:10.1007/BF02288367; row weights from the Fisher information: Hsu et al. (2022),
arXiv:2207.00112; metric from the vectors a layer reads: Wang et al. (2024), arXiv:2403.07378; the factoring:
Martens & Grosse (2015), arXiv:1503.05671.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits.base import CALIBRATION, TOKENS
from kobza.models.linear_algebra import column_mean, eigen, gram, svd
from kobza.models.model import Factors, Model, Value


def apply(
    model: Model,
    *,
    where: str = "embed",
    rank: int = 384,
    weights: Literal["none", "zipf", "frequency", "fisher"] = "none",
    metric: Literal["none", "moments"] = "none",
    center: bool = False,
    multiple: int = 1,
    store: Literal["dense", "factors"] = "dense",
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
    smoothing: float = 0.1,
    damping: float = 0.01,
) -> Model:
    """Replace every chosen matrix W (M, N) by an approximation of rank r, the best under the chosen weights.

    Args:
        model: the model to start from; it is not changed.
        where: pattern of matrix names; must match at least one matrix.
        rank: directions kept per matrix [count, 1 .. min(rows, columns)].
        weights: which rows count. none: all alike. zipf: 1 / (id + 200), without a text. frequency: tokens by their
            share of the calibration texts. fisher: frequency at the input end, mean p (1 - p) at the output end, both
            for a tied table. All but none are for `embed` only.
        metric: which directions count. none: all alike. moments: second moments of the gradient at the input end, of
            the vectors read at the output end and in linear layers; both for a tied table.
        center: keep the (weighted) mean row apart, as one direction more than `rank`.
        multiple: ranks are rounded to the nearest multiple of this, at least one [count, 1 ..]; 64 runs fastest.
        store: dense: the product, of the old shape and bytes. factors: A (M, r) and B (r, N), stored and used so.
        calibration: texts that weights and metric are taken from; not the text to be measured.
        calibration_tokens: tokens read with gradients, shared over the texts [count, 2 ..].
        smoothing: share of Zipf's law in the frequencies, for tokens the texts never show [fraction, >0 .. 1].
        damping: what is added to the metric in all directions, in units of its mean [fraction, >0 ..].

    Returns:
        A fork. Its last Change records relative error, energy kept and stored bytes, per matrix and in all, the rank
        at which factors stop saving bytes (`break_even_rank`), and the calibration texts by hash.

    Raises:
        NothingMatched: `where` matches no matrix; the message lists the nearest names.
        OutOfRange: `rank` exceeds a matrix; the message names it and its shape.
        BadValue: row weights for a matrix that is no table of tokens.

    Cost: O(M N min(M, N)) once per matrix and weighting; a sweep over ranks factorizes once. `moments` and `fisher`
        read the calibration texts once per model (about a minute for 135M parameters on one core).
    """
    names, asked = base.select(model, where), rank
    if multiple < 1:
        raise OutOfRange(f"multiple={multiple}; it must be at least 1.")
    rank = max(1, round(rank / multiple)) * multiple
    for name in names:
        base.require_rank(name, model.matrix(name).shape, rank, min(model.matrix(name).shape))
    texts = base.calibration_texts(calibration) if weights in ("frequency", "fisher") or metric != "none" else []
    rule = Rule(weights, metric, tuple(texts), calibration_tokens, smoothing, damping)
    weighings = rule.weighings(model, names)
    tensors: dict[str, Value] = {}
    for name in names:
        W = model.matrix(name)
        if rank == min(W.shape) and store == "dense":
            tensors[name] = W  # all directions: the very same numbers
            continue
        A, B = directions(model, name, weighings[name], center=center).factors(W, rank)
        tensors[name] = Factors(A, B) if store == "factors" else A @ B
    options = {"where": where, "rank": asked, "weights": weights, "metric": metric, "center": center, "store": store}
    options |= {"multiple": multiple}
    facts = {}
    if texts:
        options |= {"calibration": list(calibration), "calibration_tokens": calibration_tokens}
        options |= {"smoothing": smoothing, "damping": damping}
        facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    each = {name: {"rank": rank + center, "break_even_rank": break_even(*model.matrix(name).shape)} for name in names}
    return base.edited(model, "lowrank", options, tensors, facts=facts, per_matrix=each)


def break_even(rows: int, columns: int) -> int:
    """Return the largest rank whose two factors are smaller than the matrix: below M N / (M + N)."""
    return (rows * columns - 1) // (rows + columns)


# --- the closed form -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighing:
    """How the error of a matrix W (M, N) is weighed; None means all alike.

    Attributes:
        rows: D (M,), > 0.
        metric: M (N, N), symmetric, positive definite.
        key: equal weighings have equal keys.
    """

    rows: Tensor | None = None
    metric: Tensor | None = None
    key: str = ""


@dataclass(frozen=True)
class Directions:
    """The directions of a matrix, strongest first under a weighing; any rank is cut from them.

    Attributes:
        basis: (R, R) orthonormal columns: right vectors of D^1/2 (W - c) K for a tall matrix, else left ones.
        root, inverse: K and K^-1 (N, N), K K = M; None for no metric.
        rows: D (M,); None for rows alike.
        mean: c (N,), the row kept apart; None if none is.
        is_tall: M >= N.
    """

    basis: Tensor
    root: Tensor | None
    inverse: Tensor | None
    rows: Tensor | None
    mean: Tensor | None
    is_tall: bool

    def factors(self, W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (M, rank) and B (rank, N) in float32; one direction more if a mean is kept apart.

        Tall: W' = W K V V^T K^-1. Wide: W' = D^-1/2 U U^T D^1/2 W.
        """
        kept = self.basis[:, :rank]
        centered = W if self.mean is None else W - self.mean.float()
        if self.is_tall:
            down = kept if self.root is None else self.root @ kept
            B = kept.T if self.inverse is None else kept.T @ self.inverse
            A, B = centered @ down.float(), B.float()
        else:
            half = torch.ones(len(W), dtype=torch.float64) if self.rows is None else self.rows.sqrt()
            A, B = (kept / half[:, None]).float(), (kept.T * half).float() @ centered
        if self.mean is None:
            return A, B
        return torch.cat([A, A.new_ones(len(A), 1)], 1), torch.cat([B, self.mean.float()[None]])


_directions = base.Memory(64)


def directions(model: Model, name: str, weighing: Weighing, *, center: bool = False) -> Directions:
    """Return the directions of a matrix under a weighing; remembered, so that a sweep over ranks factorizes once."""
    W = model.matrix(name)
    is_tall = W.shape[0] >= W.shape[1]
    if not weighing.key and not center:
        return Directions(svd(W).basis, None, None, None, None, is_tall)
    key = (base.identity(model, name), weighing.key, center)
    found: Directions = _directions.get(key, lambda: _factorize(W, weighing, center, is_tall))
    return found


def _factorize(W: Tensor, weighing: Weighing, center: bool, is_tall: bool) -> Directions:
    mean = column_mean(W, weights=weighing.rows) if center else None
    root, inverse = (None, None) if weighing.metric is None else roots(weighing.metric)
    if is_tall:
        G = gram(W, weights=weighing.rows, center=mean)
        G = G if root is None else root @ G @ root
    else:
        X = W.double() if mean is None else W.double() - mean
        X = X if root is None else X @ root
        G = gram((X if weighing.rows is None else X * weighing.rows.sqrt()[:, None]).T)
    return Directions(eigen(G)[1], root, inverse, weighing.rows, mean, is_tall)


def roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return K and K^-1 with K K = M, both symmetric, for a positive definite M (N, N)."""
    values, vectors = eigen(metric)
    values = values.clamp_min(values[0] * 1e-12).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


# --- the weights -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How the weighing of a matrix is taken from texts; the options of `apply` with its texts opened."""

    weights: str
    metric: str
    texts: tuple[Text, ...]
    tokens: int
    smoothing: float
    damping: float

    def weighings(self, model: Model, names: list[str]) -> dict[str, Weighing]:
        """Return the weighing of every chosen matrix."""
        linear = [name for name in names if name not in base.ENDS]
        if linear and self.weights != "none":
            raise BadValue(
                f"weights={self.weights!r} weighs tokens, and the rows of {linear[0]!r} are none.",
                "Give weights=none, or where=embed; linear layers can take metric=moments.",
            )
        if not self.texts:
            return {name: self._without_text(len(model.matrix(name))) for name in names}
        key = self._key(model)
        metrics: dict[str, Tensor] = {}
        if self.metric == "moments":
            metrics = {name: self._metric(model, name) for name in names if name in base.ENDS}
            squares = base.input_moments(model, linear, self.texts, self.tokens) if linear else {}
            metrics |= {name: _damped(square, self.damping) for name, square in squares.items()}
        return {name: Weighing(self._rows(model, name), metrics.get(name), key) for name in names}

    def _key(self, model: Model) -> str:
        hashes = [text.sha256 for text in self.texts]
        return (
            f"{self.weights} {self.metric} {self.smoothing} {self.damping} {self.tokens} {hashes} {model.fingerprint}"
        )

    def _without_text(self, rows: int) -> Weighing:
        return Weighing() if self.weights == "none" else Weighing(base.zipf(rows), None, "zipf")

    def _rows(self, model: Model, name: str) -> Tensor | None:
        if self.weights == "none":
            return None
        V = len(model.matrix(name))
        if self.weights == "zipf":
            return base.zipf(V)
        counts = base.smoothed(base.shares(model, self.texts, V), self.smoothing)
        if self.weights == "frequency" or name == "embed.in":
            return counts
        spread = base.smoothed(base.moments(model, self.texts, self.tokens).rows, self.smoothing)
        return spread if name == "embed.out" else counts + spread

    def _metric(self, model: Model, name: str) -> Tensor:
        """The metric of one end, or of both: each end counts alike, by its trace."""
        ends = base.moments(model, self.texts, self.tokens)
        inner, outer = _damped(ends.gradients, self.damping), _damped(ends.states, self.damping)
        return inner if name == "embed.in" else outer if name == "embed.out" else inner + outer


def _damped(metric: Tensor, damping: float) -> Tensor:
    """Scale a metric (N, N) to a mean eigenvalue of 1 and add `damping` in all directions."""
    mean = float(metric.trace()) / len(metric)
    unit = torch.eye(len(metric), dtype=torch.float64)
    return (metric.double() / mean if mean > 0 else unit) + damping * unit
