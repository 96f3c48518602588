"""Context mixing in plain Python: the specification of `cm`'s payload, integers only.

Each bit is predicted from eight contexts (the last 1 to 6 bytes, the word, the word and the one before). A context's
slot holds a bit history: how many zeros and ones were seen, bounded, the latter of them weighing more. A map per
context learns what history predicts what; beside them stand a match (what followed the last occurrence of the last
five bytes) and plain probabilities of order 1. Three sets of weights mix them in the logistic domain, a fourth mixes
the three, a last table corrects the result by what it was worth in the present byte context.

Source: Mahoney (2005), "Adaptive weighing of context models for lossless data compression", Florida Tech CS-2005-16;
Mahoney (2013), "Data Compression Explained", sections 4.3 and 4.4.

The payload is a binary arithmetic code: an interval [low, high] of 32 bits is split in proportion to the probability
of a 1 (its lower part), equal leading bytes move out, zeros follow the last byte.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from kobza.codecs.native.plain_logistic import SQUASH, STRETCH, adapt, approach, between, dot, log2_above, split, train

CONTEXTS, INPUTS, SETS, SHORTEST, LONGEST = 8, 24, 3, 5, 65535
RATE, LIMIT = 5, 1023
PHI, WORD, PAIR, SPREAD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0x2545F4914F6CDD1D, 0xBF58476D1CE4E5B9
M64 = (1 << 64) - 1

# most observations of the rarer bit remembered beside n of the other: limits the histories to 239
MOST_BESIDE = [24, 24, 14, 9, 7, 6, 5, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
SHRUNK = [0, 1, 2, 2, 3, 4, 4, 4]  # the opposite count after a bit; 8 and more become 5


class Histories(NamedTuple):
    """What is computed once: the next history, and the first probability of a history."""

    following: list[tuple[int, int]]
    first: list[int]


def _is_history(zeros: int, ones: int) -> bool:
    return zeros < 25 and ones < 25 and zeros <= MOST_BESIDE[ones] and ones <= MOST_BESIDE[zeros]


def _extended(same: int, other: int) -> tuple[int, int]:
    same, other = same + 1, SHRUNK[other] if other < 8 else 5
    while not _is_history(same, other):
        same, other = (same, other - 1) if other > 1 else (same - 1, other)
    return same, other


def _histories() -> tuple[list[tuple[int, int]], list[int]]:
    pairs = [(total - ones, ones) for total in range(49) for ones in range(total + 1)]
    states = [(z, o, last) for z, o in pairs if _is_history(z, o) for last in ((0, 1) if z and o else (0,))]
    number = {state: i for i, state in enumerate(states)}
    following, first = [], []
    for zeros, ones, _ in states:
        z0, o0 = _extended(zeros, ones)
        o1, z1 = _extended(ones, zeros)
        following.append((number[z0, o0, 0], number[z1, o1, 1 if z1 and o1 else 0]))
        first.append((ones * 2 + 1) * 4194303 // (zeros * 2 + ones * 2 + 2) << 10)
    return following, first


HISTORIES = Histories(*_histories())


FIRST_FINAL = [SQUASH[between(-2047, (k - 16) * 128, 2047) + 2048] for k in range(33)]


class _Mixer:
    """Everything learned so far. `text` is the list of bytes known, which the caller extends before `update`."""

    def __init__(self, size: int, text: bytes | bytearray) -> None:
        scale = log2_above(size)
        self.bucket_bits, self.direct_bits = between(8, scale + 1, 20), between(9, scale, 13) + 4
        self.final_bits, self.seen_bits = between(8, scale, 16), between(8, scale, 20)
        self.text, self.at, self.match_at, self.match_length = text, 0, 0, 0
        self.end = sys.maxsize  # no match runs past it
        self.slots: list[dict[int, bytearray]] = [{} for _ in range(CONTEXTS)]
        self.seen: dict[int, int] = {}
        self.maps = [HISTORIES.first + [0] * (256 - len(HISTORIES.first)) for _ in range(CONTEXTS)]
        rare = [4194303 // (length + 2) for length in range(64)]
        self.match_map = [[p << 10 for p in rare], [(4194303 - p) << 10 for p in rare]]
        self.direct = [32768] * (1 << self.direct_bits)
        self.final: dict[int, list[int]] = {}
        row = [1024 if k & 1 else 6000 for k in range(2 * CONTEXTS)] + [4000] * (INPUTS - 2 * CONTEXTS)
        self.weights = [[row.copy() for _ in range(256)] for _ in range(SETS)]
        self.last_weights = [[32767 // SETS] * SETS for _ in range(256)]
        self.history = self.word = self.word_before = self.bits = 0
        self.partial, self.node, self.expected = 1, 1, -1
        self.inputs = [0] * INPUTS
        self._hash_contexts()
        self._find_rows()

    def predict(self) -> int:
        """Return the probability that the next bit is 1 [1/65536, 16 .. 65520]."""
        self._put_inputs()
        self._mix()
        x = self.last_mixed + 2048
        context = (self.history & 255) << 8 | self.partial
        row = (context * PHI & M64) >> (64 - self.final_bits)
        self.final_row = self.final.get(row) or self.final.setdefault(row, FIRST_FINAL.copy())
        at, part = x >> 7, x & 127
        self.final_at = at + (part >= 64)
        refined = (self.final_row[at] * (128 - part) + self.final_row[at + 1] * part) >> 7
        return between(16, (SQUASH[x] + refined + 1) >> 1, 65520)

    def update(self, bit: int) -> None:
        """Learn the bit that came and turn to the next."""
        self._learn(bit)
        self.bits = (self.bits + 1) & 7
        self.partial = self.partial << 1 | bit
        self.node = self.node << 1 | bit
        if not self.bits:
            self._end_byte()
        if not self.bits & 3:
            self._find_rows()

    def _hash_contexts(self) -> None:
        whole = [(self.history & (1 << 8 * order) - 1) + (order << 56) for order in range(1, 7)]
        whole += [self.word + (7 << 56), self.word * PAIR + self.word_before + (8 << 56)]
        self.hashes = [w * PHI & M64 for w in whole]

    def _find_rows(self) -> None:
        self.buckets = []
        for slots, base in zip(self.slots, self.hashes, strict=True):
            value = ((base ^ base >> 29) + self.partial) * SPREAD & M64
            self.buckets.append(self._bucket(slots, value ^ value >> 31))
        context = (self.history & 255) << 8 | self.partial
        self.direct_row = ((context * PHI & M64) >> (64 - self.direct_bits + 4)) * 16
        self.node = 1

    def _bucket(self, slots: dict[int, bytearray], value: int) -> bytearray:
        at, check = value >> (64 - self.bucket_bits), value & 255
        first = slots.setdefault(at, bytearray(16))
        second = slots.setdefault(at ^ 1, bytearray(16))
        for bucket in (first, second):
            if bucket[0] == check:
                return bucket
        loser = first if first[1] <= second[1] else second
        loser[:] = bytes((check,)) + bytes(15)
        return loser

    def _put_inputs(self) -> None:
        for i in range(CONTEXTS):
            state = self.buckets[i][self.node]
            p = self.maps[i][state] >> 20
            self.inputs[2 * i] = STRETCH[p] if state else 0
            self.inputs[2 * i + 1] = (p - 2048) >> 1 if state else 0
        self.inputs[2 * CONTEXTS + 2] = STRETCH[self.direct[self.direct_row + self.node] >> 4]
        self.inputs[2 * CONTEXTS + 3] = 256
        self._put_match()

    def _put_match(self) -> None:
        self.expected = -1
        self.inputs[2 * CONTEXTS] = self.inputs[2 * CONTEXTS + 1] = 0
        if not self.match_length:
            return
        byte, left = self.text[self.match_at] | 256, 8 - self.bits
        if byte >> left != self.partial:
            self.match_length = 0
            return
        self.expected = byte >> left - 1 & 1
        n = self.match_length
        self.match_row = n if n < 32 else between(32, 32 + (log2_above(n) - 5) * 3, 63)
        p = self.match_map[self.expected][self.match_row] >> 20
        self.inputs[2 * CONTEXTS], self.inputs[2 * CONTEXTS + 1] = STRETCH[p], (p - 2048) >> 1

    def _mix(self) -> None:
        length = between(1, log2_above(self.match_length), 15) if self.match_length else 0
        rows = (self.partial, length << 2 | self.expected + 1, self.history & 255)
        self.chosen = [self.weights[i][row] for i, row in enumerate(rows)]
        self.mixed = [dot(self.inputs, weights) for weights in self.chosen]
        self.last_chosen = self.last_weights[self.partial]
        self.last_mixed = dot(self.mixed, self.last_chosen)

    def _learn(self, bit: int) -> None:
        for mixed, weights in zip(self.mixed, self.chosen, strict=True):
            train(self.inputs, weights, ((bit << 16) - SQUASH[mixed + 2048] >> 4) * RATE)
        train(self.mixed, self.last_chosen, (bit << 16) - SQUASH[self.last_mixed + 2048] >> 4)
        for bucket, map_ in zip(self.buckets, self.maps, strict=True):
            adapt(map_, bucket[self.node], bit)
            bucket[self.node] = HISTORIES.following[bucket[self.node]][bit]
        approach(self.direct, self.direct_row + self.node, bit, 4)
        if self.expected >= 0:
            adapt(self.match_map[self.expected], self.match_row, bit)
        approach(self.final_row, self.final_at, bit, 6)

    def _end_byte(self) -> None:
        byte = self.partial & 255
        self.partial, self.at = 1, self.at + 1
        self.history = (self.history << 8 | byte) & M64
        letter = byte + 32 if 65 <= byte <= 90 else byte
        if 97 <= letter <= 122 or letter >= 128:
            self.word = (self.word + letter + 1) * WORD & M64
        elif self.word:
            self.word_before, self.word = self.word, 0
        self._find_match()
        self._hash_contexts()

    def _find_match(self) -> None:
        if self.match_length:
            self.match_at += 1
            self.match_length += self.match_length < LONGEST
            if self.match_at >= self.end:
                self.match_length = 0
        if self.at < SHORTEST:
            return
        key = ((self.history & (1 << 8 * SHORTEST) - 1) * PHI & M64) >> (64 - self.seen_bits)
        if not self.match_length and key in self.seen:
            self.match_at, n = self.seen[key], 0
            most = min(400, self.match_at, self.at)
            while n < most and self.text[self.match_at - 1 - n] == self.text[self.at - 1 - n]:
                n += 1
            self.match_length = n if n >= SHORTEST else 0
        self.seen[key] = self.at


def mixing_encode(data: bytes) -> bytes:
    """Return the payload of `data`."""
    mixer = _Mixer(len(data), data)
    out, low, high = bytearray(), 0, 0xFFFFFFFF
    for byte in data:
        for k in range(7, -1, -1):
            bit = byte >> k & 1
            middle = split(low, high, mixer.predict())
            low, high = (low, middle) if bit else (middle + 1, high)
            while not (low ^ high) >> 24:
                out.append(high >> 24)
                low, high = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255
            mixer.update(bit)
    out.append((low >> 24) + 1)
    return bytes(out)


def mixing_decode(data: bytes, size: int) -> bytes:
    """Return the `size` bytes of a payload. Any payload gives some bytes; whether the right ones, a checksum says."""
    text, at = bytearray(), 4
    mixer = _Mixer(size, text)
    low, high, code = 0, 0xFFFFFFFF, int.from_bytes(data[:4].ljust(4, b"\0"), "big")
    for _ in range(size):
        for k in range(8):
            middle = split(low, high, mixer.predict())
            bit = int(code <= middle)
            low, high = (low, middle) if bit else (middle + 1, high)
            while not (low ^ high) >> 24:
                code = code << 8 & 0xFFFFFFFF | (data[at] if at < len(data) else 0)
                low, high, at = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255, at + 1
            if k == 7:
                text.append((mixer.partial << 1 | bit) & 255)
            mixer.update(bit)
    return bytes(text)


class Together:
    """Several texts of `size` bytes at most that learn together, predicted and learned bit by bit."""

    STANDS = ("hashes", "history", "word", "word_before", "at", "match_at", "match_length")

    def __init__(self, size: int, streams: int) -> None:
        if size < 1 or streams < 1 or size * streams > 1 << 30:
            raise ValueError("1 to 2^30 bytes in all texts")
        self.size, self.now, self.is_ready = size, 0, False
        self.mixer = _Mixer(size, bytearray(size * streams + 1))
        self.mixer.end = size * streams
        self.stands = [self._stand() | {"at": size * stream} for stream in range(streams)]

    def _stand(self) -> dict[str, Any]:
        return {name: getattr(self.mixer, name) for name in self.STANDS}

    def turn(self, stream: int) -> None:
        """Go on with another text; only between two bytes."""
        if self.mixer.bits or not 0 <= stream < len(self.stands):
            raise ValueError("a turn is made between two bytes, to a text that was opened")
        self.stands[self.now] = self._stand()
        for name, value in self.stands[stream].items():
            setattr(self.mixer, name, value)
        self.now, self.is_ready = stream, False
        self.mixer._find_rows()

    def predict(self) -> int:
        """Return the probability that the next bit is 1 [1/65536]."""
        self.is_ready = True
        return self.mixer.predict()

    def update(self, bit: int) -> None:
        """Learn the bit that came."""
        mixer = self.mixer
        if mixer.at >= self.size * (self.now + 1) or not self.is_ready:
            raise ValueError("a bit is learned once, after it was predicted, up to the end of its text")
        if mixer.bits == 7:
            assert isinstance(mixer.text, bytearray)
            mixer.text[mixer.at] = (mixer.partial << 1 | bit) & 255
        self.is_ready = False
        mixer.update(bit)


mixing_open = Together
mixing_turn = Together.turn
mixing_predict = Together.predict
mixing_update = Together.update
