"""cm: smaller than the strongest of the standard library on text, and the same bytes for ever."""

from __future__ import annotations

import bz2
import hashlib
import lzma

import pytest

from kobza.codecs import base, cm
from kobza.codecs.native.plain_logistic import SQUASH, STRETCH
from kobza.codecs.native.plain_mixing import HISTORIES
from kobza.core.errors import OutOfRange


def test_text_packs_smaller_than_by_bz2_and_xz(data):
    poems = (data / "text" / "kobzar.txt").read_bytes()[: 1 << 17]
    size = len(cm.compress(poems))
    assert size < 0.95 * len(bz2.compress(poems, 9))
    assert size < 0.85 * len(lzma.compress(poems, preset=9))


def test_the_payload_of_a_fixed_input_never_changes():
    text = b"the same on every machine, in every version. " * 50 + bytes(range(256))
    digest = hashlib.sha256(cm.coder().encode(text)).hexdigest()
    assert digest == "76eec877ad5aae3ee1150516d2286b637100483551d4d86d7a9e74aec767d83b"


def test_histories_and_logistic_tables_are_sound():
    assert len(HISTORIES.following) == len(HISTORIES.first) == 239
    assert all(0 <= state < 239 for pair in HISTORIES.following for state in pair)
    assert sorted(SQUASH) == SQUASH
    assert sorted(STRETCH) == STRETCH
    assert len(STRETCH) == 4096


def test_a_few_bytes_cannot_hold_a_large_block():
    decode = base.decoder("cm", 1, {}, {})
    with pytest.raises(ValueError, match="9 bytes cannot hold 1048576"):
        decode(bytes(9), 1 << 20)


def test_zeros_come_back_although_the_bound_is_near():
    assert cm.decompress(cm.compress(bytes(1 << 18))) == bytes(1 << 18)


def test_block_sizes_out_of_range_are_refused():
    with pytest.raises(OutOfRange, match="9; allowed are 10 to 24"):
        cm.compress(b"", block_log2=9)
