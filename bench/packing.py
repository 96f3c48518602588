"""Packing a text with SmolLM2: real size against the ideal code length, and unpacking many streams in lockstep.

    python bench/packing.py [--bytes 512] [--only speed|files]

Speed: every row packs and unpacks so many bytes of text per stream, so all streams have equally long contexts; seconds
are CPU time of one thread. Wanted: unpacking in lockstep at least 8x faster, per token, than one token at a time.
Beside it the same bytes through xz, bz2 and zlib. Files: 8 times so many bytes of three texts as whole .kbz files,
packed, proved and unpacked. Wanted: within 0.3 % + 64 bytes of the ideal code length of the same run.
"""

from __future__ import annotations

import argparse
import bz2
import io
import lzma
import time
import zlib
from typing import Any

import torch

import kobza
from kobza.cli.supply import Supply
from kobza.codecs import base, lm
from kobza.core.table import Table
from kobza.models.predictor import ModelPredictor

STREAMS = (1, 8, 32, 64)
TEXTS = ("topics", "source", "ukrainian")
WANTED = 8.0  # times more tokens per second, most streams against one
CLOSENESS = (0.003, 64)  # share of the ideal, and bytes


def row(model: Any, streams: int, each: int) -> dict[str, Any]:
    """Pack and unpack one text of `each` bytes per stream; return sizes and CPU seconds."""
    data = kobza.text("topics", limit=streams * each).data
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


def file_row(model: Any, name: str, size: int) -> dict[str, Any]:
    """Pack `size` bytes of a text as a file, in 16 streams, and unpack it; return its sizes."""
    data, costs = kobza.text(name, limit=size).data, list[float]()
    given = {"predictor": ModelPredictor(model), "vocabulary": model.tokenizer}
    blob = base.pack(data, lm.coder(data, **given, streams=16, costs=costs), block_log2=20)
    assert lm.decompress(blob, **given) == data
    (block,) = base.Reader(io.BytesIO(blob)).blocks()
    ideal = sum(costs) / 8
    return {
        "text": name,
        "raw": len(data),
        "ideal": ideal,
        "block": block.packed_size,
        "file": len(blob),
        "allowed": ideal * (1 + CLOSENESS[0]) + CLOSENESS[1],
        "with_model": len(blob) + Supply("smollm2").bytes,
    }


def speed(model: Any, each: int) -> None:
    """Print the table and the ratio of unpacking speeds."""
    rows = [row(model, streams, each) for streams in STREAMS]
    units = dict.fromkeys(("raw", "packed", "ideal", "xz", "bz2", "zlib"), "B")
    units |= {"pack": "token/s", "unpack": "token/s", "bits_per_byte": "bit/B"}
    print(Table(rows, units=units, title="topics packed by SmolLM2-135M, one thread, CPU seconds"))
    ratio = rows[-1]["unpack"] / rows[0]["unpack"]
    print(
        f"unpacking {STREAMS[-1]} streams in lockstep: {ratio:.1f}x the tokens per second of one (wanted {WANTED:.0f}x)"
    )


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=512)
    parser.add_argument("--only", choices=("speed", "files"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    if asked.only != "files":
        speed(model, asked.bytes)
    if asked.only != "speed":
        files = [file_row(model, name, 8 * asked.bytes) for name in TEXTS]
        units = dict.fromkeys(("raw", "ideal", "block", "file", "allowed", "with_model"), "B")
        print(Table(files, units=units, title="Whole files by SmolLM2-135M, 16 streams"))


if __name__ == "__main__":
    main()
