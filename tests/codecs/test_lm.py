"""Any bytes come back from a model's packing, within a hair of the ideal size; anything damaged is noticed."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kobza.codecs import lm
from kobza.codecs._spelling import Spelled, spell, unspell
from kobza.core.errors import BadValue, Corrupt, InputRefused, KobzaError, NotFinite, OutOfRange, Truncated


class Letters:
    """A vocabulary of ASCII bytes and one pair; it refuses control bytes and alters capitals."""

    fingerprint = "letters"

    def encode(self, text: str, /) -> list[int]:
        if any(ord(c) < 32 and c != "\n" for c in text):
            raise BadValue("a control byte")
        raw = text.lower().encode("ascii", errors="ignore")
        ids, at = [], 0
        while at < len(raw):
            ids.append(128 if raw[at : at + 2] == b"th" else raw[at])
            at += 2 if ids[-1] == 128 else 1
        return ids

    def decode(self, ids: Sequence[int], /) -> bytes:
        return b"".join(b"th" if i == 128 else bytes([i]) for i in ids)


class Bigrams:
    """A predictor whose logits depend on the last id and on the length of the context."""

    environment = "numpy"

    def __init__(self, seed: int = 0, scale: float = 3.0) -> None:
        self.fingerprint = f"bigrams {seed}"
        self.table = np.random.default_rng(seed).normal(0, scale, (129, 129)).astype(np.float32)
        self.shapes: list[tuple[int, ...]] = []

    def restart(self, prefix: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(prefix.shape)
        self.length = prefix.shape[1]
        last = prefix[:, -1] if self.length else np.zeros(len(prefix), np.int64)
        return self.table[last] * np.float32(1 + self.length % 3)

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(ids.shape)
        self.length += 1
        return self.table[ids] * np.float32(1 + self.length % 3)


GOLDEN = (
    "4b424c4d01011c00056e756d70790962696772616d732030076c6574746572730b3ce63a0001800880021a0801"
    "030102fffffffdb4df0587a49f4d94cb47eda6b3a2888cd3"
)
TEXT = b"the theory of the thing, the thirteenth, that nothing is there\n" * 9


def round_trip(data: bytes, **options: int) -> bytes:
    blob = lm.compress(data, predictor=Bigrams(), vocabulary=Letters(), **options)
    return lm.decompress(blob, predictor=Bigrams(), vocabulary=Letters())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.integers(0, 9), st.integers(1, 40))
def test_any_bytes_come_back(data: bytes, streams: int, window: int) -> None:
    assert round_trip(data, streams=streams, window=window, overlap=min(3, window - 1)) == data


@pytest.mark.parametrize(
    "data", [b"", b"a", b"\xff", b"\x00", b"A", "дума".encode(), b"\r\n\r\n", TEXT, bytes(range(256))]
)
def test_awkward_bytes_come_back(data: bytes) -> None:
    assert round_trip(data) == data


@pytest.mark.parametrize("streams", [1, 3, 8])
def test_the_size_is_within_a_thousandth_of_the_ideal(streams: int) -> None:
    packed = lm.pack(TEXT, Bigrams(scale=1.0), Letters(), streams=streams)
    assert packed.body_bytes <= packed.ideal_bits.sum() / 8 * 1.001 + 8
    assert np.allclose(packed.coded_bits, packed.ideal_bits, rtol=1e-3)


def test_ideal_bits_are_the_softmax() -> None:
    predictor = Bigrams()
    packed = lm.pack(b"the", predictor, Letters(), streams=1)
    first = predictor.table[0].astype(np.float64)
    expected = np.log2(np.exp(first).sum()) - first[128] / np.log(2)
    assert packed.ideal_bits[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("bits", "excess"), [(16, 0.0005), (28, 1e-7)])
def test_finer_tables_cost_less(bits: int, excess: float) -> None:
    packed = lm.pack(TEXT, Bigrams(), Letters(), table_bits=bits)
    assert packed.coded_bits.sum() / packed.ideal_bits.sum() - 1 < excess * 129


def test_both_sides_run_the_same_steps() -> None:
    packing, unpacking = Bigrams(), Bigrams()
    blob = lm.compress(TEXT, predictor=packing, vocabulary=Letters(), streams=3, window=50, overlap=20)
    lm.decompress(blob, predictor=unpacking, vocabulary=Letters())
    assert packing.shapes == unpacking.shapes
    assert (3, 20) in packing.shapes


def test_streams_share_the_tokens_evenly() -> None:
    assert lm.parts(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert lm.parts(0, 1) == [range(0)]


@pytest.mark.parametrize(("tokens", "streams"), [(0, 1), (100, 1), (1000, 4), (10**6, 32)])
def test_streams_left_open_keep_a_context(tokens: int, streams: int) -> None:
    assert lm.natural_streams(tokens) == streams


def test_what_the_vocabulary_alters_becomes_literal() -> None:
    spelled = spell(b"the Thing\xff\xfe", Letters())
    assert [literal for _, literal in spelled.literals if literal] == [b"T", b"\xff\xfe"]
    assert spelled.literal_bytes == 3


@given(st.binary(max_size=300))
def test_spelling_keeps_every_byte(data: bytes) -> None:
    assert unspell(spell(data, Letters()), Letters()) == data


def test_text_that_survives_has_no_literals() -> None:
    assert spell(TEXT, Letters()).literals == []
    assert spell(b"", Letters()) == Spelled([])


def test_the_header_needs_no_model() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters(), streams=2)
    header, place = lm.read_header(blob)
    assert (header.raw_bytes, header.streams, header.model) == (len(TEXT), 2, "bigrams 0")
    assert place + header.body_bytes == len(blob)


def test_the_form_of_version_one_stays_readable() -> None:
    """Made by version 1; must be read by every later version."""
    blob = bytes.fromhex(GOLDEN)
    assert lm.decompress(blob, predictor=Bigrams(), vocabulary=Letters()) == b"the \xff thing"


def test_a_cut_anywhere_is_noticed() -> None:
    blob = lm.compress(b"the thing\xff", predictor=Bigrams(), vocabulary=Letters())
    for end in range(len(blob)):
        with pytest.raises(Corrupt):
            lm.decompress(blob[:end], predictor=Bigrams(), vocabulary=Letters())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_never_gives_other_bytes(at: int, flip: int) -> None:
    blob = bytearray(lm.compress(TEXT[:80] + b"\xfe", predictor=Bigrams(), vocabulary=Letters(), streams=2))
    blob[at % len(blob)] ^= flip
    try:
        found = lm.decompress(bytes(blob), predictor=Bigrams(), vocabulary=Letters(), limit=1000)
    except KobzaError:
        return
    assert found == TEXT[:80] + b"\xfe"


def test_another_model_is_refused() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters())
    with pytest.raises(InputRefused, match="packed with the model bigrams 0, this one is bigrams 1"):
        lm.decompress(blob, predictor=Bigrams(1), vocabulary=Letters())


def test_another_environment_is_refused_unless_forced() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters())
    other = Bigrams()
    other.environment = "2 threads"
    with pytest.raises(InputRefused, match="packed under 'numpy', here is '2 threads'"):
        lm.decompress(blob, predictor=other, vocabulary=Letters())
    assert lm.decompress(blob, predictor=other, vocabulary=Letters(), is_forced=True) == TEXT


def test_other_last_bits_are_noticed() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters())
    other = Bigrams()
    other.table = other.table * np.float32(1.001)
    with pytest.raises(Corrupt):
        lm.decompress(blob, predictor=other, vocabulary=Letters())


def test_more_bytes_than_allowed_are_refused_before_unpacking() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters())
    with pytest.raises(InputRefused, match=f"would be {len(TEXT)} bytes; allowed are 10"):
        lm.decompress(blob, predictor=Bigrams(), vocabulary=Letters(), limit=10)


def test_what_is_not_packed_by_a_model_is_refused() -> None:
    with pytest.raises(Corrupt, match=r"begins with b'PK\\x03\\x04'"):
        lm.read_header(b"PK\x03\x04 and so on")
    with pytest.raises(Truncated):
        lm.read_header(b"KBLM\x01")


def test_logits_that_are_not_finite_stop_with_their_place() -> None:
    broken = Bigrams()
    broken.table[ord("f")] = np.nan
    with pytest.raises(NotFinite, match="before token 11 of stream 0"):
        lm.pack(TEXT, broken, Letters(), streams=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 257}, "streams is 257; allowed is 0 to 256"),
        ({"window": 0}, "window is 0"),
        ({"window": 8, "overlap": 8}, "overlap is 8; allowed is 0 to 7"),
        ({"table_bits": 12}, "table_bits is 12; allowed is 16 to 28"),
    ],
)
def test_options_out_of_range_name_the_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(OutOfRange, match=message):
        lm.pack(TEXT, Bigrams(), Letters(), **options)
