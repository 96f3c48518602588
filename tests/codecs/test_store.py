"""store: the bytes stand in the file as they are."""

from __future__ import annotations

from kobza.codecs import store


def test_the_content_stands_in_the_file_unchanged():
    assert b"look inside" in store.compress(b"look inside")


def test_a_large_file_is_cut_into_blocks_of_a_mebibyte():
    data = bytes((1 << 21) + 1)
    assert len(store.compress(data)) - len(data) < 120
    assert store.decompress(store.compress(data)) == data
