"""Parts of every codec that mixes bit predictions, in plain Python: logistic tables, probabilities, weights.

Source: Mahoney (2005), "Adaptive weighing of context models for lossless data compression", Florida Tech CS-2005-16.
"""

from __future__ import annotations

LIMIT = 1023  # observations after which a probability map forgets at a steady rate

# logistic function 65536 / (1 + e^-x) at x = -8, -7.5 .. 8
LOGISTIC = [
    22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743, 32768,
    40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514,
]  # fmt: skip


def _logistic() -> tuple[list[int], list[int]]:
    squash = [
        (LOGISTIC[i >> 7] * (128 - (i & 127)) + LOGISTIC[(i >> 7) + 1] * (i & 127) + 64) >> 7 for i in range(4096)
    ]
    stretch: list[int] = []
    for x in range(-2047, 2048):
        stretch += [x] * ((squash[x + 2048] >> 4) + 1 - len(stretch))
    return squash, stretch + [2047] * (4096 - len(stretch))


SQUASH: list[int]
STRETCH: list[int]
SQUASH, STRETCH = _logistic()
RECIPROCAL = [65536 * 2 // (2 * n + 3) for n in range(1024)]


def between(low: int, value: int, high: int) -> int:
    return low if value < low else high if value > high else value


def log2_above(size: int) -> int:
    return (size - 1).bit_length() if size > 1 else 0


def dot(inputs: list[int], weights: list[int]) -> int:
    return between(-2047, sum(i * w for i, w in zip(inputs, weights, strict=True)) >> 15, 2047)


def train(inputs: list[int], weights: list[int], error: int) -> None:
    for i, value in enumerate(inputs):
        weights[i] = between(-32768, weights[i] + ((2 * value * error >> 16) + 1 >> 1), 32767)


def adapt(map_: list[int], at: int, bit: int) -> None:
    """Move a probability (22 bits) towards the bit by 1 / (n + 1.5), and its count n (10 bits) up to `LIMIT`."""
    count, p = map_[at] & 1023, map_[at] >> 10
    step = ((bit << 22) - p >> 3) * RECIPROCAL[count] >> 13
    map_[at] = p + step << 10 | min(count + 1, LIMIT)


def approach(probabilities: list[int], at: int, bit: int, rate: int) -> None:
    probabilities[at] += (65535 if bit else 0) - probabilities[at] >> rate


def split(low: int, high: int, probability: int) -> int:
    return low + ((high - low) * probability >> 16)
