"""Any bytes come back from a model's packing, within a hair of the ideal size; anything damaged is noticed."""

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kobza.codecs import base, lm
from kobza.codecs._lockstep import Schedule, parts
from kobza.codecs._settings import LOCAL, read_schedule
from kobza.codecs._spelling import Spelled, spell, unspell
from kobza.core.errors import BadValue, KobzaError, NotFinite, OutOfRange

TEXT = b"the theory of the thing, the thirteenth, that nothing is there\n" * 9


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

    environment, context = "numpy", 0

    def __init__(self, seed: int = 0, scale: float = 3.0) -> None:
        self.fingerprint = f"bigrams {seed}"
        self.table = np.random.default_rng(seed).normal(0, scale, (129, 129)).astype(np.float32)
        ids = Letters().encode(TEXT.decode())
        self.table[ids, ids[1:] + ids[:1]] += 12  # it knows this text, so that packing shrinks it
        self.shapes: list[tuple[int, ...]] = []

    def stream_bytes(self, positions: int) -> int:
        return 8 * positions + 129 * 36

    def restart(self, prefix: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(prefix.shape)
        self.length = prefix.shape[1]
        last = prefix[:, -1] if self.length else np.zeros(len(prefix), np.int64)
        return self.table[last] * np.float32(1 + self.length % 3)

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(ids.shape)
        self.length += 1
        return self.table[ids] * np.float32(1 + self.length % 3)


GOLDEN = Path(__file__).parent / "golden" / "with_model" / "lm.kbz"  # of version 1, written once and for ever
EXACT = Bigrams.environment


def round_trip(data: bytes, **options: int) -> bytes:
    schedule = {key: value for key, value in options.items() if key != "block_log2"}
    packed = lm.pack(data, Bigrams(), Letters(), **schedule)
    assert lm.restore(packed, Bigrams(), Letters()) == data
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
    assert len(packed.payload) <= packed.ideal_bits.sum() / 8 * 1.001 + 8
    assert np.allclose(packed.coded_bits, packed.ideal_bits, rtol=1e-3, atol=1e-4)


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
    packed = lm.pack(TEXT, packing, Letters(), streams=3, window=50, overlap=20)
    assert lm.restore(packed, unpacking, Letters()) == TEXT
    assert packing.shapes == unpacking.shapes
    assert (3, 20) in packing.shapes


def test_streams_share_the_tokens_evenly() -> None:
    assert parts(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert parts(0, 1) == [range(0)]


@pytest.mark.parametrize(("tokens", "streams"), [(0, 1), (100, 1), (1000, 4), (10**6, 32)])
def test_streams_left_open_keep_a_context(tokens: int, streams: int) -> None:
    assert Schedule().streams_for(tokens, Bigrams()) == streams


def test_streams_left_open_keep_to_the_memory() -> None:
    large = Bigrams()
    large.stream_bytes = lambda positions: positions << 16  # type: ignore[method-assign]
    assert Schedule().streams_for(10**6, large) == 11
    assert Schedule(streams=32).streams_for(10**6, large) == 32
    blob = lm.compress(TEXT, predictor=large, vocabulary=Letters(), streams=9)
    with pytest.raises(base.LimitExceeded, match="codec 'lm' would need"):
        lm.decompress(blob, predictor=large, vocabulary=Letters(), limits=base.Limits(memory=16 << 20 | 1 << 17))


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
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters(), streams=2, record="full")
    reader = base.Reader(io.BytesIO(blob))
    (codec,) = reader.header.codecs
    assert (codec.name, reader.header.raw_size) == ("lm", len(TEXT))
    assert codec.parameters["model"] == b"bigrams 0"
    assert codec.parameters["vocabulary"] == b"letters"
    assert codec.parameters["environment"] == EXACT.encode()
    assert codec.parameters["schedule"][0] == LOCAL


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN.with_name("lm_brief.kbz")])
def test_the_forms_of_versions_one_and_two_stay_readable(golden: Path) -> None:
    blob = golden.read_bytes()
    assert lm.decompress(blob, predictor=Bigrams(), vocabulary=Letters()) == TEXT + b"the \xff thing"


def test_a_cut_anywhere_is_noticed() -> None:
    blob = lm.compress(TEXT[:40] + b"\xff", predictor=Bigrams(scale=1), vocabulary=Letters())
    for end in range(len(blob)):
        with pytest.raises(base.Corrupt):
            lm.decompress(blob[:end], predictor=Bigrams(scale=1), vocabulary=Letters())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_never_gives_other_bytes(at: int, flip: int) -> None:
    blob = bytearray(lm.compress(TEXT[:80] + b"\xfe", predictor=Bigrams(), vocabulary=Letters(), streams=2))
    blob[at % len(blob)] ^= flip
    try:
        found = lm.decompress(bytes(blob), predictor=Bigrams(), vocabulary=Letters())
    except KobzaError:
        return
    assert found == TEXT[:80] + b"\xfe"


def test_windows_are_no_longer_than_the_model_can_see() -> None:
    assert Schedule().within(128) == Schedule(window=128, overlap=32)
    assert Schedule(window=100, overlap=99).within(128) == Schedule(window=100, overlap=99)
    assert Schedule().within(0) == Schedule()
    short = Bigrams()
    short.context = 40
    given = {"predictor": short, "vocabulary": Letters()}
    assert lm.decompress(lm.compress(TEXT, **given, streams=2), **given) == TEXT
    assert (2, 10) in short.shapes


@pytest.mark.parametrize("record", ["full", "brief"])
def test_a_model_must_be_handed_in(record: str) -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters(), record=record)
    name = re.escape(named("bigrams 0", record, 6))
    with pytest.raises(base.ModelMissing, match=f"packed with the model {name}; none is given"):
        base.unpack(blob)


def named(text: str, record: str, size: int) -> str:
    """What a message calls a text by."""
    return text if record == "full" else hashlib.sha256(text.encode()).hexdigest()[: 2 * size]


@pytest.mark.parametrize("record", ["full", "brief"])
def test_another_model_or_tokenizer_is_refused(record: str) -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters(), record=record)
    wanted, found = (named(f"bigrams {seed}", record, 6) for seed in (0, 1))
    with pytest.raises(base.ModelMismatch, match=f"packed with the model {wanted}; the one given is {found}"):
        lm.decompress(blob, predictor=Bigrams(1), vocabulary=Letters())
    other = Letters()
    other.fingerprint = "capitals"
    wanted, found = (named(text, record, 2) for text in ("letters", "capitals"))
    with pytest.raises(base.ModelMismatch, match=f"the vocabulary {wanted}; the one given is {found}"):
        lm.decompress(blob, predictor=Bigrams(), vocabulary=other)


@pytest.mark.parametrize("record", ["full", "brief"])
def test_another_environment_is_refused_unless_forced(record: str) -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(), vocabulary=Letters(), record=record)
    other = Bigrams()
    other.environment = "2 threads"
    wanted = named("numpy", record, 3)
    with pytest.raises(base.NotReproducible, match=f"packed under '{wanted}', here is '2 threads'"):
        lm.decompress(blob, predictor=other, vocabulary=Letters())
    assert lm.decompress(blob, predictor=other, vocabulary=Letters(), is_forced=True) == TEXT


def test_a_fingerprint_is_named_by_its_own_first_digits() -> None:
    known = Bigrams()
    known.fingerprint = "ea2b15de93fe998b61e3fba33be00afb44b8a4e165c591c76374edcc0d1513cf"
    blob = lm.compress(TEXT, predictor=known, vocabulary=Letters())
    (codec,) = base.Reader(io.BytesIO(blob)).header.codecs
    assert lm.described(codec.parameters)["model"] == "ea2b15de93fe"
    assert codec.parameters["by"][-1] == LOCAL


@pytest.mark.parametrize("raw", [TEXT[:64], TEXT, TEXT * 20])
def test_a_file_is_within_a_third_of_a_percent_and_64_bytes_of_the_ideal(raw: bytes) -> None:
    """All around the tokens: header, names, sizes, digest."""
    costs: list[float] = []
    given = {"predictor": Bigrams(scale=1), "vocabulary": Letters()}
    made = lm.coder(raw, **given, costs=costs)
    blob = base.pack(raw, made, block_log2=base.fitting_block(len(raw), 20))
    assert blob == lm.compress(raw, **given)
    assert len(blob) <= sum(costs) / 8 * 1.003 + 64


def test_another_schedule_than_the_default_is_kept_in_brief() -> None:
    given = {"predictor": Bigrams(), "vocabulary": Letters()}
    blob = lm.compress(TEXT, **given, window=50, overlap=20, record="brief")
    (codec,) = base.Reader(io.BytesIO(blob)).header.codecs
    assert read_schedule(codec.parameters) == Schedule(0, 50, 20)
    assert lm.decompress(blob, **given) == TEXT
    for cut in range(12):
        with pytest.raises((base.Corrupt, base.ModelMismatch)):
            lm.decoder({"by": codec.parameters["by"][:cut]}, given)


def test_other_last_bits_are_noticed() -> None:
    blob = lm.compress(TEXT, predictor=Bigrams(scale=1), vocabulary=Letters())
    other = Bigrams(scale=1)
    other.table = other.table * np.float32(1.001)
    with pytest.raises(base.Corrupt):
        lm.decompress(blob, predictor=other, vocabulary=Letters())


def test_a_block_that_does_not_come_back_is_not_written() -> None:
    class Drifting(Bigrams):
        def restart(self, prefix: NDArray[np.int64]) -> NDArray[np.float32]:
            self.table = np.roll(self.table, len(self.shapes), axis=1)  # the same at first, then another
            return super().restart(prefix)

    with pytest.raises(base.NotReproducible, match="codec 'lm' did not give block 0 back; nothing was packed"):
        lm.compress(TEXT, predictor=Drifting(scale=1), vocabulary=Letters())


def test_payloads_that_lie_are_refused_before_the_model_runs() -> None:
    decode = lm.coder(predictor=Bigrams(), vocabulary=Letters()).decode
    assert decode is not None
    v = base.varint
    for payload, match in [
        (v(2) + v(1), "1 tokens in 2 streams"),
        (v(0) + v(1), "1 tokens in 0 streams"),
        (v(1) + v(101), "101 tokens in 1 streams cannot stand for 100"),
        (v(257) + v(99), "in 257 streams"),
        (v(1) + v(1) + v(300), "300 literals"),
        (v(1) + v(1) + v(1) + v(2) + v(1), "behind the last token"),
        (v(1) + v(1) + v(1) + v(0) + v(101), "longer than the block"),
        (v(1) + v(1) + v(2) + v(0) + v(60) + v(0) + v(60) + v(2) + b"a", "literals have 120 bytes"),
        (v(1) + v(1) + v(1) + v(0) + v(5) + v(2 * 3 + 1) + b"abc", "literals are damaged"),
    ]:
        with pytest.raises((ValueError, base.Corrupt), match=match):
            decode(payload, 100)


def test_blocks_are_independent_and_the_ideal_length_is_told() -> None:
    costs: list[float] = []
    made = lm.coder(predictor=Bigrams(scale=1), vocabulary=Letters(), costs=costs)
    blob = base.pack(TEXT * 5 + b"\xff", made, block_log2=10)
    supply = {"predictor": Bigrams(scale=1), "vocabulary": Letters()}
    reader = base.Reader(io.BytesIO(blob), supply=supply)
    assert len(costs) == len(reader.blocks()) == 3
    assert reader.read_at(2000, 100) == TEXT[2000 % len(TEXT) :][:100]
    packed = sum(block.packed_size for block in reader.blocks())
    assert sum(costs) / 8 <= packed <= sum(costs) / 8 * 1.003 + 64


@pytest.mark.slow
def test_sixteen_mebibytes_and_one_byte_come_back() -> None:
    piece = b"\xff\xfe".ljust(2000, b"\xf5") + b"the \r\n<s>"  # mostly bytes that no token says
    data = (piece * (1 + (16 << 20) // len(piece)))[: (16 << 20) + 1]
    assert round_trip(data, streams=256, window=4096, block_log2=24) == data


def test_logits_that_are_not_finite_stop_with_their_place() -> None:
    broken = Bigrams()
    broken.table[ord("f")] = np.nan
    with pytest.raises(NotFinite, match="before token 11 of stream 0"):
        lm.pack(TEXT, broken, Letters(), streams=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 257}, "streams is 257; allowed are 0 to 256"),
        ({"window": 0}, "window is 0"),
        ({"window": 8, "overlap": 8}, "overlap is 8; allowed are 0 to 7"),
        ({"table_bits": 12}, "table_bits is 12; allowed are 16 to 28"),
    ],
)
def test_options_out_of_range_name_the_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(OutOfRange, match=message):
        lm.pack(TEXT, Bigrams(), Letters(), **options)
