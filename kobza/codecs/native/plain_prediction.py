"""Predictions of a picture's sample in plain Python: the specification of prediction.c, integers only.

Ten predictions: the median of W, N and W + N - NW and its parts (Martucci 1990), slopes, the same of the difference
to the channel coded before, and two filters by normalized least mean squares (Nagumo & Noda 1967) at two rates. The
centre of a photograph is their mean, each weighed by how well it did at the four neighbors (Seemann & Tischer 1997).
"""

from __future__ import annotations

from kobza.codecs.native.plain_logistic import between

PHOTO, GRAPHICS, INDEXED = 0, 1, 2
PREDICTIONS, PAD = 10, 4
RATES = (11, 14)  # of the two filters: 2^-3 and 2^-6 of a full step
LONG_WEIGHT = 1 << 20


class Rows:
    """What is known around the present sample: [0] the present row, [1] the one above, and so on.

    Args:
        width: pixels per row.
        channels: samples per pixel [count, 1 .. 4].
        top: largest sample.
        mode: PHOTO, GRAPHICS or INDEXED.
    """

    def __init__(self, width: int, channels: int, top: int, mode: int) -> None:
        self.width, self.channels, self.top, self.mode = width, channels, top, mode
        pixels = width + 2 * PAD
        self.row = [[0] * (pixels * channels) for _ in range(4)]
        self.miss = [[0] * (pixels * channels) for _ in range(2)]
        self.cost = [[[0] * PREDICTIONS for _ in range(pixels * channels)] for _ in range(2)]
        self.filters = [[Filter() for _ in RATES] for _ in range(channels)]
        self.prediction = [0] * PREDICTIONS
        self.centre = 0

    def channel_at(self, place: int) -> int:
        """Return the channel coded at a place: green before red."""
        return 1 - place if self.channels >= 3 and place < 2 else place

    def predict(self, x: int, place: int) -> None:
        """Set the predictions of a sample, and the centre between them."""
        self._put_predictions(x, place)
        if self.mode == INDEXED:
            self.centre = 0
        elif self.mode == GRAPHICS:
            self.centre = self.prediction[8 if place else 0]
        else:
            self.centre = self._blended((x + PAD) * self.channels + self.channel_at(place))

    def settle(self, x: int, place: int) -> None:
        """Let predictions and filters learn from the sample in its place."""
        channel = self.channel_at(place)
        at = (x + PAD) * self.channels + channel
        sample = self.row[0][at]
        self.miss[0][at] = sample - self.centre
        self.cost[0][at] = [abs(sample - p) for p in self.prediction]
        for filter_, rate in zip(self.filters[channel], RATES, strict=True):
            filter_.teach(sample, rate)

    def next_row(self) -> None:
        """Turn to the next row: the ends of the last are repeated, the new one begins as that one did."""
        n, end = self.channels, self.width + PAD
        last = self.row[0][(end - 1) * n : end * n]
        self.row[0][end * n :] = last * PAD
        self.row.insert(0, self.row.pop())
        self.miss.reverse()
        self.cost.reverse()
        self.row[0][: PAD * n] = self.row[1][PAD * n : (PAD + 1) * n] * PAD

    def _put_predictions(self, x: int, place: int) -> None:
        n, channel = self.channels, self.channel_at(place)
        at = (x + PAD) * n + channel
        here, above, higher = self.row[:3]
        w, ww, up, nw, ne = here[at - n], here[at - 2 * n], above[at], above[at - n], above[at + n]
        nn, nne = higher[at], higher[at + n]
        middle = median_edge(w, up, nw)
        if place:
            other = at + self.channel_at(place - 1) - channel
            a, aw, an, anw = here[other], here[other - n], above[other], above[other - n]
            rest = [w + a - aw, up + a - an]
            rest += [a + median_edge(w - aw, up - an, nw - anw), w + up - nw + a - aw - an + anw]
        else:
            rest = [2 * w - ww, 2 * up - nn, w + ne + 1 >> 1, w + up + 1 >> 1]
        deltas = self._taps(at, place, middle)
        learned = [f.filtered(deltas, middle) for f in self.filters[channel]]
        found = [middle, w + up - nw, up + ne - nne, w + ne - up, *learned, *rest]
        self.prediction = [between(0, p, self.top) for p in found]

    def _taps(self, at: int, place: int, middle: int) -> list[int]:
        n = self.channels
        r0, r1, r2 = self.row[:3]
        own = [r0[at - n], r1[at], r1[at - n], r1[at + n], r0[at - 2 * n]]
        own += [r2[at], r1[at - 2 * n], r1[at + 2 * n], r2[at + n], r2[at - n]]
        deltas = [value - middle for value in own]
        for earlier in range(place - 1, max(place - 3, -1), -1):
            a = at + self.channel_at(earlier) - self.channel_at(place)
            edge = median_edge(r0[a - n], r1[a], r1[a - n])
            deltas += [value - edge for value in (r0[a], r0[a - n], r1[a], r1[a - n], r1[a + n])]
        return deltas

    def _blended(self, at: int) -> int:
        n, (here, above) = self.channels, self.cost
        cost = [
            1 + sum(four) for four in zip(here[at - n], above[at], above[at + n], above[at - n], strict=True)
        ]  # fmt: skip
        parts = [((min(cost) << 8) // c) ** 3 >> 8 for c in cost]
        whole = sum(parts)
        return (sum(part * p for part, p in zip(parts, self.prediction, strict=True)) + whole // 2) // whole


class Filter:
    """Weights [1/65536] that follow the sample by normalized least mean squares."""

    def __init__(self) -> None:
        self.weights = [0] * 20
        self.deltas: list[int] = []
        self.predicted = 0

    def filtered(self, deltas: list[int], base: int) -> int:
        """Return the prediction: base + weights * deltas."""
        self.deltas = deltas
        total = sum(w * d for w, d in zip(self.weights, deltas, strict=False)) >> 16
        self.predicted = base + between(-131072, total, 131072)
        return self.predicted

    def teach(self, sample: int, rate: int) -> None:
        """Move the weights towards what would have given `sample`."""
        error = sample - self.predicted
        gain = (abs(error) << 24) // (16 + sum(d * d for d in self.deltas))
        gain = -gain if error < 0 else gain
        for i, delta in enumerate(self.deltas):
            self.weights[i] = between(-LONG_WEIGHT, self.weights[i] + (gain * delta >> rate), LONG_WEIGHT)


def median_edge(w: int, n: int, nw: int) -> int:
    """Return the middle of w, n and w + n - nw."""
    low, high = min(w, n), max(w, n)
    return low if nw >= high else high if nw <= low else w + n - nw
