"""bz2: payloads are what Python's bz2 reads and writes."""

from __future__ import annotations

import bz2 as standard

from kobza.codecs import bz2

TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_bzip2():
    payload = bz2.coder().encode(TEXT)
    assert standard.decompress(payload) == TEXT


def test_payloads_of_bzip2_are_read():
    assert bz2.decoder({}, {})(standard.compress(TEXT), len(TEXT)) == TEXT
