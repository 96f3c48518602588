"""zlib: payloads are what raw deflate reads and writes."""

from __future__ import annotations

import zlib as standard

from kobza.codecs import zlib

TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_deflate():
    payload = zlib.coder().encode(TEXT)
    assert standard.decompress(payload, wbits=-15) == TEXT


def test_payloads_of_deflate_are_read():
    assert zlib.decoder({}, {})(standard.compress(TEXT, 6)[2:-4], len(TEXT)) == TEXT
