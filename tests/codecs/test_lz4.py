"""lz4: payloads are what the package lz4 reads and writes."""

from __future__ import annotations

import pytest

from kobza.codecs import lz4

package = pytest.importorskip("lz4.block", reason="optional package: pip install 'kobza[codecs]'")
TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_lz4():
    payload = lz4.coder().encode(TEXT)
    assert package.decompress(payload, uncompressed_size=len(TEXT)) == TEXT


def test_payloads_of_lz4_are_read():
    assert lz4.decoder({}, {})(package.compress(TEXT, store_size=False), len(TEXT)) == TEXT
