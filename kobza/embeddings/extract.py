"""A table of vectors to a safetensors file and back, and the rows of a text.

The file holds one tensor `vectors` (N, D) and, as metadata, where it came from, what the rows are and their labels,
so that it can be read where the model is not.
Source: the safetensors format, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import Corrupt, EmptyText, MissingFile, NotFinite
from kobza.core.files import atomic_file
from kobza.core.table import Table
from kobza.embeddings.base import Vectors, vectors_of
from kobza.models import linear_algebra
from kobza.tokens.base import printable

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject

SCHEMA = "kobza.vectors/1"


def table(model: Subject, *, text: str = "", file: str = "", end: Literal["in", "out"] = "in") -> Table:
    """Look a text up in the table, token by token; write the table to a file if one is named.

    Args:
        model: an opened model, or word vectors.
        text: what to look up; the whole table is described if absent.
        file: where to write the table, `table.safetensors`; nothing is written if absent.
        end: the model's table: in, or out.

    Returns:
        One row per token of the text: position, label, id, norm and the first numbers of its vector. Without a text one
        row: rows, width, norm of the whole table and, if written, the file.

    Raises:
        CannotWrite: the file cannot be written.
        UnknownName: word vectors lack a word of the text.
    """
    vectors = vectors_of(model, end)
    written = str(save(vectors, file)) if file else ""
    if text:
        return _looked_up(vectors, text)
    row: dict[str, Any] = {"name": vectors.name, "rows": len(vectors), "width": vectors.width}
    row |= {"norm": linear_algebra.frobenius(vectors.matrix), "bytes": vectors.matrix.nbytes}
    return Table([row | ({"file": written} if written else {})], units={"bytes": "B"}, title=f"Table of {vectors.name}")


def lookup(subject: Subject, text: str, *, end: str = "in") -> Tensor:
    """The rows of a text's tokens, (T, D) float32.

    Raises:
        EmptyText: the text has no token.
        UnknownName: word vectors lack a word of it.
    """
    vectors = vectors_of(subject, end)
    return vectors.matrix[_rows(vectors, text)]


def save(subject: Subject, path: str | Path, *, end: str = "in") -> Path:
    """Write the table to a safetensors file; on any error nothing is left under that name.

    Raises:
        CannotWrite: the file cannot be written.
    """
    from safetensors.torch import save as packed

    vectors = vectors_of(subject, end)
    notes = {"schema": SCHEMA, "name": vectors.name, "kind": vectors.kind}
    lists = {"labels": json.dumps(vectors.labels), "special": json.dumps(sorted(vectors.special))}
    data = packed({"vectors": vectors.matrix.contiguous()}, metadata=notes | lists)
    with atomic_file(path) as out:
        out.write(data)
    return Path(path)


def load(path: str | Path) -> Vectors:
    """Read what `save` wrote; texts are then found by their labels (▁ for a space, \\n for a new line).

    Raises:
        MissingFile: there is no such file.
        Corrupt: not a safetensors file of this kind, or labels that do not fit its rows.
        NotFinite: a number is NaN or infinite.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no file {str(path)!r}", "Write one with: kobza look MODEL extract:file=table.safetensors")
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            matrix = file.get_tensor("vectors")
        labels, special = json.loads(notes["labels"]), json.loads(notes["special"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise Corrupt(f"{path.name} is no table of vectors that kobza wrote: {error}") from None
    if matrix.ndim != 2 or len(labels) != len(matrix):
        raise Corrupt(f"{path.name} has {len(labels)} labels for a tensor of shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise NotFinite(f"{path.name} contains numbers that are NaN or infinite")
    kind: Literal["tokens", "words"] = "tokens" if notes.get("kind") == "tokens" else "words"

    def find(text: str) -> int | None:
        return known.get(printable(text.encode(errors="surrogatepass")) if kind == "tokens" else text)

    known = {label: row for row, label in reversed(list(enumerate(labels)))}
    return Vectors(matrix, labels, name=notes.get("name", path.stem), kind=kind, find=find, special=special)


def _rows(vectors: Vectors, text: str) -> list[int]:
    rows = vectors.split(text) if vectors.split else [vectors.row(text)]
    if not rows:
        raise EmptyText("the text to look up is empty", "Give at least one token.")
    return rows


def _looked_up(vectors: Vectors, text: str) -> Table:
    rows = _rows(vectors, text)
    matrix = vectors.matrix[rows]
    norms = linear_algebra.row_norms(matrix).tolist()
    found = []
    for position, (row, norm) in enumerate(zip(rows, norms, strict=True)):
        numbers = {f"x{axis}": float(value) for axis, value in enumerate(matrix[position, :4])}
        found.append({"position": position, "token": vectors.labels[row], "id": row, "norm": norm} | numbers)
    note = f"x0 .. x3: the first of {vectors.width} numbers; lookup(model, text) gives them all."
    return Table(found, title=f"Rows of {vectors.name} for a text of {len(rows)} {vectors.kind}", note=note)
