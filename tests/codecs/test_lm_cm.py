"""Model and mixing together: never much above the model's price, less where the text repeats; any bytes come back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kobza.codecs import base, lm, lm_cm
from kobza.codecs._lockstep import Block, Schedule, Tables
from kobza.codecs.range_coder import Decoder, Encoder
from kobza.core.errors import KobzaError
from tests.codecs.test_lm import TEXT, Bigrams, Letters

GOLDEN = Path(__file__).parent / "golden" / "with_model" / "lm_cm.kbz"  # of version 1, written once and for ever
SONG = b"sing the same song, and the same song, and the same song again; " * 12


class Spoken(Letters):
    """Letters with the bytes of every id; ids 7 and 8 are both called "q", id 9 has no bytes."""

    def __len__(self) -> int:
        return 129

    def bytes_of(self, id: int, /) -> bytes:
        return {7: b"q", 8: b"q", 9: b""}.get(id, self.decode([id]))


def block(scale: float = 3.0) -> Block:
    tree = lm_cm.Tree(Spoken())
    return Block(Bigrams(scale=scale), Spoken(), Schedule(), lambda streams, size: lm_cm.Mixed(tree, streams, size))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120) | st.text(max_size=60).map(str.encode), st.integers(0, 5))
def test_any_bytes_come_back(data: bytes, streams: int) -> None:
    tree = lm_cm.Tree(Spoken())
    made = Block(Bigrams(), Spoken(), Schedule(streams), lambda n, size: lm_cm.Mixed(tree, n, size))
    assert made.decode(made.pack(data).payload, len(data)) == data


@pytest.mark.parametrize("data", [b"", b"a", b"\xff", b"\r\n<s>\0", TEXT, SONG, bytes(range(256))])
def test_awkward_bytes_come_back_from_the_file(data: bytes) -> None:
    given = {"predictor": Bigrams(), "vocabulary": Spoken()}
    assert lm_cm.decompress(lm_cm.compress(data, **given), **given) == data


def test_ids_of_equal_or_no_bytes_are_told_apart() -> None:
    tree = lm_cm.Tree(Spoken())
    tables = Tables(Bigrams().restart(np.zeros((1, 0), np.int64)), 28, 0)
    ids = [7, 8, ord("q"), 9, 7, 9, 9, 8]
    encoder, put = Encoder(), lm_cm.Mixed(tree, 1, 9)
    for id in ids:
        put.put(encoder, 0, id, put.prepare(tables))
    decoder, get = Decoder(encoder.finish()), lm_cm.Mixed(tree, 1, 9)
    assert [get.get(decoder, 0, get.prepare(tables)) for _ in ids] == ids


def test_by_the_model_alone_a_token_costs_what_lm_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain rule: with all weight on the model and none learned, the decisions of a token cost its -log2 p."""
    monkeypatch.setattr(lm_cm, "RATE", 0.0)
    monkeypatch.setattr(lm_cm, "FIRST", (1.0, 0.0))
    packed = block(scale=1.0).pack(TEXT)
    assert packed.coded_bits == pytest.approx(packed.ideal_bits, abs=1e-4)


def test_what_repeats_costs_less_than_by_the_model() -> None:
    packed = block().pack(SONG)
    whole = lm.pack(SONG, Bigrams(), Letters())
    assert 8 * len(packed.payload) < 0.5 * packed.ideal_bits.sum()
    assert len(packed.payload) < 0.5 * len(whole.payload)


def test_the_price_told_is_the_size() -> None:
    packed = block().pack(TEXT)
    assert packed.coded_bits.sum() / 8 <= len(packed.payload) <= packed.coded_bits.sum() / 8 + 8


def test_the_tree_keeps_every_token_in_order() -> None:
    tree = lm_cm.Tree(Spoken())
    assert tree.names == sorted(tree.names)
    assert tree.order[tree.place].tolist() == list(range(129))
    low, high = tree.names.index(b"t"), tree.names.index(b"th") + 1
    assert tree.ending(low, high, 1) == low + 1


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN.with_name("lm_cm_brief.kbz")])
def test_the_forms_of_versions_one_and_two_stay_readable(golden: Path) -> None:
    supply = {"predictor": Bigrams(), "vocabulary": Spoken(), "is_forced": True}  # they name another C library
    assert base.unpack(golden.read_bytes(), supply=supply) == SONG + b"the \xff thing"


def test_a_cut_anywhere_is_noticed() -> None:
    given = {"predictor": Bigrams(), "vocabulary": Spoken()}
    blob = lm_cm.compress(SONG[:150], **given)
    for end in range(len(blob)):
        with pytest.raises(base.Corrupt):
            lm_cm.decompress(blob[:end], **given)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_never_gives_other_bytes(at: int, flip: int) -> None:
    given = {"predictor": Bigrams(), "vocabulary": Spoken()}
    blob = bytearray(lm_cm.compress(SONG[:150] + b"\xfe", **given))
    blob[at % len(blob)] ^= flip
    try:
        found = lm_cm.decompress(bytes(blob), **given)
    except KobzaError:
        return
    assert found == SONG[:150] + b"\xfe"


def test_the_c_library_is_part_of_the_arithmetic() -> None:
    blob = lm_cm.compress(SONG, predictor=Bigrams(), vocabulary=Spoken(), record="full")
    (codec,) = base.Reader(io.BytesIO(blob)).header.codecs
    assert codec.parameters["environment"].startswith(b"numpy; Python 3.")
    other: Any = Bigrams()
    other.environment = "another"
    with pytest.raises(base.NotReproducible, match="packed under 'numpy; Python"):
        lm_cm.decompress(blob, predictor=other, vocabulary=Spoken())


@pytest.mark.real
def test_smollm2_with_mixing_beats_smollm2_on_text_that_repeats(smollm2: Any) -> None:
    from kobza.models.predictor import ModelPredictor

    data = b"def kobzar_%d(value):\n    return strings[%d] * value\n"
    text = b"".join(data % (i, i) for i in range(9))
    tree = lm_cm.Tree(smollm2.tokenizer)
    made = Block(ModelPredictor(smollm2), smollm2.tokenizer, Schedule(4), lambda n, size: lm_cm.Mixed(tree, n, size))
    packed = made.pack(text)
    assert 8 * len(packed.payload) < packed.ideal_bits.sum()
