"""Shared ground of the embeddings room: one object for a model's table and for word vectors.

Every view is `table(model, *, ...) -> Table`, whose first argument is an opened Model or a `Vectors`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kobza.core import techniques
from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.models import linear_algebra
from kobza.models.linear_algebra import Principal
from kobza.models.nearest import nearest_rows
from kobza.tokens.base import printable

if TYPE_CHECKING:
    from kobza.models.model import Model
    from kobza.tokens.base import Tokenizer

    Subject: TypeAlias = "Model | Vectors"

End = Literal["in", "out"]
Metric = Literal["cosine", "euclid", "dot"]

WORD_FILES = (".txt", ".vec", ".txt.gz", ".vec.gz")
"""Endings of a file of word vectors."""

_TERM = re.compile(r"""\s*([+-])?\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))""")


class Vectors:
    """N vectors of D numbers with a label each: a model's table, or word vectors.

    Args:
        matrix: (N, D) float32; not to be written.
        labels: what each row is called, printable, N of them.
        name: of the whole, for titles and messages.
        kind: "tokens" or "words".
        find: text -> row, or None where no single row stands for the text.
        split: text -> rows of its pieces; None for words.
        special: rows of control tokens.
        pieces: bytes of each row, for tokens.
    """

    def __init__(
        self,
        matrix: Tensor,
        labels: Sequence[str],
        *,
        name: str,
        kind: Literal["tokens", "words"] = "words",
        find: Callable[[str], int | None] | None = None,
        split: Callable[[str], list[int]] | None = None,
        special: Iterable[int] = (),
        pieces: Callable[[int], bytes] | None = None,
    ) -> None:
        if matrix.ndim != 2 or len(matrix) != len(labels):
            raise BadValue(f"{name}: a matrix of shape {tuple(matrix.shape)} does not fit {len(labels)} labels")
        self.matrix = matrix.detach().float()
        self.labels = list(labels)
        self.name = name
        self.kind = kind
        self.special = frozenset(special)
        self.split = split
        self.pieces = pieces
        self._find = find

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Vectors {self.name}: {len(self)} {self.kind} x {self.width}>"

    @property
    def width(self) -> int:
        """D, the numbers of a vector."""
        return self.matrix.shape[1]

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norm of every row, (N,) float64."""
        return linear_algebra.row_norms(self.matrix)

    @cached_property
    def mean(self) -> Tensor:
        """Mean row, (D,) float64."""
        return linear_algebra.column_mean(self.matrix)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {label: row for row, label in reversed(list(enumerate(self.labels)))}

    def row(self, text: str) -> int:
        """Return the row of a text.

        Raises:
            UnknownName: no single row stands for it; the message shows how it splits, and what is near.
        """
        found = self._find(text) if self._find else None
        found = self._rows.get(text) if found is None else found
        if found is None:
            raise self._unknown(text)
        return found

    def __contains__(self, text: str) -> bool:
        return (self._find is not None and self._find(text) is not None) or text in self._rows

    def __getitem__(self, text: str) -> Tensor:
        """The vector (D,) of a text."""
        return self.matrix[self.row(text)]

    def rows(self, texts: Iterable[str]) -> list[int]:
        """Rows of several texts; see `row`."""
        return [self.row(text) for text in texts]

    def near(self, query: str, *, k: int = 10, metric: Metric = "cosine", center: bool = False) -> Table:
        """The k nearest rows to a text or a sum like `king - man + woman`; exact, the query's own rows left out."""
        return near_table(self, [resolve(self, query)], k=k, metric=metric, center=center)

    def analogy(self, *terms: str, k: int = 5) -> Table:
        """The k nearest rows to a sum of vectors: `analogy("king", "-man", "woman")`."""
        signed = [(t[1:], -1.0) if t[:1] == "-" and t not in self else (t.removeprefix("+"), 1.0) for t in terms]
        return near_table(self, [combine(self, signed)], k=k)

    def map(self, texts: Sequence[str] = (), *, components: int = 2) -> Figure:
        """A map by principal components: of all rows, or of the given texts alone (components of all rows)."""
        return picture(self, rows=self.rows(texts), components=components, only=bool(texts))

    def _unknown(self, text: str) -> UnknownName:
        close = _nearest_labels(text, self.labels)
        hint = "Nearest: " + ", ".join(repr(label) for label in close) if close else ""
        what = "token" if self.kind == "tokens" else "word"
        message = f"{text!r} is no single {what} of {self.name!r}."
        if self.kind == "tokens" and self.split is not None and text:
            pieces = " ".join(repr(self.labels[row]) for row in self.split(text))
            message += f" It splits into {pieces}."
            hint += "\n" * bool(hint) + "Join the pieces with combine=sum or combine=mean; ▁ stands for a space."
        return UnknownName(message, hint)


def _nearest_labels(text: str, labels: Sequence[str]) -> list[str]:
    """Up to five labels like a text: the same without case and leading space first, then by spelling."""
    shown = printable(text.encode(errors="replace"))
    bare = shown.lstrip("▁").lower()
    same = [label for label in labels if label.lstrip("▁").lower() == bare]
    if len(same) >= 3 or not bare:
        return same[:5]
    alike = [label for label in labels if label.lstrip("▁")[:1].lower() == bare[0] and abs(len(label) - len(shown)) < 3]
    return list(dict.fromkeys(same + difflib.get_close_matches(shown, alike, n=5, cutoff=0.6)))[:5]


# --- from a model ---------------------------------------------------------------------------------------------------

_labels: WeakKeyDictionary[Tokenizer, list[str]] = WeakKeyDictionary()


def vectors_of(subject: Subject, end: str = "in") -> Vectors:
    """Vectors of a subject: its own if it is one, else the table at one end of the model.

    Args:
        subject: a Model or Vectors.
        end: "in" (the table tokens are looked up in) or "out" (the rows logits are products with).
    """
    if isinstance(subject, Vectors):
        return subject
    tokenizer, matrix = subject.tokenizer, subject.matrix(f"embed.{end}")
    labels = _labels.setdefault(tokenizer, [tokenizer.show(id) for id in range(len(tokenizer))])
    unused = [f"<no token {id}>" for id in range(len(labels), len(matrix))]

    def find(text: str) -> int | None:
        try:
            return tokenizer.id_of(text.encode())
        except UnicodeEncodeError:
            return None

    return Vectors(
        matrix,
        labels[: len(matrix)] + unused,
        name=f"{subject.name} embed.{end}",
        kind="tokens",
        find=find,
        split=tokenizer.encode,
        special=tokenizer.special.values(),
        pieces=lambda id: tokenizer.bytes_of(id) if id < len(tokenizer) else b"",
    )


def subject(spec: str | Path) -> Subject:
    """Open what a view can look at: a file of word vectors (.txt, .vec, .gz), else a model."""
    if str(spec).lower().endswith(WORD_FILES):
        vectors: Vectors = techniques.load("embeddings", "words").read(spec)
        return vectors
    from kobza.models.opening import open

    return open(spec)


# --- queries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A point to search around: its label, vector (D,) float64, and the rows it was made of."""

    label: str
    vector: Tensor
    rows: tuple[int, ...]


def resolve(vectors: Vectors, text: str, how: str = "none") -> Query:
    """Turn a text into a query.

    Args:
        vectors: where to search.
        text: a single token or word; or a sum of several, the terms quoted (`" king" - " man" + " woman"`) or set
            apart by spaces (`king - man + woman`).
        how: "none", or "sum" or "mean" of the pieces the text splits into.

    Raises:
        UnknownName: a term is no single row; the message shows how it splits.
        BadValue: the text is empty.
    """
    if not text:
        raise BadValue("the text to look for is empty; give a token, a word, or a sum like 'king - man + woman'")
    if how != "none":
        return _pieces(vectors, text, how)
    terms = None if text in vectors else _terms(text)
    return combine(vectors, terms or [(text, 1.0)])


def combine(vectors: Vectors, terms: Sequence[tuple[str, float]]) -> Query:
    """The sum of signed terms as a query; its label spells the sum.

    Raises:
        UnknownName: a term is no single row.
    """
    rows = [vectors.row(text) for text, _ in terms]
    signs = torch.tensor([sign for _, sign in terms], dtype=torch.float64)
    spelled = "".join(
        (" - " if sign < 0 else " + ") + vectors.labels[row] for row, sign in zip(rows, signs, strict=True)
    )
    return Query(spelled.removeprefix(" + ").strip(), signs @ vectors.matrix[rows].double(), tuple(rows))


def row_query(vectors: Vectors, row: int) -> Query:
    """A row as a query.

    Raises:
        OutOfRange: no such row.
    """
    if not 0 <= row < len(vectors):
        raise OutOfRange(f"{vectors.name!r} has no row {row}; its rows are 0 .. {len(vectors) - 1}")
    return Query(vectors.labels[row], vectors.matrix[row].double(), (row,))


def _pieces(vectors: Vectors, text: str, how: str) -> Query:
    rows = vectors.split(text) if vectors.split else []
    if not rows:
        raise vectors._unknown(text)
    summed = vectors.matrix[rows].double().sum(0)
    label = f"{how}({' '.join(vectors.labels[row] for row in rows)})"
    return Query(label, summed / len(rows) if how == "mean" else summed, tuple(rows))


def _terms(text: str) -> list[tuple[str, float]] | None:
    """The signed terms of a sum, or None where the text is none.

    >>> _terms('" king" - " man" + " woman"')
    [(' king', 1.0), (' man', -1.0), (' woman', 1.0)]
    """
    if '"' not in text and not re.search(r"\S\s+[+-]\s+\S", text):
        return None
    terms: list[tuple[str, float]] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TERM.match(text, at)
        if match is None or (terms and not match[1]):
            return None
        quoted = match[2] is not None
        terms.append((re.sub(r"\\(.)", r"\1", match[2]) if quoted else match[3], -1.0 if match[1] == "-" else 1.0))
        at = match.end()
    return terms if len(terms) > 1 or text.lstrip().startswith(('"', "-")) else None


# --- answers --------------------------------------------------------------------------------------------------------


def near_table(
    vectors: Vectors, queries: Sequence[Query], *, k: int = 10, metric: str = "cosine", center: bool = False
) -> Table:
    """Nearest rows of each query as a table; a query's own rows are left out.

    Raises:
        OutOfRange: fewer than k other rows.
    """
    own = max(len(set(query.rows)) for query in queries)
    if not 1 <= k <= len(vectors) - own:
        raise OutOfRange(
            f"k={k} neighbors of {len(vectors)} rows without the query's own; allowed: 1 .. {len(vectors) - own}"
        )
    points = torch.stack([query.vector for query in queries])
    values, rows = nearest_rows(vectors.matrix, points, k + own, metric=metric, center=vectors.mean if center else None)
    found = []
    for query, near, which in zip(queries, values.tolist(), rows.tolist(), strict=True):
        kept = [(v, r) for v, r in zip(near, which, strict=True) if r not in query.rows][:k]
        found += [
            {"query": query.label, "rank": rank, "neighbor": vectors.labels[row], "id": row, metric: value}
            for rank, (value, row) in enumerate(kept, 1)
        ]
    where = " from the mean" if center else ""
    note = f"Exact: all {len(vectors):,} rows of {vectors.width} numbers were compared{', measured' * center}{where}."
    return Table(found, title=f"Nearest {vectors.kind} in {vectors.name}", note=note)


def components_of(vectors: Vectors, rows: Sequence[int] = ()) -> Principal:
    """Principal components of all rows, or of the given ones alone (of all where those are fewer than three)."""
    return linear_algebra.principal(vectors.matrix[list(rows)] if len(rows) > 2 else vectors.matrix)


def picture(
    vectors: Vectors,
    *,
    rows: Sequence[int] = (),
    components: int = 2,
    only: bool = False,
    parts: Principal | None = None,
) -> Figure:
    """The map of all rows, or the points of `rows` alone, along the first principal components.

    Args:
        vectors: what is shown.
        rows: rows that are always labelled.
        components: 2, or 3 for a map that turns.
        only: show nothing but `rows`, every one labelled, along their own components.
        parts: the components, if they are known already.
    """
    parts = parts or components_of(vectors, rows if only else ())
    chosen = torch.tensor(list(rows), dtype=torch.int64) if only else torch.arange(len(vectors))
    places = parts.places(vectors.matrix[chosen], components).numpy()
    where = {key: places[:, axis] for axis, key in enumerate("xyz"[:components])}
    at = {int(row): index for index, row in enumerate(chosen)} if only else {row: row for row in rows}
    named = [
        {"label": vectors.labels[row], "index": at[row]} | {k: float(v[at[row]]) for k, v in where.items()}
        for row in rows
    ]
    norms = vectors.norms[chosen].numpy()
    data = where | {
        "labels": [vectors.labels[row] for row in chosen.tolist()],
        "named": named,
        "color": norms,
        "color_name": "norm",
    }
    if not only:
        data["colors"] = {"id" if vectors.kind == "tokens" else "rank": np.arange(len(vectors))}
    else:
        data["ids"] = chosen.tolist()
    data["row"] = "id" if vectors.kind == "tokens" else "rank"
    shares = [f"{float(share):.1%}".replace("%", " %") for share in parts.share[:components]]
    shown = f"{len(chosen):,} of {len(vectors):,} {vectors.kind}" if only else f"All {len(vectors):,} {vectors.kind}"
    total = f"{float(parts.share[:components].sum()):.1%}".replace("%", " %")
    return Figure(
        "map" if not only or components == 3 else "points",
        data,
        title=f"{shown} of {vectors.name}",
        caption=f"Principal components 1 to {components}: {total} of the centered variance. Color: norm of the row.",
        x=f"component 1 ({shares[0]})",
        y=f"component 2 ({shares[1]})",
    )
