"""CRC-32C (Castagnoli), bit-reflected polynomial 0x82F63B78; RFC 3720, appendix B.4 has worked examples."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = [_row(byte) for byte in range(256)]


def crc32c(data: bytes, value: int = 0) -> int:
    """Return the CRC-32C of `data`, continuing from `value` (the CRC of what came before).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    state = value ^ 0xFFFFFFFF
    table = TABLE
    for byte in data:
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF
