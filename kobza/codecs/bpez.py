"""Byte pairs merged into unused byte values, then deflate.

Source: Gage (1994), "A New Algorithm for Data Compression", C Users Journal 12(2), for the merges; the idea of putting
them before zlib, and the older stream that `read_prototype` reads, from github.com/everybitco/bpez.

A block's payload: number of merges u8, 3 bytes per merge (left, right, new), then the second stage's payload of the
merged bytes, in front of which stands their number as a varint. With a global table the merges stand in the header,
and the first byte says whether they were applied (1) or could not be (0).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from kobza.codecs import base
from kobza.codecs.native import bpe_apply, bpe_expand, bpe_learn
from kobza.codecs.native.plain_bpe import expanded_size

BLOCK_LOG2 = 20
LEAST = 3  # occurrences; a rarer pair costs more than it saves
MOST = 255
SAMPLE = 1 << 22  # bytes a global table is learned from
PROTOTYPE_BLOCK = 1 << 20
PROTOTYPE_PAYLOAD = PROTOTYPE_BLOCK + 5 + 3 * 256
decompress = base.unpack


def compress(
    data: bytes,
    *,
    second: str = "zlib",
    merges: int = MOST,
    least: int = LEAST,
    block_log2: int = BLOCK_LOG2,
    is_global: bool = False,
) -> bytes:
    """Return `data` as a .kbz file of merged and deflated blocks.

    Args:
        data: any bytes.
        second: codec behind the merges; a strong one (xz, zstd) gains nothing from them [name].
        merges: merges at most; it also ends when no byte value is free or no pair gains [count, 0 .. 255].
        least: a pair seldomer than this is not merged [count, 2 .. 1000000].
        block_log2: blocks of 2^block_log2 bytes, each with its own merges [log2 of bytes, 10 .. 24].
        is_global: one table of merges, learned from the first 4 MiB, for all blocks.

    Returns:
        The file.

    Raises:
        OutOfRange, BadValue: an option is not allowed.
    """
    base.check_range("block_log2", block_log2, 10, 24)
    made = coder(data, second=second, merges=merges, least=least, is_global=is_global)
    return base.pack(data, made, block_log2=base.fitting_block(len(data), block_log2))


def coder(
    data: bytes = b"", *, second: str = "zlib", merges: int = MOST, least: int = LEAST, is_global: bool = False
) -> base.Coder:
    """Return the coder for a `base.Writer`; a global table is learned from `data`, options as in `compress`."""
    base.check_range("merges", merges, 0, MOST)
    base.check_range("least", least, 2, 1_000_000)
    behind = base.stage(second)
    parameters = {"second": second.encode("ascii")}
    table = bpe_learn(data[:SAMPLE], merges, least)[0] if is_global else b""
    if is_global:
        parameters["merges"] = table

    def encode(raw: bytes) -> bytes:
        if is_global:
            is_free = not set(table[2::3]) & set(raw)
            head, merged = bytes((is_free,)), bpe_apply(raw, table) if is_free else raw
        else:
            pairs, merged = bpe_learn(raw, merges, least)
            head = bytes((len(pairs) // 3,)) + pairs
        # the merges go through the second stage with the rest, which packs them too
        inner = head + merged
        return base.varint(len(inner)) + behind(inner)

    return base.Coder("bpez", encode, parameters)


def decoder(parameters: Mapping[str, bytes], supply: Mapping[str, Any]) -> base.Decode:
    """Return the block decoder."""
    behind = base.stage_decoder(parameters)
    table = parameters.get("merges")
    if table is not None and (len(table) % 3 or len(table) > 3 * MOST):
        raise base.Corrupt(f"the table of merges has {len(table)} bytes; it must have 3 each, at most {MOST}.")

    def decode(payload: bytes, size: int) -> bytes:
        cursor = base.Cursor(payload, "a block")
        length = cursor.varint()
        if length > size + 1 + 3 * MOST:
            raise ValueError(f"{length} merged bytes cannot stand for {size}")
        inner = behind(payload[cursor.at :], length)
        if table is not None:
            return bpe_expand(inner[1:], table if inner[0] else b"", size)
        end = 1 + 3 * inner[0]
        if end > len(inner):
            raise ValueError("the merges pass the block's end")
        return bpe_expand(inner[end:], inner[1:end], size)

    return decode


def memory(size: int, parameters: Mapping[str, bytes]) -> int:
    """Return the working memory [bytes] to decode a block of `size` bytes."""
    return 2 * size + base.stage_memory(size, parameters)


def read_prototype(blob: bytes, *, limits: base.Limits | None = None) -> bytes:
    """Return what a file of the published prototype (bpez.py, 2025) stands for.

    The prototype's own reader gives an empty file for a damaged one; this one refuses it.

    Args:
        blob: the whole file: per block its packed size u32 (big endian) and a zlib stream of raw size u32 (big
            endian), number of merges u8 and the merged bytes, in front of which each merge put its three bytes.
        limits: what unpacking may cost; None takes the defaults.

    Raises:
        Truncated, Corrupt: the file is not a whole and sound one.
        LimitExceeded: it would give too much.
    """
    bounds = limits or base.Limits()
    cursor = base.Cursor(blob, "the prototype's file")
    parts: list[bytes] = []
    total = 0
    while not cursor.is_done:
        packed = cursor.take(int.from_bytes(cursor.take(4), "big"))
        parts.append(_prototype_block(packed))
        total += len(parts[-1])
        bounds.check_output(total, cursor.at)
    return b"".join(parts)


def _prototype_block(packed: bytes) -> bytes:
    expander = zlib.decompressobj()
    try:
        payload = expander.decompress(packed, PROTOTYPE_PAYLOAD)
    except zlib.error as error:
        raise base.Corrupt(f"a block of the prototype's file is damaged: {error}.") from error
    if not expander.eof or expander.unused_data or len(payload) < 5:
        raise base.Corrupt("a block of the prototype's file is not one zlib stream of at most 1 MiB.")
    size, merges, text = int.from_bytes(payload[:4], "big"), payload[4], payload[5:]
    for _ in range(merges):
        head, text = text[:3], text[3:]
        if len(head) < 3 or expanded_size(text, head, PROTOTYPE_PAYLOAD) > PROTOTYPE_PAYLOAD:
            raise base.Corrupt("a block of the prototype's file has impossible merges.")
        text = text.replace(head[2:], head[:2])
    if len(text) != size:
        raise base.Corrupt(f"a block of the prototype's file gives {len(text)} bytes; it declares {size}.")
    return text
