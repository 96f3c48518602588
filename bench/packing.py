"""Packing a text with SmolLM2: real size against the ideal code length, and unpacking many streams in lockstep.

Every row packs and unpacks 512 bytes of text per stream, so all streams have equally long contexts; seconds are CPU
time of one thread. Wanted: size within 0.3 % + 64 bytes of the ideal; unpacking in lockstep at least 8x faster, per
token, than one token at a time. Beside it the same bytes through xz, bz2 and zlib.
"""

from __future__ import annotations

import bz2
import lzma
import time
import zlib
from typing import Any

import torch

import kobza
from kobza.codecs import lm
from kobza.core.table import Table
from kobza.models.predictor import ModelPredictor

STREAMS = (1, 8, 32)
BYTES_PER_STREAM = 512
WANTED = 8.0  # times more tokens per second, most streams against one
CLOSENESS = (0.003, 64)  # share of the ideal, and bytes


def row(model: Any, streams: int) -> dict[str, Any]:
    """Pack and unpack one text; return sizes and CPU seconds."""
    data = kobza.text("topics", limit=streams * BYTES_PER_STREAM).data
    predictor = ModelPredictor(model)
    begin = time.process_time()
    packed = lm.pack(data, predictor, model.tokenizer, streams=streams)
    middle = time.process_time()
    assert lm.restore(packed, predictor, model.tokenizer) == data
    end = time.process_time()
    tokens = len(packed.spelled.ids)
    ideal = packed.ideal_bits.sum() / 8
    assert len(packed.payload) <= ideal * (1 + CLOSENESS[0]) + CLOSENESS[1]
    return {
        "streams": streams,
        "raw": len(data),
        "tokens": tokens,
        "packed": len(packed.payload),
        "ideal": ideal,
        "over": len(packed.payload) / ideal - 1,
        "bits_per_byte": 8 * len(packed.payload) / len(data),
        "pack": tokens / (middle - begin),
        "unpack": tokens / (end - middle),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "bz2": len(bz2.compress(data, 9)),
        "zlib": len(zlib.compress(data, 9)),
    }


def main() -> None:
    """Print the table and the ratio of unpacking speeds."""
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    rows = [row(model, streams) for streams in STREAMS]
    units = dict.fromkeys(("raw", "packed", "ideal", "xz", "bz2", "zlib"), "B")
    units |= {"pack": "token/s", "unpack": "token/s", "bits_per_byte": "bit/B"}
    print(Table(rows, units=units, title="topics packed by SmolLM2-135M, one thread, CPU seconds"))
    ratio = rows[-1]["unpack"] / rows[0]["unpack"]
    print(
        f"unpacking {STREAMS[-1]} streams in lockstep: {ratio:.1f}x the tokens per second of one (wanted {WANTED:.0f}x)"
    )


if __name__ == "__main__":
    main()
