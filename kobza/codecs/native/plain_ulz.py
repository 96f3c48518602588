"""The ULZ format (Ilya Muravyov, public domain) in plain Python: reader, and the writer that `ulz.c` equals.

A token byte: bits 7..5 literals before the match (7: a sum says how many more), bit 4 the 17th bit of the distance,
bits 3..0 match length - 4 (15: a sum says how much more); then the literals, the length's sum, the distance u16.
A sum is the total of its digits, each shifted by 7 bits more than the one before; a digit below 128 is the last.
A stream may end behind literals.
"""

from __future__ import annotations

from collections.abc import Iterator

MIN_MATCH = 4
WINDOW = 1 << 17
SEGMENT = 65536
MOST_SHORT = 18

Match = tuple[int, int]  # length, distance


def ulz_decode(data: bytes, size: int) -> bytes:
    """Return the `size` bytes that a ULZ stream stands for.

    Raises:
        ValueError: the stream is not one of `size` bytes.
    """
    out = bytearray()
    at = 0
    try:
        while at < len(data):
            token = data[at]
            at += 1
            if token >= 32:
                run, at = _length(token >> 5, 7, data, at)
                if run > len(data) - at or run > size - len(out):
                    raise ValueError("a literal run passes an end")
                out += data[at : at + run]
                at += run
                if at == len(data):
                    break
            length, at = _length(token & 15, 15, data, at)
            distance = (token & 16) << 12 | data[at] | data[at + 1] << 8
            at += 2
            _copy(out, distance, length + MIN_MATCH, size)
    except IndexError:
        raise ValueError("the stream ends inside a token") from None
    if len(out) != size:
        raise ValueError(f"the stream gives {len(out)} bytes, not {size}")
    return bytes(out)


def _length(field: int, full: int, data: bytes, at: int) -> tuple[int, int]:
    if field < full:
        return field, at
    for shift in range(0, 35, 7):
        field += data[at] << shift
        at += 1
        if data[at - 1] < 128:
            return field, at
    raise ValueError("a length has more than five digits")


def _copy(out: bytearray, distance: int, length: int, size: int) -> None:
    if not 0 < distance <= len(out) or length > size - len(out):
        raise ValueError("a match passes an end")
    begin = len(out) - distance
    while length > 0:
        piece = out[begin : begin + length]
        out += piece
        length -= len(piece)


def ulz_encode(data: bytes, level: int) -> bytes:
    """Return `data` as a ULZ stream.

    Args:
        data: any bytes.
        level: 1 fastest to 9 smallest. 1-4 take the longest match, 5-7 look one byte ahead, 8-9 find the cheapest
            parse.
    """
    finder = _Finder(data, level)
    pieces = _greedy(finder, level >= 5) if level < 8 else _cheapest(finder)
    out = bytearray()
    at = run = 0
    for length, distance in pieces:
        if not length:
            run += 1
            at += 1
            continue
        extra = length - MIN_MATCH
        _put_literals(out, data[at - run : at], distance >> 12 & 16 | min(extra, 15))
        if extra >= 15:
            _put_sum(out, extra - 15)
        out += (distance & 0xFFFF).to_bytes(2, "little")
        at += length
        run = 0
    if run:
        _put_literals(out, data[at - run : at], 0)
    return bytes(out)


def _put_sum(out: bytearray, value: int) -> None:
    while value >= 128:
        value -= 128
        out.append(128 | value & 127)
        value >>= 7
    out.append(value)


def _sum_size(value: int) -> int:
    n = 1
    while value >= 128:
        value = (value - 128) >> 7
        n += 1
    return n


def _put_literals(out: bytearray, literals: bytes, rest: int) -> None:
    out.append(min(len(literals), 7) << 5 | rest)
    if len(literals) >= 7:
        _put_sum(out, len(literals) - 7)
    out += literals


class _Finder:
    """Longest matches by chains of positions with an equal hash of four bytes, in the order `ulz.c` visits them."""

    def __init__(self, data: bytes, level: int) -> None:
        self.data, self.size, self.inserted = data, len(data), 0
        self.bits = min(17, max(8, (len(data) - 1).bit_length()))
        window = min(WINDOW, max(256, 1 << (len(data) - 1).bit_length()))
        self.mask = window - 1
        self.chain = 1 << level if level < 8 else 256 if level == 8 else 4096
        self.nice = 32 if level < 5 else 128 if level < 8 else 512
        self.head = [0] * (1 << self.bits)
        self.previous = [0] * window

    def _slot(self, at: int) -> int:
        word = int.from_bytes(self.data[at : at + 4], "little")
        return (word * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - self.bits)

    def _insert_until(self, end: int) -> None:
        for at in range(self.inserted, min(end, self.size - MIN_MATCH + 1)):
            slot = self._slot(at)
            self.previous[at & self.mask] = self.head[slot]
            self.head[slot] = at + 1
            self.inserted = at + 1

    def longest(self, at: int, most: int) -> Match:
        """Return (length, distance) of the longest match at `at`, of equals the nearest; (0, 0) if under 4."""
        self._insert_until(at)
        if most < MIN_MATCH:
            return 0, 0
        best, length = (0, 0), MIN_MATCH - 1
        following = self.head[self._slot(at)]
        for _ in range(self.chain):
            start = following - 1
            if start < 0 or at - start >= WINDOW:
                break
            worth = length < most and self.data[start + length] == self.data[at + length]
            n = self._common(start, at, most) if worth else 0
            if n > length:
                length, best = n, (n, at - start)
                if n >= self.nice or n == most:
                    break
            following = self.previous[start & self.mask]
        return best

    def _common(self, start: int, at: int, most: int) -> int:
        n = 0
        while n < most and self.data[start + n] == self.data[at + n]:
            n += 1
        return n


def _greedy(finder: _Finder, is_lazy: bool) -> Iterator[Match]:
    at = 0
    while at < finder.size:
        match = finder.longest(at, finder.size - at)
        look = is_lazy and 0 < match[0] < finder.nice and at + 1 < finder.size
        if look and finder.longest(at + 1, finder.size - at - 1)[0] > match[0]:
            match = (0, 0)
        yield match
        at += match[0] or 1


def _cheapest(finder: _Finder) -> Iterator[Match]:
    run = 0
    for begin in range(0, finder.size, SEGMENT):
        n = min(SEGMENT, finder.size - begin)
        found = _find_all(finder, begin, n)
        take, literal = _price(found, n)
        i = 0
        while i < n:
            if literal[i] >> min(run, 7) & 1:
                run += 1
                i += 1
                yield 0, 0
                continue
            yield take[i], found[i][1]
            i += take[i]
            run = 0


def _find_all(finder: _Finder, begin: int, n: int) -> list[Match]:
    found: list[Match] = []
    while len(found) < n:
        length, distance = finder.longest(begin + len(found), n - len(found))
        found.append((length, distance))
        while length >= finder.nice and len(found) < n:
            length -= 1
            found.append((length, distance))
    return found


def _price(found: list[Match], n: int) -> tuple[list[int], list[int]]:
    """Return, per position, the length of the cheapest match and the states (bits) in which a literal is cheaper."""
    cost, take, literal = [0] * (n + 1), [0] * n, [0] * n
    pending = [0] * 8
    for i in range(n - 1, -1, -1):
        match = 1 << 32
        longest = found[i][0]
        for length in [*range(MIN_MATCH, min(longest, MOST_SHORT) + 1), *([longest] if longest > MOST_SHORT else [])]:
            extra = _sum_size(length - MOST_SHORT - 1) if length > MOST_SHORT else 0
            if 3 + extra + cost[i + length] <= match:
                match, take[i] = 3 + extra + cost[i + length], length
        after = [1 + (r == 6) + pending[min(r + 1, 7)] for r in range(8)]
        literal[i] = sum(1 << r for r in range(8) if after[r] < match)
        pending = [min(a, match) for a in after]
        cost[i] = pending[0]
    return take, literal
