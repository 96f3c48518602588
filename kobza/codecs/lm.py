"""A language model as a codec: arithmetic coding with its next-token probabilities.

Source: Shannon (1948) for the code length; Deletang et al. (2024), "Language Modeling Is Compression",
arXiv:2309.10668, for the use with language models.

The tokens are cut into K streams of nearly equal length, coded in lockstep: one step feeds one token of every
stream, so the weights are read once for K tokens, when packing and when unpacking. Both sides run the *same* steps
(same batch, same order, same windows), because the logits of a whole window and of single steps differ in their last
bits, and one flipped bit ruins all that follows. A model is known here only as a `Predictor`, a tokenizer only as a
`Vocabulary`; neither needs torch.

The packed form, version 1 (varint = LEB128; other numbers little endian; text = varint length, then UTF-8):

| part | fields |
|---|---|
| header | magic `KBLM`, version u8, arithmetic profile u8, table bits u8, zero u8 |
| | environment text, model fingerprint text, vocabulary fingerprint text |
| | raw bytes varint, CRC-32 of the raw bytes u32, streams varint, window varint, overlap varint, body bytes varint |
| body | tokens varint, literals varint; per literal: tokens since the last literal varint, bytes varint |
| | stored literals: varint 2 * length + (1 when deflated), then the bytes |
| | the range coder's bytes, to the end |

Literals are the bytes that do not survive the tokenizer (such as invalid UTF-8); each stands before the token of its
position. Arithmetic profile 1 ("local"): the predictor's float32 logits l become the integer frequencies
floor(exp(l - max) * 2**bits) + 1, computed in float64; packed bytes can be read only where the logits come out the
same (same library versions, threads and processor flags, all named by `environment`). The profile byte leaves room
for one whose tables are made of integers and come out the same everywhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kobza.codecs._spelling import Spelled, Vocabulary, spell, unspell
from kobza.codecs.range_coder import Decoder, Encoder
from kobza.core.errors import Corrupt, InputRefused, NotFinite, OutOfRange, Truncated
from kobza.core.progress import task

MAGIC = b"KBLM"
VERSION = 1
LOCAL = 1
TABLE_BITS = 28  # tables of 16 bits cost 48 % of the size at a vocabulary of 49152, of 20 bits 1.4 %, of 24 0.05 %
CONTEXT = 256  # tokens per stream when the number of streams is left open
MAX_STREAMS = 32  # when left open: 9.8 times the tokens per second of one; every stream holds a cache of its own
STREAMS_LIMIT = 256
WINDOW_LIMIT = 1 << 20  # tokens
RAW_LIMIT = 1 << 30  # bytes
TEXT_LIMIT = 4096  # bytes of a text in the header

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class Predictor(Protocol):
    """What the codec needs of a model.

    Attributes:
        fingerprint: names the weights exactly.
        environment: all that the last bits of a logit depend on; where it differs, unpacking is refused.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def environment(self) -> str: ...

    def restart(self, prefix: Ids) -> Logits:
        """Forget all, begin K contexts by the start token and `prefix` (K, T); return the logits (K, V) behind them."""
        ...

    def feed(self, ids: Ids) -> Logits:
        """Append one id to every stream (K,); return the logits (K, V) behind them."""
        ...


@dataclass(frozen=True)
class Packed:
    """What packing made, and what it cost.

    Attributes:
        blob: header and body.
        body_bytes: length of the body: what is left to send when both sides agreed on model and settings.
        spelled: the tokens and literals.
        streams: streams in lockstep.
        ideal_bits: -log2 of the model's probability of every token (T,), in the schedule that was run.
        coded_bits: the same by the integer tables (T,).
    """

    blob: bytes
    body_bytes: int
    spelled: Spelled
    streams: int
    ideal_bits: NDArray[np.float64]
    coded_bits: NDArray[np.float64]


@dataclass(frozen=True)
class Header:
    """The fields in front of the body; see the table at the top of the file."""

    environment: str
    model: str
    vocabulary: str
    raw_bytes: int
    crc: int
    streams: int
    window: int
    overlap: int
    body_bytes: int
    table_bits: int = TABLE_BITS
    profile: int = LOCAL


def compress(
    data: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
) -> bytes:
    """Pack any bytes with a model.

    Args:
        data: what to pack; any bytes, empty too.
        predictor: the model.
        vocabulary: its tokenizer.
        streams: streams coded in lockstep [count, 0 .. 256]; 0 takes one per 256 tokens, at most 32. More streams are
            faster and larger, because each begins without context.
        window: tokens that the model sees at most [tokens, 1 .. 1048576].
        overlap: tokens of a full window that the next one sees again [tokens, 0 .. window - 1].

    Returns:
        The packed form described at the top of the file.
    """
    return pack(data, predictor, vocabulary, streams=streams, window=window, overlap=overlap).blob


def decompress(
    blob: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    limit: int = RAW_LIMIT,
    is_forced: bool = False,
) -> bytes:
    """Unpack what `compress` made.

    Args:
        blob: the packed form.
        predictor: the model it was packed with.
        vocabulary: the tokenizer it was packed with.
        limit: the most that may come out [bytes, 0 ..].
        is_forced: try although the environment differs; the checksum still decides.

    Raises:
        Corrupt: not the packed form, damaged, or other bytes came out than went in.
        Truncated: it ends before its header says.
        InputRefused: another model, tokenizer or environment, or more bytes than `limit`.
    """
    header, place = read_header(blob)
    _check_match(header, predictor, vocabulary, is_forced)
    if header.raw_bytes > limit:
        raise InputRefused(f"unpacked it would be {header.raw_bytes} bytes; allowed are {limit}.", "Raise the limit.")
    reader = _Reader(blob, place)
    count = reader.number("tokens", header.raw_bytes)
    literals = _read_literals(reader, count, header.raw_bytes)
    ids = _decode(Decoder(blob[reader.place :]), count, header, predictor)
    data = unspell(Spelled(ids, literals), vocabulary)
    if len(data) != header.raw_bytes or zlib.crc32(data) != header.crc:
        raise _not_the_same()
    return data


def pack(
    data: bytes,
    predictor: Predictor,
    vocabulary: Vocabulary,
    *,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    table_bits: int = TABLE_BITS,
) -> Packed:
    """Pack, and tell what every token cost; the arguments are those of `compress`.

    Args:
        table_bits: precision of the integer tables [bits, 16 .. 28].

    Raises:
        OutOfRange: an option outside its range.
        NotFinite: the model's logits are NaN or infinite; the message names the token.
    """
    _check_range("streams", streams, 0, STREAMS_LIMIT)
    _check_range("window", window, 1, WINDOW_LIMIT)
    _check_range("overlap", overlap, 0, window - 1)
    _check_range("table_bits", table_bits, 16, TABLE_BITS)
    spelled = spell(data, vocabulary)
    count = len(spelled.ids)
    streams = min(streams or natural_streams(count), max(1, count))
    encoder, costs = Encoder(), np.zeros((2, count))
    first = [part.start for part in parts(count, streams)]

    def choose(stream: int, at: int, tables: _Tables) -> int:
        place = first[stream] + at
        token = spelled.ids[place]
        start, size, total = tables.part(stream, token)
        encoder.encode(start, size, total)
        costs[:, place] = tables.ideal_bits(stream, token), np.log2(total / size)
        return token

    settings = Header(predictor.environment, predictor.fingerprint, vocabulary.fingerprint, len(data),
                      zlib.crc32(data), streams, window, overlap, 0, table_bits)  # fmt: skip
    _walk(predictor, count, settings, choose, "packing")
    body = _number(count) + _write_literals(spelled) + encoder.finish()
    blob = write_header(settings, len(body)) + body
    return Packed(blob, len(body), spelled, streams, costs[0], costs[1])


def natural_streams(tokens: int) -> int:
    """Return the streams taken for so many tokens when none are asked for: one per 256, at most 32."""
    return max(1, min(MAX_STREAMS, round(tokens / CONTEXT)))


def parts(tokens: int, streams: int) -> list[range]:
    """Return the token places of every stream; lengths differ by one at most, longer ones first.

    >>> parts(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    short, longer = divmod(tokens, streams)
    begins = [stream * short + min(stream, longer) for stream in range(streams + 1)]
    return [range(begin, end) for begin, end in pairwise(begins)]


class _Tables:
    """The integer tables of one step for all streams, made of float32 logits (K, V)."""

    def __init__(self, logits: Logits, bits: int, step: int) -> None:
        self._logits = logits
        self._top = logits.max(axis=1)  # (K,)
        if not np.isfinite(self._top).all():
            stream = int(np.flatnonzero(~np.isfinite(self._top))[0])
            raise NotFinite(f"the model's logits are not finite before token {step} of stream {stream}.")
        shares = np.exp(logits.astype(np.float64) - self._top[:, None])  # (K, V) in 0 .. 1
        self._log2_sum = np.log2(shares.sum(axis=1))
        self.cumulative = np.zeros((logits.shape[0], logits.shape[1] + 1), np.int64)
        np.cumsum((shares * (1 << bits)).astype(np.int64) + 1, axis=1, out=self.cumulative[:, 1:])

    def part(self, stream: int, token: int) -> tuple[int, int, int]:
        row = self.cumulative[stream]
        return int(row[token]), int(row[token + 1] - row[token]), int(row[-1])

    def find(self, stream: int, decoder: Decoder) -> int:
        row = self.cumulative[stream]
        return int(np.searchsorted(row, decoder.target(int(row[-1])), side="right")) - 1

    def ideal_bits(self, stream: int, token: int) -> float:
        distance = float(self._top[stream]) - float(self._logits[stream, token])
        return float(distance / np.log(2) + self._log2_sum[stream])


def _walk(
    predictor: Predictor, count: int, settings: Header, choose: Callable[[int, int, _Tables], int], label: str
) -> None:
    """Run all steps; `choose(stream, place in the stream, tables)` codes or decodes one token and returns it."""
    lengths = [len(part) for part in parts(count, settings.streams)]
    steps = max(lengths)
    history = np.zeros((settings.streams, steps), np.int64)  # (K, T); streams that ended early go on with id 0
    restarts = range(settings.window, steps, settings.window - settings.overlap)
    with task(label, steps) as work:
        for step in range(steps):
            if step == 0 or step in restarts:
                logits = predictor.restart(history[:, max(0, step - settings.overlap) : step])
            else:
                logits = predictor.feed(history[:, step - 1])
            tables = _Tables(logits, settings.table_bits, step)
            for stream in range(settings.streams):
                if step < lengths[stream]:
                    history[stream, step] = choose(stream, step, tables)
            work.step()


def _decode(decoder: Decoder, count: int, header: Header, predictor: Predictor) -> list[int]:
    ids: list[list[int]] = [[] for _ in range(header.streams)]

    def choose(stream: int, at: int, tables: _Tables) -> int:
        token = tables.find(stream, decoder)
        decoder.advance(*tables.part(stream, token))
        ids[stream].append(token)
        return token

    _walk(predictor, count, header, choose, "unpacking")
    if not decoder.is_exhausted:
        raise Corrupt("bytes are left behind the last token: the file is damaged.")
    return [token for stream in ids for token in stream]


def write_header(header: Header, body_bytes: int) -> bytes:
    """Return the header's bytes for a body of `body_bytes`."""
    texts = [text.encode()[:TEXT_LIMIT] for text in (header.environment, header.model, header.vocabulary)]
    return b"".join([
        MAGIC, bytes([VERSION, header.profile, header.table_bits, 0]), *(_number(len(t)) + t for t in texts),
        _number(header.raw_bytes), header.crc.to_bytes(4, "little"),
        *(_number(n) for n in (header.streams, header.window, header.overlap, body_bytes)),
    ])  # fmt: skip


def read_header(blob: bytes) -> tuple[Header, int]:
    """Return the header, checked, and where the body begins; needs no model.

    Raises:
        Corrupt: not the packed form, or fields that contradict each other.
        Truncated: it ends too early.
    """
    if blob[:4] != MAGIC[: len(blob)] or not blob:
        raise Corrupt(f"this is not text packed by a model: it begins with {blob[:4]!r}, not {MAGIC!r}.")
    reader = _Reader(blob, 4)
    version, profile, table_bits, zero = reader.take(4)
    if version != VERSION or profile != LOCAL or zero or not 16 <= table_bits <= TABLE_BITS:
        raise Corrupt(f"version {version}, profile {profile}, table bits {table_bits} are not known here; "
                      f"known are version {VERSION}, profile {LOCAL}, 16 to {TABLE_BITS} bits.")  # fmt: skip
    environment, model, vocabulary = (reader.text() for _ in range(3))
    raw_bytes = reader.number("raw bytes", 1 << 62)
    crc = int.from_bytes(reader.take(4), "little")
    streams = reader.number("streams", STREAMS_LIMIT)
    window = reader.number("window", WINDOW_LIMIT)
    overlap = reader.number("overlap", WINDOW_LIMIT)
    body_bytes = reader.number("body bytes", 1 << 62)
    if streams < 1 or overlap >= window:
        raise Corrupt(f"the header says {streams} streams, window {window}, overlap {overlap}: the file is damaged.")
    if len(blob) < reader.place + body_bytes:
        raise Truncated(f"the body has {len(blob) - reader.place} of its {body_bytes} bytes: the file was cut.")
    if len(blob) > reader.place + body_bytes:
        raise Corrupt(f"{len(blob) - reader.place - body_bytes} bytes follow the body: the file is damaged.")
    return Header(environment, model, vocabulary, raw_bytes, crc, streams, window, overlap, body_bytes, table_bits,
                  profile), reader.place  # fmt: skip


class _Reader:
    """Takes fields off the front of bytes, each within its limit."""

    def __init__(self, blob: bytes, place: int) -> None:
        self._blob = blob
        self.place = place

    def take(self, count: int) -> bytes:
        if self.place + count > len(self._blob):
            raise Truncated(f"the file ends at byte {len(self._blob)}, inside a field of {count} bytes.")
        self.place += count
        return self._blob[self.place - count : self.place]

    def number(self, name: str, limit: int) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if value > limit:
            raise Corrupt(f"the field {name!r} is {value}; at most {limit} is possible.")
        return value

    def text(self) -> str:
        return self.take(self.number("text length", TEXT_LIMIT)).decode("utf-8", errors="replace")


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _write_literals(spelled: Spelled) -> bytes:
    out, last = _number(len(spelled.literals)), 0
    for place, literal in spelled.literals:
        out += _number(place - last) + _number(len(literal))
        last = place
    if not spelled.literals:
        return out
    raw = b"".join(literal for _, literal in spelled.literals)
    deflated = zlib.compress(raw, 9)
    is_deflated = len(deflated) < len(raw)
    stored = deflated if is_deflated else raw
    return out + _number(2 * len(stored) + is_deflated) + stored


def _read_literals(reader: _Reader, tokens: int, raw_bytes: int) -> list[tuple[int, bytes]]:
    count = reader.number("literals", raw_bytes)
    places, sizes = [0], []
    for _ in range(count):
        places.append(places[-1] + reader.number("place of a literal", tokens - places[-1]))
        sizes.append(reader.number("length of a literal", raw_bytes))
    if not count:
        return []
    size, is_deflated = divmod(reader.number("stored literals", 2 * raw_bytes + 1), 2)
    raw = reader.take(size)
    if is_deflated:
        raw = _inflate(raw, raw_bytes)
    if len(raw) != sum(sizes):
        raise Corrupt(f"the literals have {len(raw)} bytes, their list says {sum(sizes)}.")
    ends = np.cumsum(sizes).tolist()
    return [(place, raw[end - size : end]) for place, end, size in zip(places[1:], ends, sizes, strict=True)]


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise Corrupt(f"the literals are damaged ({error}).") from None
    if len(raw) > limit or not inflater.eof:
        raise Corrupt(f"the literals do not end within {limit} bytes.")
    return raw


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OutOfRange(f"{name} is {value}; allowed is {low} to {high}.")


def _check_match(header: Header, predictor: Predictor, vocabulary: Vocabulary, is_forced: bool) -> None:
    for what, packed, here in (
        ("model", header.model, predictor.fingerprint),
        ("tokenizer", header.vocabulary, vocabulary.fingerprint),
    ):
        if packed != here:
            raise InputRefused(f"packed with the {what} {packed[:16]}, this one is {here[:16]}.", "Open the same one.")
    if header.environment != predictor.environment and not is_forced:
        raise InputRefused(
            f"packed under '{header.environment}', here is '{predictor.environment}': the last bits may differ.",
            "Unpack where it was packed, with as many threads, or force it: the checksum will tell.",
        )


def _not_the_same() -> Corrupt:
    return Corrupt(
        "other bytes came out than went in: the file is damaged, or the model's last bits differ here.",
        "Unpack where it was packed, with as many threads.",
    )
