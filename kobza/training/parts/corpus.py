"""Data for training: texts and rows from files, a held-out part without duplicates, batches from a seeded sampler.

The usual "last tenth" leaks: of the Kobzar of 1840 one poem of 5,044 characters is printed twice, once on each side of
that cut. Stretches of the held-out part that also stand in the training part are therefore found and taken out of the
held-out figure (they belong to the training part already); the figure with them is shown beside it.

Source: deduplication before splitting, Lee et al. (2022), arXiv:2107.06499, who remove repeats of 50 tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kobza.core.errors import BadValue, Corrupt, EmptyText, MissingExtra, MissingFile, OutOfRange, guess
from kobza.core.texts import Text
from kobza.core.texts import text as open_text
from kobza.tokens.base import Tokenizer
from kobza.training.parts.hub_rows import PREFIX, hub_rows
from kobza.training.parts.likeness import ALIKE, MOST, WORDS, near_repeats

Given = str | bytes | Path | Text | Sequence[Any]
REPEAT = 60  # characters: shorter matches are lines and phrases that any two texts of one author share
ROWS = (".jsonl", ".ndjson", ".json", ".parquet")
_PLACES = 64  # places of one piece that are tried; a text may consist of one repeated line


@dataclass(frozen=True)
class Split:
    """A text in two parts.

    Attributes:
        train: documents to train on.
        held: the held-out text.
        repeated: which bytes of `held` stand in a stretch that is also in the training part.
        notes: what a person should know about the data.
    """

    train: list[str]
    held: bytes
    repeated: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)

    @property
    def leak(self) -> float:
        """Share of the held-out bytes that also stand in the training part."""
        return float(self.repeated.mean()) if len(self.repeated) else 0.0


def documents(source: Given, *, column: str = "text") -> tuple[list[str], list[str]]:
    """Return the texts of a source and notes on what was left out.

    Args:
        source: a named text, a path to a text, .jsonl, .json or .parquet file, "hub:owner/name", bytes, a Text, or a
            list of strings or of rows.
        column: the column that holds the text, where there are rows.

    Raises:
        EmptyText: nothing is left. BadValue: not UTF-8, or the column is missing; the message names row and columns.
    """
    notes = []
    if is_rows(source):
        raw = [_cell(row, column, n) for n, row in enumerate(rows(source))]
    else:
        raw = [decoded(open_text(source))]  # type: ignore[arg-type]
        if ends := raw[0].count("\r\n"):  # as Python reads a text file: a model need not learn two kinds
            raw = [raw[0].replace("\r\n", "\n")]
            notes.append(f"{ends} line ends CR LF are read as LF")
    kept = [text for text in raw if text.strip()]
    if not kept:
        raise EmptyText(f"the data {_name(source)} hold no text.", "Give at least one text with a letter in it.")
    if len(kept) < len(raw):
        notes.append(f"{len(raw) - len(kept)} of {len(raw)} samples are empty and were left out")
    return kept, notes + _repeated(kept)


def _repeated(samples: list[str]) -> list[str]:
    """Return notes on samples that stand there more than once, or nearly."""
    notes = []
    if again := len(samples) - len(set(samples)):
        notes.append(f"{again} of {len(samples)} samples stand there more than once")
    if len(samples) > MOST:
        return [*notes, f"more than {MOST:,} samples: near repeats were not looked for"]
    pairs = [(n, first) for n, first, _ in near_repeats(samples) if samples[n] != samples[first]]
    if pairs:
        later, first = pairs[0]
        notes.append(
            f"{len(pairs)} of {len(samples)} samples nearly repeat an earlier one ({ALIKE:.0%} or more of their pieces "
            f"of {WORDS} words); sample {later} is like {first}"
        )
    return notes


def is_rows(source: Given) -> bool:
    """Whether a source is a list, a file of rows, or a data set of the hub."""
    if isinstance(source, str | Path):
        return str(source).startswith(PREFIX) or Path(source).suffix.lower() in ROWS
    return not isinstance(source, bytes | Text)


def decoded(text: Text) -> str:
    """Return a text as a string.

    Raises:
        BadValue: it is not UTF-8, or by accident alone; the message names the byte and the likely encoding.
    """
    likely = _wide(text.data)
    try:
        found = text.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        seen = f"byte 0x{text.data[error.start]:02x} at {error.start}"
        raise _foreign(text, f"is not UTF-8: {seen}", likely or "CP1251 or Latin-1") from None
    if likely:
        raise _foreign(text, f"has {text.data.count(0):,} zero bytes", likely)
    return found


def _foreign(text: Text, what: str, likely: str) -> BadValue:
    message = f"the text {text.name!r} {what}; it is perhaps {likely}."
    return BadValue(message, "Convert it first: iconv -f ENCODING -t UTF-8 IN > OUT")


def _wide(data: bytes) -> str:
    """Return the encoding of two bytes a character that bytes seem to have, or nothing.

    Every second byte is one of two then: zero, that of Latin letters and spaces, or that of the script.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    sample = data[: 1 << 16]
    for name, high in (("UTF-16LE", sample[1::2]), ("UTF-16BE", sample[::2])):
        common = Counter(high).most_common(2)
        if len(high) > 1 and 0 in dict(common) and sum(n for _, n in common) > 0.9 * len(high):
            return name
    return ""


def rows(source: Any, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a list, of a .jsonl, .json or .parquet file, or of a data set of the hub.

    Args:
        source: the list, the path, or "hub:owner/name" (see `hub_rows`).
        columns: that every row must have, filled.

    Raises:
        MissingFile: no such file. Corrupt: a line is not JSON. MissingExtra: Parquet without pyarrow.
        BadValue: a column is missing; the message names the nearest. EmptyText: there is no row.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        found = hub_rows(source)
    else:
        found = _read_rows(Path(source)) if isinstance(source, str | Path) else list(source)
    if not found:
        raise EmptyText(f"the data {_name(source)} have no row.", "Give at least one row.")
    for n, row in enumerate(found):
        for column in columns:
            _cell(row, column, n)
    return found


def _read_rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise MissingFile(f"there is no file '{path}'.", "Give a .jsonl, .json or .parquet file.")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingExtra.of("reading Parquet", "pyarrow", "parquet") from None
        return list(pyarrow.parquet.read_table(path).to_pylist())
    text = decoded(open_text(path)) if path.stat().st_size else ""
    lines = [text] if path.suffix.lower() == ".json" else text.splitlines()
    found: list[Any] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise Corrupt(f"'{path}', line {number}: not JSON ({error}).", "Write one object a line.") from None
    return found[0] if path.suffix.lower() == ".json" and found and isinstance(found[0], list) else found


def _cell(row: Any, column: str, number: int) -> str:
    if isinstance(row, str) and column == "text":
        return row
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        there = list(row) if isinstance(row, Mapping) else []
        raise BadValue(
            f"row {number} has no text in the column {column!r}.{guess(column, there)}",
            f"Its columns: {', '.join(map(str, there)) or 'none'}.",
        )
    return str(row[column])


def _name(source: Any) -> str:
    return repr(str(source)[:60]) if isinstance(source, str | Path) else f"({type(source).__name__})"


def split(documents: Sequence[str], share: float = 0.1, *, repeat: int = REPEAT, notes: Iterable[str] = ()) -> Split:
    """Hold out the end of the documents, and find what of it also stands in the rest.

    Args:
        documents: the texts.
        share: of all characters that are held out [fraction, 0 .. below 1].
        repeat: characters from which a match counts as a duplicate [count, 2 ..].

    Raises:
        OutOfRange: the share is not in its range.
    """
    if not 0 <= share < 1 or repeat < 2:
        raise OutOfRange(f"held-out share {share} and repeat {repeat}: allowed are 0 <= share < 1 and repeat >= 2.")
    rest = round((1 - share) * sum(map(len, documents)))
    train: list[str] = []
    held: list[str] = []
    for text in documents:
        train += [text[:rest]] if rest > 0 else []
        held += [text[max(0, rest) :]] if len(text) > rest else []
        rest -= len(text)
    # the bytes hold no mark between documents: a match may not cross one, which costs nothing worth having
    text = "\n".join(held)
    covered = repeats(text, "\n".join(train), repeat)
    sizes = [len(character.encode()) for character in text]
    return Split(train, text.encode(), np.repeat(covered, sizes), list(notes))


def repeats(text: str, known: str, length: int = REPEAT) -> NDArray[np.bool_]:
    """Return which characters of `text` lie in a match of at least `length` characters with `known`, exactly.

    Pieces of half that length at every half of it are looked up, so that every such match contains one.

    >>> repeats("xx abcdef yy", "abcdef", 6).nonzero()[0].tolist()
    [3, 4, 5, 6, 7, 8]
    """
    piece = (length + 1) // 2
    stride = length - piece + 1
    places: dict[str, list[int]] = {}
    for at in range(0, len(known) - piece + 1, stride):
        places.setdefault(known[at : at + piece], []).append(at)
    covered = np.zeros(len(text), bool)
    reached: dict[int, int] = {}  # diagonal -> where its last match ended
    for at in range(len(text) - piece + 1):
        for place in places.get(text[at : at + piece], ())[:_PLACES]:
            if reached.get(place - at, -1) > at:
                continue
            begin, end = _grown(text, known, at, place, piece)
            reached[place - at] = end
            if end - begin >= length:
                covered[begin:end] = True
    return covered


def _grown(text: str, known: str, at: int, place: int, size: int) -> tuple[int, int]:
    """Return the ends in `text` of the longest match around one."""
    begin, end = at, at + size
    while begin and place - (at - begin) and text[begin - 1] == known[place - (at - begin) - 1]:
        begin -= 1
    while end < len(text) and place + end - at < len(known) and text[end] == known[place + end - at]:
        end += 1
    return begin, end


def encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """Return the ids of documents one after the other (N,), an end mark between two where the vocabulary has one."""
    ids: list[int] = []
    for n, text in enumerate(texts):
        if n and tokenizer.end_id is not None:
            ids.append(tokenizer.end_id)
        ids += tokenizer.encode(text)
    return torch.tensor(ids, dtype=torch.long)


@dataclass
class Windows:
    """Windows of a text at places drawn by a generator.

    Attributes:
        ids: (N,) the text.
        batch: windows of one draw.
        context: tokens of a window.
        start: the token in front of a window, or None: then a window needs one token more of the text.
    """

    ids: Tensor
    batch: int
    context: int
    start: int | None = None

    def __post_init__(self) -> None:
        if len(self.ids) < 2:
            raise EmptyText(
                f"the training text has {len(self.ids)} token(s); at least 2 are needed.", "Give more text."
            )
        self.context = min(self.context, len(self.ids) - (self.start is None))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what is read and what is to be predicted, each (B, T)."""
        ahead = 1 if self.start is None else 0
        last = len(self.ids) - self.context - ahead
        begins = torch.randint(last + 1, (self.batch,), generator=generator)
        rows = self.ids[begins[:, None] + torch.arange(self.context + ahead)]
        if self.start is None:
            return rows[:, :-1], rows[:, 1:]
        return torch.cat([torch.full((self.batch, 1), self.start), rows[:, :-1]], 1), rows


@dataclass
class Held:
    """A held-out text as tokens.

    Attributes:
        ids: (N,) its tokens.
        sizes: (N,) bytes of each.
        fresh: (N,) bytes of each that are not repeated from the training part.
    """

    ids: Tensor
    sizes: Tensor
    fresh: Tensor

    @classmethod
    def of(cls, part: Split, tokenizer: Tokenizer) -> Held:
        """Read the held-out part with a vocabulary."""
        ids = tokenizer.encode(part.held) if part.held else []
        sizes = np.array([len(tokenizer.bytes_of(id)) for id in ids], dtype=np.int64)
        if len(sizes):
            sizes[0] -= sizes.sum() - len(part.held)  # a space that the tokenizer put in front
        ends = np.concatenate([[0], np.cumsum(sizes)])
        fresh = np.concatenate([[0], np.cumsum(~part.repeated)])
        return cls(torch.tensor(ids), torch.from_numpy(sizes), torch.from_numpy(np.diff(fresh[ends])))

    def windows(self, context: int, start: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (read (B, T), to predict (B, T), their places (B, T)) without overlap; the last window is shorter.

        Without a start token the very first token is predicted by nothing and is left out.
        """
        ahead = 1 if start is None else 0
        front = self.ids if start is None else torch.cat([torch.tensor([start]), self.ids])
        places = torch.arange(ahead, len(self.ids))
        whole = len(places) // context * context
        rows = [rows for rows in places[:whole].reshape(-1, context).split(max(1, 1024 // context)) if len(rows)]
        for group in [*rows, *([places[whole:][None]] if whole < len(places) else [])]:
            # with a start token every window begins with it, so its first token has no other context
            read = front[group - ahead] if start is None else front[group].clone()
            if start is not None:
                read[:, 0] = start
            yield read, self.ids[group], group
