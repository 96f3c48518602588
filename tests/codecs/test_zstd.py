"""zstd: payloads are what the package zstandard reads and writes."""

from __future__ import annotations

import pytest

from kobza.codecs import zstd

package = pytest.importorskip("zstandard", reason="optional package: pip install 'kobza[codecs]'")
TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_zstandard():
    payload = zstd.coder().encode(TEXT)
    assert package.ZstdDecompressor().decompress(payload, max_output_size=len(TEXT)) == TEXT


def test_payloads_of_zstandard_are_read():
    assert zstd.decoder({}, {})(package.ZstdCompressor().compress(TEXT), len(TEXT)) == TEXT
