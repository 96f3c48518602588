"""lzma: payloads are what Python's lzma reads and writes."""

from __future__ import annotations

import lzma as standard

from kobza.codecs import lzma

FILTERS = [{"id": standard.FILTER_LZMA2, "dict_size": 1 << 20}]
TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_lzma2():
    payload = lzma.coder().encode(TEXT)
    assert standard.decompress(payload, standard.FORMAT_RAW, filters=FILTERS) == TEXT


def test_payloads_of_lzma2_are_read():
    assert lzma.decoder({}, {})(standard.compress(TEXT, standard.FORMAT_RAW, filters=FILTERS), len(TEXT)) == TEXT
