"""A tokenizer's ids, ranked by frequency and written in one to three bytes, in front of another codec.

Source: Kalcher (2026), "FOT", arXiv:2602.22958, for ranking and varints; here the vocabulary is not stored but named,
and instead of the ranks a rounded count of every id is: 21 kB instead of 52 kB for SmolLM2's 49,152 ids.

Parameters in the header: the second stage's name, the vocabulary's fingerprint, and the counts (number of ids as a
varint, then one byte each: 0 unseen, else 1 + 4 times log2, rounded down), packed by lzma. Ids are ranked by count,
equal ones by id. A block's payload: length of the inner bytes varint, then these through the second stage: number of
tokens varint, number of literals varint, per literal (bytes no token says) the tokens since the last one varint, length
varint, bytes; then the ranks: below 128 one byte, the next 16384 two (10xxxxxx), others three (11xxxxxx).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kobza.codecs import base
from kobza.codecs._spelling import Spelled, spell, unspell

BLOCK_LOG2 = 22
SHORT, MIDDLE = 128, 128 + (1 << 14)
MOST_IDS = MIDDLE + (1 << 22)
SAMPLE = 1 << 22  # bytes that ids are counted in
Ids = NDArray[np.int64]


class Vocabulary(Protocol):
    """What this codec needs of a tokenizer: `tokens.Tokenizer` is one."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> bytes: ...

    def bytes_of(self, id: int, /) -> bytes: ...


def compress(data: bytes, *, vocabulary: Vocabulary, second: str = "zlib", block_log2: int = BLOCK_LOG2) -> bytes:
    """Return `data` as a .kbz file that the same vocabulary unpacks.

    Args:
        data: any bytes; what does not survive the tokenizer is kept as literal bytes.
        vocabulary: the tokenizer.
        second: codec behind the tokens [name].
        block_log2: blocks of 2^block_log2 bytes [log2 of bytes, 10 .. 22].

    Returns:
        The file; it names the vocabulary by its fingerprint.

    Raises:
        OutOfRange, BadValue: an option is not allowed.
    """
    base.check_range("block_log2", block_log2, 10, BLOCK_LOG2)
    made = coder(data, vocabulary=vocabulary, second=second)
    return base.pack(data, made, block_log2=base.fitting_block(len(data), block_log2))


def decompress(blob: bytes, *, vocabulary: Vocabulary, limits: base.Limits | None = None) -> bytes:
    """Return the bytes of a .kbz file packed with this vocabulary.

    Raises:
        ModelMismatch: it was packed with another vocabulary.
        Corrupt, Truncated, LimitExceeded: see `base.unpack`.
    """
    return base.unpack(blob, limits=limits, supply={"vocabulary": vocabulary})


def coder(data: bytes = b"", *, vocabulary: Vocabulary, second: str = "zlib") -> base.Coder:
    """Return the coder for a `base.Writer`; ids are counted in the first 4 MiB of `data`, options as in `compress`."""
    behind = base.stage(second)
    counts = rounded_counts(spell(data[:SAMPLE], vocabulary).ids, len(vocabulary))
    rank_of = np.argsort(by_rank(counts))
    parameters = {
        "second": second.encode("ascii"),
        "vocabulary": vocabulary.fingerprint.encode("ascii"),
        "counts": base.varint(len(counts)) + base.stage("lzma")(counts.tobytes()),
    }

    def encode(raw: bytes) -> bytes:
        spelled = spell(raw, vocabulary)
        ranks = rank_of[np.array(spelled.ids, np.int64)]
        inner = _write_literals(spelled) + write_ranks(ranks)
        return base.varint(len(inner)) + behind(inner)

    return base.Coder("tok", encode, parameters, decode=decoder(parameters, {"vocabulary": vocabulary}))


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder; `supply["vocabulary"]` is the tokenizer.

    Raises:
        ModelMissing: none is supplied.
        ModelMismatch: it is not the one that packed the file; both fingerprints are named.
    """
    behind = base.stage_decoder(parameters)
    vocabulary = _the_same(parameters, supply)
    id_of = by_rank(_read_counts(parameters, len(vocabulary)))
    lengths = np.array([len(vocabulary.bytes_of(i)) for i in range(len(vocabulary))], np.int64)

    def decode(payload: bytes, size: int) -> bytes:
        cursor = base.Cursor(payload, "a block")
        length = cursor.varint()
        if length > 8 * size + 64:
            raise ValueError(f"{length} bytes of ranks cannot stand for {size} bytes")
        cursor = base.Cursor(behind(payload[cursor.at :], length), "a block")
        count = cursor.varint()
        literals = _read_literals(cursor, count, size)
        left = len(cursor.data) - cursor.at
        if not count <= left <= 3 * count or count > size:
            raise ValueError(f"{left} bytes cannot hold {count} ranks of {size} bytes")
        ranks = read_ranks(cursor.take(left))
        if len(ranks) != count or (count and int(ranks.max()) >= len(id_of)):
            raise ValueError("the ranks are not as many, or not as low, as they must be")
        ids = id_of[ranks]
        # told before it is made: a short payload may name the longest token a million times
        if int(lengths[ids].sum()) > size + 16 * (len(literals) + 1):
            raise ValueError(f"the tokens stand for more than {size} bytes")
        return unspell(Spelled(ids.tolist(), literals), vocabulary)

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    # ranks take up to 3 bytes a token, and 34 bytes of arrays each while they are read
    return 110 * size + (32 << 20) + base.stage_memory(8 * size + 64, parameters)


def rounded_counts(ids: Sequence[int], size: int) -> NDArray[np.uint8]:
    """Return, per id of a vocabulary of `size`, 0 if unseen, else 1 + floor(4 log2(count)) by straight quarters."""
    counts = np.bincount(np.array(ids, np.int64), minlength=size)[:size]
    whole = np.frexp(np.maximum(counts, 1).astype(np.float64))[1].astype(np.int64) - 1
    quarter = ((counts << 2) >> whole) & 3
    return np.where(counts > 0, 1 + 4 * whole + quarter, 0).astype(np.uint8)


def by_rank(counts: NDArray[np.uint8]) -> Ids:
    """Return ids by falling count, equal ones by id: [1, 0, 5] -> [2, 0, 1]."""
    return np.argsort(255 - counts, kind="stable")


def write_ranks(ranks: Ids) -> bytes:
    """Return ranks as one, two or three bytes each."""
    out = np.zeros((len(ranks), 3), np.uint8)
    size = 1 + (ranks >= SHORT).astype(np.int64) + (ranks >= MIDDLE)
    low, middle, high = size == 1, size == 2, size == 3
    out[low, 0] = ranks[low]
    rest = ranks[middle] - SHORT
    out[middle, 0], out[middle, 1] = 128 | rest >> 8, rest & 255
    rest = ranks[high] - MIDDLE
    out[high, 0], out[high, 1], out[high, 2] = 192 | rest >> 16, rest >> 8 & 255, rest & 255
    return out[np.arange(3) < size[:, None]].tobytes()


def read_ranks(raw: bytes) -> Ids:
    """Return the ranks of `write_ranks`.

    Raises:
        ValueError: the last one is cut.
    """
    data = np.frombuffer(raw, np.uint8).astype(np.int64)
    starts = _starts(data)
    if not len(starts):
        return np.zeros(0, np.int64)
    first = data[starts]
    size = 1 + (first >= 128) + (first >= 192)
    if starts[-1] + size[-1] > len(data):
        raise ValueError("the last rank is cut")
    padded = np.append(data, [0, 0])
    second, third = padded[starts + 1], padded[starts + 2]
    two, three = SHORT + ((first & 63) << 8 | second), MIDDLE + ((first & 63) << 16 | second << 8 | third)
    return np.where(size == 1, first, np.where(size == 2, two, three))


def _starts(data: Ids) -> Ids:
    """Return where ranks begin: the walk from 0 by each rank's size, by doubling its steps."""
    n = len(data)
    following = np.minimum(np.arange(n) + 1 + (data >= 128) + (data >= 192), n)
    step = np.append(following, n)
    reached = np.zeros(n + 1, bool)
    reached[0] = True
    while True:
        # after k rounds every start within 2^k steps is marked, and `step` jumps 2^k of them
        marked = reached.copy()
        marked[step[reached]] = True
        if (marked == reached).all():
            return np.flatnonzero(reached[:n])
        reached, step = marked, step[step]


def _write_literals(spelled: Spelled) -> bytes:
    parts = [base.varint(len(spelled.ids)), base.varint(len(spelled.literals))]
    last = 0
    for place, literal in spelled.literals:
        parts += [base.varint(place - last), base.varint(len(literal)), literal]
        last = place
    return b"".join(parts)


def _read_literals(cursor: base.Cursor, tokens: int, size: int) -> list[tuple[int, bytes]]:
    count = cursor.varint()
    if count > 2 * size + 1:
        raise ValueError(f"{count} literals cannot stand in {size} bytes")
    literals: list[tuple[int, bytes]] = []
    place = 0
    for _ in range(count):
        place += cursor.varint()
        if place > tokens:
            raise ValueError("a literal stands behind the last token")
        literals.append((place, cursor.sized(size)))
    return literals


def _read_counts(parameters: Mapping[str, bytes], size: int) -> NDArray[np.uint8]:
    cursor = base.Cursor(parameters.get("counts", b""), "the counts")
    count = cursor.varint()
    if count != size or count > MOST_IDS:
        raise base.Corrupt(f"the file counts {count} ids; its vocabulary has {size}.")
    try:
        raw = base.decoder("lzma", 1, {}, {})(cursor.take(len(cursor.data) - cursor.at), count)
    except ValueError as error:
        raise base.Corrupt(f"the counts of ids are damaged: {error}.") from error
    return np.frombuffer(raw, np.uint8)


def _the_same(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> Vocabulary:
    wanted = parameters.get("vocabulary", b"").decode("ascii", errors="replace")
    vocabulary: Vocabulary | None = supply.get("vocabulary")
    if vocabulary is None:
        hint = "Hand it in: tok.decompress(blob, vocabulary=...)."
        raise base.ModelMissing(f"the file was packed with the vocabulary {wanted[:80]!r}; none is given.", hint)
    if vocabulary.fingerprint != wanted:
        message = f"the vocabulary given is {vocabulary.fingerprint[:80]!r}; the file was packed with {wanted[:80]!r}."
        raise base.ModelMismatch(message)
    return vocabulary
