"""Range coder: symbols with integer frequencies to bytes and back, exactly.

The interval [low, low + range) is cut in proportion to the frequencies and narrowed to the part of the symbol
coded. Everything is integer arithmetic, so equal tables give equal bytes on every machine.

Source: Martin (1979), "Range encoding: an algorithm for removing redundancy from a digitised message";
carry handling as in Schindler's byte-wise range coder (1998).

The stream: a big-endian fraction of [0, 1). `range` starts at 2**64 - 1 and is kept at 2**56 or more by moving out
one byte at a time; a carry is added to the bytes already written. At the end the encoder writes the fewest bytes
that still lie inside the interval; the decoder reads zeros behind them.
"""

from bisect import bisect_right
from collections.abc import Sequence

from kobza.core.errors import Corrupt, OutOfRange

TOP = 1 << 64
BOTTOM = 1 << 56
MAX_TOTAL = 1 << 48  # leaves range // total >= 256, so that rounding costs less than 0.006 bits a symbol


class Encoder:
    """Codes symbols one after the other; `finish` returns the bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = TOP - 1
        self._bytes = bytearray()

    def encode(self, start: int, size: int, total: int) -> None:
        """Code the symbol that owns [start, start + size) of [0, total).

        Args:
            start: sum of the frequencies before the symbol [count, 0 .. total - size].
            size: frequency of the symbol [count, 1 .. total].
            total: sum of all frequencies [count, 1 .. 2**48].

        Raises:
            OutOfRange: the three numbers are no part of a table.
        """
        if start < 0 or size < 1 or not start + size <= total <= MAX_TOTAL:
            raise OutOfRange(
                f"a symbol's part [{start}, {start + size}) does not lie in [0, {total}) with a total of at most 2**48."
            )
        step = self._range // total
        self._low += step * start
        # The last symbol also takes what the division left over: nothing of the interval is wasted.
        self._range = self._range - step * start if start + size == total else step * size
        if self._low >= TOP:
            self._carry()
        while self._range < BOTTOM:
            self._bytes.append(self._low >> 56)
            self._low = (self._low << 8) & (TOP - 1)
            self._range <<= 8

    def bits(self, value: int, count: int) -> None:
        """Code `count` bits of `value` [0 .. 2**count - 1] at their plain price."""
        self.encode(value, 1, 1 << count)

    def finish(self) -> bytes:
        """Return the fewest bytes that decode to what was coded; the encoder is used up."""
        if not self._bytes and self._low == 0:
            return b""  # nothing but zeros lies in the interval: the decoder reads them for free
        for kept in range(9):
            unit = 1 << (64 - 8 * kept)
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                break
        self._low = value
        if self._low >= TOP:
            self._carry()
        self._bytes += self._low.to_bytes(8, "big")[:kept]
        return bytes(self._bytes).rstrip(b"\0")

    def _carry(self) -> None:
        self._low -= TOP
        place = len(self._bytes) - 1
        while self._bytes[place] == 0xFF:
            self._bytes[place] = 0
            place -= 1
        self._bytes[place] += 1


class Decoder:
    """Reads symbols back: ask for `target`, find the symbol, then `advance` past it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 8
        self._code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")  # how far the coded value lies above low
        self._range = TOP - 1

    def target(self, total: int) -> int:
        """Return a number in [0, total) that lies inside the next symbol's part.

        Raises:
            OutOfRange: `total` is not in 1 .. 2**48.
        """
        if not 0 < total <= MAX_TOTAL:
            raise OutOfRange(f"a table's total is {total}; allowed is 1 to 2**48.")
        return min(self._code // (self._range // total), total - 1)

    def advance(self, start: int, size: int, total: int) -> None:
        """Step past the symbol that owns [start, start + size) of [0, total).

        Raises:
            Corrupt: the part does not hold the coded value.
        """
        step = self._range // total
        span = self._range - step * start if start + size == total else step * size
        self._code -= step * start
        if not 0 <= self._code < span:
            raise Corrupt("the packed bytes do not fit the table they are read with: damaged, or another model.")
        self._range = span
        while self._range < BOTTOM:
            byte = self._data[self._place] if self._place < len(self._data) else 0
            self._code = (self._code << 8) | byte
            self._range <<= 8
            self._place += 1

    def decode(self, cumulative: Sequence[int]) -> int:
        """Return the next symbol of a table given as running sums (S + 1 numbers, first 0), in O(log S)."""
        total = int(cumulative[-1])
        symbol = bisect_right(cumulative, self.target(total)) - 1
        start = int(cumulative[symbol])
        self.advance(start, int(cumulative[symbol + 1]) - start, total)
        return symbol

    def bits(self, count: int) -> int:
        """Read `count` bits written by `Encoder.bits`."""
        value = self.target(1 << count)
        self.advance(value, 1, 1 << count)
        return value

    @property
    def is_exhausted(self) -> bool:
        """All bytes were read (a stream that ends far before its bytes do is damaged)."""
        return self._place >= len(self._data)
