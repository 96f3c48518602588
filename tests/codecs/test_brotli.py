"""brotli: payloads are what the package brotli reads and writes."""

from __future__ import annotations

import pytest

from kobza.codecs import brotli

package = pytest.importorskip("brotli", reason="optional package: pip install 'kobza[codecs]'")
TEXT = b"an authority outside: whoever knows the format can read the payload. " * 30


def test_payloads_are_read_by_brotli():
    payload = brotli.coder().encode(TEXT)
    assert package.decompress(payload) == TEXT


def test_payloads_of_brotli_are_read():
    assert brotli.decoder({}, {})(package.compress(TEXT), len(TEXT)) == TEXT
