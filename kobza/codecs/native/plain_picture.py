"""Pictures in plain Python: the specification of the raster payload of `image`, integers only.

A sample is coded as its distance from a centre (`plain_prediction`), folded to 0, +1, -1, +2 .. within the range of
samples: first how many bits the folded number has, one decision each, then these bits from above. Twenty contexts
predict every decision (`plain_network`): in a photograph how neighbors, predictions and earlier misses lie to the
centre; in graphics, and in pictures of palette numbers (whose centre is 0), mostly the exact colors around. There a
whole pixel is first tried as one of three candidates: the colors that followed four neighborhoods last, then W, N,
NE, NW.

Sources: Wu & Memon (1997), "Context-based, adaptive, lossless image coding" (CALIC), for centre and contexts of
misses; Mahoney's paq8 for mixing them; Malvar (2012), "Lossless compression of screen content", for candidates.
"""

from __future__ import annotations

from typing import NamedTuple

from kobza.codecs.native.plain_logistic import between, log2_above
from kobza.codecs.native.plain_network import M64, PHI, Decision, Decoder, Encoder, Network, scatter
from kobza.codecs.native.plain_prediction import PAD, PHOTO, Rows

CONTEXTS, EXACT, CANDIDATES = 20, 14, 3
LEVEL_OF = (12, 9, 6, 3)  # the neighborhood of each level
LEVELS = len(LEVEL_OF)


class Shape(NamedTuple):
    """A picture's size and kind: samples are interleaved, 2 bytes each, the larger first, when `depth` is above 8."""

    width: int
    height: int
    channels: int
    depth: int
    mode: int


class _Picture(Rows):
    def __init__(self, shape: Shape, coder: Encoder | Decoder) -> None:
        super().__init__(shape.width, shape.channels, (1 << shape.depth) - 1, shape.mode)
        scale = log2_above(shape.width * shape.height * shape.channels)
        self.depth, self.memory_bits, self.run, self.energy = shape.depth, between(8, scale, 18), 0, 0
        self.net = Network(CONTEXTS, between(8, scale + 2, 19), 90 if shape.mode == PHOTO else 300, coder)
        pixels = shape.width + 2 * PAD
        self.color = [[0] * pixels for _ in range(4)]
        self.hits = [[0] * pixels for _ in range(2)]
        self.memory: list[dict[int, tuple[int, int, int]]] = [{} for _ in LEVEL_OF]

    def code_pixel(self, x: int, color: int) -> int:
        hit = CANDIDATES
        if self.mode != PHOTO:
            self._put_exact(x)
            self._find_candidates(x)
            hit = self._code_candidate(x, color)
            self.hits[0][x + PAD] = hit
            self.run = 0 if hit else min(self.run + 1, 65535)
            if hit < CANDIDATES:
                color = self.candidates[hit]
        for place in range(self.channels):
            at = (x + PAD) * self.channels
            if hit == CANDIDATES:
                channel = self.channel_at(place)
                self._code_sample(x, place, color >> 16 * channel & 65535)
                self.settle(x, place)
            else:
                self.row[0][at + place] = color >> 16 * place & 65535
                self.miss[0][at + place] = 0
        at = (x + PAD) * self.channels
        color = sum(self.row[0][at + c] << 16 * c for c in range(self.channels))
        if self.mode != PHOTO:
            self.color[0][x + PAD] = color
            self._remember(color)
        return color

    def next_row(self) -> None:
        end = self.width + PAD
        self.color[0][end:] = [self.color[0][end - 1]] * PAD
        self.color.insert(0, self.color.pop())
        self.hits.reverse()
        self.color[0][:PAD] = [self.color[1][PAD]] * PAD
        super().next_row()

    # contexts

    def _put_exact(self, x: int) -> None:
        c0, c1, c2, c3 = self.color
        x += PAD
        g = [scatter(0, c0[x - 1]), scatter(1, c1[x])]
        g.append(scatter(g[0], c1[x]))
        g += [scatter(g[2], c1[x - 1]), scatter(g[2], c1[x + 1])]
        g.append(scatter(g[3], c1[x + 1]))
        g.append(scatter(g[5], c0[x - 2]))
        g.append(scatter(g[6], c2[x]))
        g.append(scatter(scatter(g[7], c1[x - 2]), c1[x + 2]))
        g.append(scatter(scatter(scatter(g[8], c0[x - 3]), c2[x - 1]), c2[x + 1]))
        g.append(scatter(scatter(g[0], c0[x - 2]), c0[x - 3]))
        g.append(scatter(scatter(g[1], c2[x]), c3[x]))
        g.append(scatter(scatter(g[9], c0[x - 4]), c3[x]))
        g.append(scatter(scatter(g[1], x - PAD), 13))
        self.exact = g

    def _sample_contexts(self, x: int, place: int) -> list[int]:
        n, c, p = self.channels, self.channel_at(place), self.centre
        at, (e0, e1) = (x + PAD) * n + c, self.miss
        a = step_of(e0[at + self.channel_at(place - 1) - c] if place else 0)
        self.energy = step_of(abs(e0[at - n]) + abs(e1[at]) + abs(e1[at + n]) + abs(e1[at - n]))
        coarse = self.energy // 2
        found = [
            packed(self.energy, c, a, 0),
            packed(step_of(self.row[0][at - n] - p), step_of(self.row[1][at] - p), c, coarse // 2),
            packed(step_of(self.prediction[4] - p), a, c, coarse),
            packed(p, c, a, 0),
        ]
        more = self._smooth if self.mode == PHOTO else self._repeated
        return found + more(at, place, c)

    def _repeated(self, at: int, place: int, c: int) -> list[int]:
        n, p, known = self.channels, self.centre, c
        for earlier in range(place):
            known = scatter(known, self.row[0][at + self.channel_at(earlier) - c])
        found = [scatter(g, known) for g in self.exact]
        up, ne, w = self.row[1][at] - p, self.row[1][at + n] - p, self.row[0][at - n] - p
        return [*found, packed(step_of(up), step_of(ne), step_of(w), c), scatter(known, 77)]

    def _smooth(self, at: int, place: int, c: int) -> list[int]:
        n, p, fine, coarse = self.channels, self.centre, self.energy, self.energy // 2
        (r0, r1, r2, _), (e0, e1) = self.row, self.miss
        w, up, nw, ne, nn, ww = (v - p for v in (r0[at - n], r1[at], r1[at - n], r1[at + n], r2[at], r0[at - 2 * n]))
        a = step_of(e0[at + self.channel_at(place - 1) - c] if place else 0)
        b = step_of(e0[at + self.channel_at(place - 2) - c] if place > 1 else 0)
        q = [step_of(value - p) for value in self.prediction]
        signs = (w, up, nw, ne, ww, nn, 2 * up - nn, 2 * w - ww)
        pattern = sum((value > 0) << i for i, value in enumerate(signs))
        ew, en, ene, eww, enw = (step_of(e) for e in (e0[at - n], e1[at], e1[at + n], e0[at - 2 * n], e1[at - n]))
        half = a // 2 if a >= 0 else -(-a // 2)
        return [
            packed(q[5], fine, c, 0), packed(q[0], q[8], c, coarse // 2), packed(q[6], q[7], c, half),
            packed(q[1], q[9], c, 0), packed(q[2], q[3], c, 0), packed(a, b, c, coarse),
            packed(ew, en, c, half), packed(en, ene, c, ew), packed(ew, eww, c, enw),
            packed(step_of(nw), step_of(ne), c, coarse), packed(step_of(ww), step_of(nn), c, coarse),
            packed(pattern, coarse, c, a), packed(q[4], q[5], c, ew),
            packed(step_of(w), c, a, fine), packed(step_of(up), c, a, fine), packed(r0[at - n], r1[at], c, 0),
        ]  # fmt: skip

    # a sample as decisions

    def _code_sample(self, x: int, place: int, sample: int) -> None:
        self.predict(x, place)
        hashes = self._sample_contexts(x, place)
        found = self._code_folded(place, hashes, self._fold(sample))
        at = (x + PAD) * self.channels + self.channel_at(place)
        self.row[0][at] = between(0, self._unfold(found), self.top)

    def _fold(self, sample: int) -> int:
        room, off = min(self.centre, self.top - self.centre), sample - self.centre
        if abs(off) > room:
            return abs(off) + room
        return 2 * off - 1 if off > 0 else -2 * off

    def _unfold(self, z: int) -> int:
        p = self.centre
        room = min(p, self.top - p)
        if z > 2 * room:
            return p + (z - room) if room == p else p - (z - room)
        return p + (z + 1) // 2 if z & 1 else p - z // 2

    def _code_folded(self, place: int, hashes: list[int], z: int) -> int:
        bits = 0
        self.net.look_up(hashes)
        while bits < self.depth and self._decide(place, 1 + min(bits, 14), min(bits, 14), int(z >> bits > 0)):
            bits += 1
        if bits < 2:
            return bits
        self.net.look_up([scatter(value, bits + 1000) for value in hashes])
        value = node = 1
        for k in range(bits - 2, -1, -1):
            bit = self._decide(place, node, 15 + node, z >> k & 1)
            value = value << 1 | bit
            node = node << 1 | bit if node < 4 else 8 + (k & 7)
        return value

    def _decide(self, place: int, node: int, number: int, bit: int) -> int:
        energy, off = between(0, self.energy, 31), step_of(self.prediction[5] - self.prediction[0])
        rows = (place << 5 | number, min(energy, 15) << 4 | number & 15, between(0, off + 8, 15) << 4 | number & 15)
        return self.net.code(Decision(node, rows, energy << 5 | number), bit)

    # a whole pixel as one of a few candidates

    def _slot(self, level: int) -> tuple[int, int]:
        value = self.exact[LEVEL_OF[level]] * PHI & M64
        return value >> (64 - self.memory_bits), value & 0xFFFFFFFF | 1

    def _find_candidates(self, x: int) -> None:
        c0, c1, x = self.color[0], self.color[1], x + PAD
        self.level, self.certainty = LEVELS, 0
        followed = []
        for level in range(LEVELS):
            slot, check = self._slot(level)
            known, color, count = self.memory[level].get(slot, (0, 0, 0))
            if known == check:
                if self.level == LEVELS:
                    self.level, self.certainty = level, count
                followed.append(color)
        self.candidates = list(dict.fromkeys([*followed, c0[x - 1], c1[x], c1[x + 1], c1[x - 1]]))[:CANDIDATES]

    def _remember(self, color: int) -> None:
        for level in range(LEVELS):
            slot, check = self._slot(level)
            known, old, count = self.memory[level].get(slot, (0, 0, 0))
            if known == check and old == color:
                kept = (check, color, min(count + 1, 15))
            elif known == check and count > 3:
                kept = (check, old, count // 2)
            else:
                kept = (check, color, 1)
            self.memory[level][slot] = kept

    def _where(self, x: int, color: int) -> int:
        c0, c1, x = self.color[0], self.color[1], x + PAD
        return sum((color == c) << i for i, c in enumerate((c0[x - 1], c1[x], c1[x - 1], c1[x + 1])))

    def _pixel_contexts(self, x: int) -> list[int]:
        (h0, h1), at = self.hits, x + PAD
        around = h0[at - 1] | h1[at] << 2 | h1[at - 1] << 4 | h1[at + 1] << 6
        first, state = self._where(x, self.candidates[0]), self.level << 4 | self.certainty
        second = self.candidates[1] if len(self.candidates) > 1 else 0
        return [
            *(scatter(g, 99) for g in self.exact),
            packed(state, first, around, 1), packed(state, step_of(self.run), 0, 2),
            packed(around, h0[at - 2] | h1[at + 2] << 2, first, 3), scatter(packed(state, 0, 0, 4), self.candidates[0]),
            scatter(scatter(packed(0, 0, 0, 5), self.candidates[0]), second),
            scatter(scatter(packed(self.level, 0, 0, 6), self.candidates[0]), self.color[0][at - 1]),
        ]  # fmt: skip

    def _code_candidate(self, x: int, color: int) -> int:
        (h0, h1), at = self.hits, x + PAD
        around = sum((hit > 0) << i for i, hit in enumerate((h0[at - 1], h1[at], h1[at - 1], h1[at + 1])))
        self.net.look_up(self._pixel_contexts(x))
        for i, candidate in enumerate(self.candidates):
            first, state = self._where(x, candidate), self.level << 4 | self.certainty
            rows = (128 + i * 16 + first, i << 4 | around, state + i * 80)
            if self.net.code(Decision(1 + i, rows, 1024 + (i << 8 | around << 4 | first)), int(color == candidate)):
                return i
        return CANDIDATES


def step_of(value: int) -> int:
    """Return signed steps, fine near zero, two to the octave further out: 3 -> 3, 5 and 6 -> 5, -9 .. -12 -> -7."""
    a = abs(value)
    if a > 4:
        bits = (a - 1).bit_length() - 1
        a = 5 + (bits - 2) * 2 + (a - 1 >> bits - 1 & 1)
    return -a if value < 0 else a


def packed(a: int, b: int, c: int, d: int) -> int:
    """Return four numbers side by side, 16 bits each."""
    return a & 65535 | (b & 65535) << 16 | (c & 65535) << 32 | (d & 65535) << 48


def picture_encode(samples: bytes, width: int, height: int, channels: int, depth: int, mode: int) -> bytes:
    """Return the payload of a picture; every sample is below 2^depth."""
    coder, shape = Encoder(), Shape(width, height, channels, depth, mode)
    picture, size = _Picture(shape, coder), 2 if depth > 8 else 1
    values = [int.from_bytes(samples[i : i + size], "big") for i in range(0, len(samples), size)]
    for y in range(height):
        for x in range(width):
            at = (y * width + x) * channels
            picture.code_pixel(x, sum(v << 16 * c for c, v in enumerate(values[at : at + channels])))
        picture.next_row()
    return coder.finish()


def picture_decode(data: bytes, width: int, height: int, channels: int, depth: int, mode: int) -> bytes:
    """Return the samples of a payload. Any payload gives some samples; whether the right ones, a checksum says."""
    shape = Shape(width, height, channels, depth, mode)
    picture, size, out = _Picture(shape, Decoder(data)), 2 if depth > 8 else 1, bytearray()
    for _ in range(height):
        for x in range(width):
            color = picture.code_pixel(x, 0)
            out += b"".join((color >> 16 * c & 65535).to_bytes(size, "big") for c in range(channels))
        picture.next_row()
    return bytes(out)
