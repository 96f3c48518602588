"""Word vectors out of GloVe and word2vec text files: the vector of a word, nearest words, analogies, a map.

A file has one line per word, the word and then D decimals, set apart by spaces; word2vec puts a line `N D` in front.
Sources: Pennington, Socher & Manning (2014), doi:10.3115/v1/D14-1162; Mikolov et al. (2013), arXiv:1301.3781.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import torch

from kobza.core.errors import BadValue, Corrupt, MissingFile, NotFinite, OutOfRange, Truncated
from kobza.core.files import atomic_file
from kobza.core.table import Table
from kobza.embeddings.base import Vectors, near_table, picture, resolve, vectors_of

if TYPE_CHECKING:
    from kobza.embeddings.base import Subject

LONGEST_LINE = 1 << 20
"""A line of more bytes is refused: 300 decimals take 4 kB."""

MOST_BYTES = 16 << 30
"""Bytes read at most, counted after unpacking, so that a small .gz cannot fill the memory."""


def table(
    model: Subject,
    *,
    file: str = "",
    word: str = "",
    words: list[str] | None = None,
    k: int = 10,
    metric: Literal["cosine", "euclid", "dot"] = "cosine",
    limit: int = 0,
) -> Table:
    """Look words up in a file of word vectors, or in the model's own table.

    Args:
        model: word vectors, or an opened model, whose input table is then looked at in the same way.
        file: a GloVe or word2vec text file, also .gz, to look at instead.
        word: a word, or a sum such as `king - man + woman`: its nearest words are listed.
        words: words to draw on a map along the principal components of all.
        k: neighbors [count, 1 .. rows - 1].
        metric: cosine (similarity), euclid (distance) or dot (product).
        limit: words read from the file, 0 for all [count, 0 ..].

    Returns:
        With `word`: the k nearest words. With `words`: their norms and the correlation of each with the first, and a
        map. Without either: how many vectors there are, of what width and norm.

    Raises:
        UnknownName: a word is not there; the message lists the nearest.
        MissingFile, Corrupt, Truncated, NotFinite: the file is absent or unsound; the message names the line.
    """
    vectors = read(file, limit=limit) if file else vectors_of(model)
    if word:
        return near_table(vectors, [resolve(vectors, word)], k=k, metric=metric)
    if words:
        return _drawn(vectors, words)
    row = {"name": vectors.name, vectors.kind: len(vectors), "width": vectors.width}
    norms = {"mean norm": float(vectors.norms.mean()), "first": " ".join(vectors.labels[:8])}
    return Table([row | norms], title=f"Vectors of {vectors.name}")


def read(path: str | Path, *, limit: int = 0) -> Vectors:
    """Read a GloVe or word2vec text file, also .gz.

    Args:
        path: the file.
        limit: words read, from the first; 0 for all [count, 0 ..].

    Returns:
        The vectors, rows in the file's order; of a word that comes twice the first counts.

    Raises:
        MissingFile: there is no such file.
        Corrupt: a line of another width, a number that is none, an overlong line; the message names the line.
        Truncated: the .gz ends too early, or a word2vec header promises more lines.
        NotFinite: a number is NaN or infinite.
        OutOfRange: `limit` is negative.
    """
    path = Path(path)
    if limit < 0:
        raise OutOfRange(f"limit={limit} words; allowed: 0 (all) or more")
    if not path.is_file():
        raise MissingFile(
            f"no file {str(path)!r} of word vectors", "A GloVe or word2vec text file is wanted, also .gz."
        )
    words: list[str] = []
    numbers = bytearray()
    width, promised = 0, 0
    for number, line in _lines(path):
        word, values = _split(line, width, path, number)
        if number == 1 and len(values) == 1 and word.isdecimal():
            promised, width = int(word), _announced(values[0], path)
            continue
        vector = _vector(word, values, width, path, number)
        width = width or len(vector)
        words.append(word)
        numbers += vector.tobytes()
        if len(words) == limit:
            break
    _complete(path, len(words), promised if not limit else 0)
    matrix = torch.frombuffer(numbers, dtype=torch.float32).reshape(len(words), width)
    return of_words(words, matrix, name=path.name.split(".txt")[0])


def of_words(words: list[str], matrix: torch.Tensor, *, name: str = "words") -> Vectors:
    """Word vectors of a list of words and a matrix (N, D); a text splits into words at spaces."""
    known = {word: row for row, word in reversed(list(enumerate(words)))}
    vectors = Vectors(matrix, words, name=name, kind="words", find=known.get)
    vectors.split = lambda text: vectors.rows(text.split())
    return vectors


def write(subject: Subject, path: str | Path, *, header: bool = False) -> Path:
    """Write vectors as a text file, with the word2vec line `N D` in front if `header`; numbers read back exactly.

    Raises:
        BadValue: a label has a space in it.
        CannotWrite: the file cannot be written.
    """
    vectors, path = vectors_of(subject), Path(path)
    with atomic_file(path) as raw:
        packed = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") if path.suffix == ".gz" else None
        out: IO[bytes] = packed or raw  # type: ignore[assignment]
        if header:
            out.write(f"{len(vectors)} {vectors.width}\n".encode())
        for label, vector in zip(vectors.labels, vectors.matrix.numpy(), strict=True):
            if not label or any(character.isspace() for character in label):
                raise BadValue(f"the label {label!r} is empty or has a space in it; a text file cannot keep it")
            out.write(f"{label} {' '.join(map(str, vector))}\n".encode())
        if packed:
            packed.close()
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank, without its line break."""
    total = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            stream = io.BufferedReader(file, 1 << 20)
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                total += len(line)
                if len(line) > LONGEST_LINE or total > MOST_BYTES:
                    what = (
                        f"line {number} is longer than {LONGEST_LINE:,} bytes"
                        if len(line) > LONGEST_LINE
                        else (f"the file has more than {MOST_BYTES >> 30} GiB")
                    )
                    raise Corrupt(f"{path.name}: {what}; this is no file of word vectors")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except EOFError:
        raise Truncated(f"{path.name} ends before its compressed data do") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Corrupt(f"{path.name} is no gzip file: {error}") from None


def _split(line: bytes, width: int, path: Path, number: int) -> tuple[str, list[bytes]]:
    """The word and its numbers as bytes; a word may hold spaces once the width is known (GloVe 840B has such)."""
    parts = line.rstrip(b" ").split(b" ")
    cut = max(1, len(parts) - width) if width else 1
    try:
        return b" ".join(parts[:cut]).decode("utf-8"), parts[cut:]
    except UnicodeDecodeError:
        raise Corrupt(f"{path.name}, line {number}: the word is not UTF-8 text: {parts[0][:40]!r}") from None


def _announced(text: bytes, path: Path) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1 << 16:
        raise Corrupt(f"{path.name}, line 1: a word2vec header 'count width' whose width is {text[:20]!r}")
    return int(text)


def _vector(word: str, values: list[bytes], width: int, path: Path, number: int) -> np.ndarray:
    """The numbers of one line as float32, checked."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            vector = np.array(values, dtype=np.bytes_).astype(np.float64).astype(np.float32)
    except ValueError:
        bad = next((value for value in values if not _is_number(value)), b"")
        shown = bad[:40].decode("utf-8", "replace")
        raise Corrupt(f"{path.name}, line {number} ({word[:40]!r}): {shown!r} is no number") from None
    if len(vector) != (width or len(vector)) or not len(vector):
        wanted = f"; the lines before have {width}" if width else ""
        raise Corrupt(f"{path.name}, line {number} ({word[:40]!r}): {len(vector)} numbers{wanted}")
    if not np.isfinite(vector).all():
        raise NotFinite(f"{path.name}, line {number} ({word[:40]!r}): a number is NaN or infinite")
    return vector


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complete(path: Path, count: int, promised: int) -> None:
    if not count:
        raise Corrupt(f"{path.name} holds no word vectors")
    if promised and count < promised:
        raise Truncated(f"{path.name} announces {promised:,} words and holds {count:,}")


def _drawn(vectors: Vectors, words: list[str]) -> Table:
    """The words with their norms, their correlation with the first, and the map."""
    rows = vectors.rows(words)
    chosen = vectors.matrix[rows].double()
    alike = torch.nn.functional.cosine_similarity(chosen, chosen[:1])
    found = [
        {"word": vectors.labels[row], "id": row, "norm": float(vectors.norms[row]), f"cosine to {words[0]}": float(c)}
        for row, c in zip(rows, alike, strict=True)
    ]
    return Table(found, title=f"Words of {vectors.name}", figures=[picture(vectors, rows=rows, only=True)])
