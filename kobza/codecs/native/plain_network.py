"""A network of hashed contexts in plain Python: what the payloads of `image` and `font` stand on, integers only.

Each context finds a line by its hash: 15 decisions, each a probability (22 bits) and a count of what it has seen. A
line belongs to the hash whose check it carries; of two neighbors the one that knows less gives way. A probability
enters twice, in the logistic domain and as itself times a confidence that grows with the count. Three sets of weights
mix the inputs, a fourth mixes the three, a last table corrects the result by what it was worth.

Source: Mahoney (2013), "Data Compression Explained", sections 4.3 and 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kobza.codecs.native.plain_logistic import RECIPROCAL, SQUASH, STRETCH, approach, between, split, train

SETS, FIRST_RATE = 3, 400
LIMIT = 255  # observations after which a probability forgets at a steady rate
M64 = (1 << 64) - 1
PHI, SPREAD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
CONFIDENCE = [64 * count // (2 * count + 3) for count in range(1024)]
FIRST_FINAL = [SQUASH[between(-2047, (k - 16) * 128, 2047) + 2048] for k in range(33)]


class Decision(NamedTuple):
    """What one decision is about: its place in the lines, a row per set of weights, a row of the final estimation."""

    node: int
    rows: tuple[int, int, int]
    final: int


def scatter(value: int, more: int) -> int:
    """Return the hash of a hash and one more number."""
    value = (value + more + 1) * PHI & M64
    return value ^ value >> 32


class Encoder:
    """Binary arithmetic coder: an interval [low, high] of 32 bits, its lower part standing for a 1."""

    def __init__(self) -> None:
        self.low, self.high, self.out = 0, 0xFFFFFFFF, bytearray()

    def code(self, bit: int, probability: int) -> int:
        """Code `bit`, whose chance to be 1 is `probability` [1/65536]."""
        middle = split(self.low, self.high, probability)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while not (self.low ^ self.high) >> 24:
            self.out.append(self.high >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
        return bit

    def finish(self) -> bytes:
        """Return what was coded; zeros follow it."""
        self.out.append((self.low >> 24) + 1)
        return bytes(self.out)


class Decoder:
    """The reverse of `Encoder`."""

    def __init__(self, data: bytes) -> None:
        self.low, self.high, self.data, self.at = 0, 0xFFFFFFFF, data, 4
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def code(self, bit: int, probability: int) -> int:
        """Return the next bit; the one handed in is not looked at."""
        middle = split(self.low, self.high, probability)
        bit = int(self.value <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while not (self.low ^ self.high) >> 24:
            self.value = self.value << 8 & 0xFFFFFFFF | (self.data[self.at] if self.at < len(self.data) else 0)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
            self.at += 1
        return bit


class Network:
    """Everything learned so far.

    Args:
        contexts: contexts per decision [count].
        line_bits: lines are 2^line_bits.
        last_rate: how fast weights still learn in the end; they begin at 400 [1/1024, 1 .. 400].
        coder: where the bits go or come from.
    """

    def __init__(self, contexts: int, line_bits: int, last_rate: int, coder: Encoder | Decoder) -> None:
        self.contexts, self.line_bits, self.last_rate, self.coder = contexts, line_bits, last_rate << 16, coder
        self.rate = FIRST_RATE << 16
        self.lines: dict[int, list[int]] = {}
        self.first_row = [90000 // contexts, 12000 // contexts] * contexts
        self.first_row += [0] * ((2 * contexts + 8 & ~7) - 2 * contexts)
        self.weights: list[dict[int, list[int]]] = [{} for _ in range(SETS)]
        self.last_weights: dict[int, list[int]] = {}
        self.final: dict[int, list[int]] = {}

    def look_up(self, hashes: Sequence[int]) -> None:
        """Find the line of every context."""
        self.found = []
        for i, value in enumerate(hashes):
            value = (value + i) * SPREAD & M64
            self.found.append(self._line(value ^ value >> 31))

    def code(self, decision: Decision, bit: int) -> int:
        """Code `bit`, or read one when the coder reads; return it and learn from it."""
        node = decision.node
        inputs = self._inputs(node)
        chosen = [w.setdefault(r, self.first_row.copy()) for w, r in zip(self.weights, decision.rows, strict=True)]
        mixed = [weighted(inputs, weights) for weights in chosen] + [0] * (8 - SETS)
        last_chosen = self.last_weights.setdefault(decision.rows[0], [32767 // SETS] * SETS + [0] * (8 - SETS))
        last = weighted(mixed, last_chosen)
        at, part = last + 2048 >> 7, last + 2048 & 127
        final = self.final.setdefault(decision.final, FIRST_FINAL.copy())
        refined = final[at] * (128 - part) + final[at + 1] * part >> 7
        bit = self.coder.code(bit, between(16, SQUASH[last + 2048] + refined + 1 >> 1, 65520))
        approach(final, at + (part >= 64), bit, 6)
        for value, weights in zip(mixed, chosen, strict=False):
            train(inputs, weights, ((bit << 16) - SQUASH[value + 2048]) * (self.rate >> 16) >> 10)
        train(mixed, last_chosen, (bit << 16) - SQUASH[last + 2048] >> 4)
        self.rate -= self.rate - self.last_rate >> 14
        for line in self.found:
            line[node] = _adapted(line[node], bit)
        return bit

    def _line(self, value: int) -> list[int]:
        at, check = value >> (64 - self.line_bits), value & 0xFFFFFFFF | 1
        first = self.lines.setdefault(at, [0] + [1 << 31] * 15)
        second = self.lines.setdefault(at ^ 1, [0] + [1 << 31] * 15)
        for line in (first, second):
            if line[0] == check:
                return line
        loser = first if first[1] & 1023 <= second[1] & 1023 else second
        loser[:] = [check] + [1 << 31] * 15
        return loser

    def _inputs(self, node: int) -> list[int]:
        inputs = []
        for line in self.found:
            p, count = line[node] >> 20, line[node] & 1023
            inputs += [STRETCH[p] if count else 0, (p - 2048) * CONFIDENCE[count] >> 5]
        return inputs + [256] + [0] * (len(self.first_row) - len(inputs) - 1)


def weighted(inputs: Sequence[int], weights: Sequence[int]) -> int:
    """Return the sum of products [1/32768], between -2047 and 2047."""
    # subtle: products are summed and shifted as the C code sums and shifts them, so that no sum of its leaves 32 bits
    products = [i * w for i, w in zip(inputs, weights, strict=True)]
    whole = sum(a + b >> 8 for a, b in zip(products[::2], products[1::2], strict=True))
    return between(-2047, whole >> 7, 2047)


def _adapted(slot: int, bit: int) -> int:
    count, p = slot & 1023, slot >> 10
    p += ((bit << 22) - p >> 3) * RECIPROCAL[count] >> 13
    return p << 10 | (min(count + 1, LIMIT))
