"""What the header of a model's file says: which model, tokenizer, schedule and arithmetic, in full or in brief.

Shared by `lm` and `lm_cm`, with how they are made into the container's coders and decoders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kobza.codecs import base
from kobza.codecs._lockstep import TABLE_BITS, WINDOW_LIMIT, Block, Coding, Predictor, Schedule
from kobza.codecs._spelling import Vocabulary

LOCAL = 1  # arithmetic profile: float32 logits, readable only where they come out the same
BRIEF = {"model": 6, "vocabulary": 2, "environment": 3}  # bytes that name each in brief
HEX = re.compile(r"([0-9a-f]{2}){6,}")
VERSION = 2  # 2: the header may speak in brief
RECORDS = ("auto", "brief", "full")
FULL_FROM = 1 << 20  # bytes of content from which the 250 bytes more of a full record are nothing


def decompress(
    blob: bytes,
    *,
    predictor: Predictor,
    vocabulary: Vocabulary,
    limits: base.Limits | None = None,
    is_forced: bool = False,
) -> bytes:
    """Return the bytes of a .kbz file packed with this model.

    Args:
        blob: the file.
        predictor: the model it was packed with.
        vocabulary: the tokenizer it was packed with.
        limits: what unpacking may cost; None takes the defaults.
        is_forced: try although the environment differs; the checksums still decide.

    Raises:
        ModelMismatch, NotReproducible: another model, tokenizer or environment packed it.
        Corrupt, Truncated, LimitExceeded: see `base.unpack`.
    """
    supply = {"predictor": predictor, "vocabulary": vocabulary, "is_forced": is_forced}
    return base.unpack(blob, limits=limits, supply=supply)


def coder(name: str, block: Block, size: int, record: str, costs: list[float] | None, also: str = "") -> base.Coder:
    """Return the coder of codec `name` that writes blocks of this kind.

    Args:
        size: bytes that will be packed, as far as known; 0 where they are not.
        record: "full", "brief", or "auto": brief for less than 1 MiB.
        costs: takes the ideal code length of every block [bits].
        also: what else the arithmetic depends on.
    """
    base.check_choice("record", record, RECORDS)
    is_brief = record == "brief" or (record == "auto" and 0 < size < FULL_FROM)
    said = write_settings(block.predictor, block.vocabulary, block.schedule, also, is_brief)
    version = VERSION if is_brief else 1
    return base.Coder(name, block.encoder(costs), said, version, decode=block.decode, is_proved=True)


def decoder(
    parameters: Mapping[str, bytes],
    supply: Mapping[str, Any],
    coding: Callable[[Any], Callable[[int, int], Coding]],
    also: str = "",
) -> base.Decode:
    """Return the block decoder; `coding` makes of the tokenizer how a block's tokens are coded.

    Raises:
        ModelMissing, ModelMismatch, NotReproducible, UnknownCodec: see `read_settings`.
    """
    predictor, vocabulary, schedule = read_settings(parameters, supply, also)
    return Block(predictor, vocabulary, schedule, coding(vocabulary), supply.get("limits")).decode


def write_settings(
    predictor: Predictor, vocabulary: Vocabulary, schedule: Schedule, also: str = "", is_brief: bool = False
) -> dict[str, bytes]:
    """Return what a file's header says about the model and the steps.

    `model` and `vocabulary` are fingerprints, `environment` is the predictor's and `also`, what else the arithmetic
    depends on; `schedule` is the arithmetic profile u8, table bits u8, window varint, overlap varint. Profile 1
    ("local") uses the predictor's own floats; the byte leaves room for one whose tables are integers and come out the
    same everywhere. In brief: one field `by`, the first 6, 2 and 3 bytes of digests of model, vocabulary and
    environment, then the schedule, of which only the profile is written where the rest is as by default.
    """
    steps = bytes((LOCAL, schedule.table_bits)) + base.varint(schedule.window) + base.varint(schedule.overlap)
    said = {
        "environment": (predictor.environment + also).encode(),
        "model": predictor.fingerprint.encode(),
        "vocabulary": vocabulary.fingerprint.encode(),
    }
    if not is_brief:
        return said | {"schedule": steps}
    names = b"".join(bytes.fromhex(brief(said[key].decode(), size)) for key, size in BRIEF.items())
    is_default = replace(schedule, streams=0) == Schedule()
    return {"by": names + (steps[:1] if is_default else steps)}


def brief(text: str, size: int) -> str:
    """Return `size` bytes, as hex digits, that name a text: the first of a fingerprint, else of its SHA-256."""
    digits = text if HEX.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()
    return digits[: 2 * size]


def described(parameters: Mapping[str, bytes]) -> dict[str, str]:
    """Return "model", "vocabulary" and "environment" of a header: texts, or the hex digits that stand for them."""
    if "by" not in parameters:
        return {key: parameters.get(key, b"").decode("utf-8", errors="replace") for key in BRIEF}
    cursor = base.Cursor(parameters["by"], "the names")
    return {key: cursor.take(size).hex() for key, size in BRIEF.items()}


def read_settings(
    parameters: Mapping[str, bytes], supply: Mapping[str, Any], also: str = ""
) -> tuple[Predictor, Any, Schedule]:
    """Return model, tokenizer and schedule of a header, the first two from `supply`.

    Raises:
        ModelMissing: no predictor or vocabulary is supplied.
        ModelMismatch: another one packed the file.
        NotReproducible: the environment differs, and `supply["is_forced"]` is not true.
        UnknownCodec: the arithmetic profile is not known here.
    """
    said, is_brief = described(parameters), "by" in parameters
    predictor = _the_same("model", "predictor", said, is_brief, supply)
    vocabulary = _the_same("vocabulary", "vocabulary", said, is_brief, supply)
    schedule = read_schedule(parameters)
    here, packed_under = predictor.environment + also, said["environment"]
    found = brief(here, BRIEF["environment"]) if is_brief else here
    if packed_under != found and not supply.get("is_forced"):
        shown = f"{here}', which is '{found}" if is_brief else here
        raise base.NotReproducible(
            f"packed under '{packed_under}', here is '{shown}': the last bits may differ.",
            "Unpack where it was packed, with as many threads; or try it here (--other-arithmetic): checksums decide.",
        )
    return predictor, vocabulary, schedule


def read_schedule(parameters: Mapping[str, bytes]) -> Schedule:
    """Return the schedule of a header; needs no model."""
    steps = parameters["by"][sum(BRIEF.values()) :] if "by" in parameters else parameters.get("schedule", b"")
    cursor = base.Cursor(steps, "the schedule")
    profile = cursor.byte()
    if profile != LOCAL:
        raise base.UnknownCodec(f"the file's arithmetic profile is {profile}; known here is {LOCAL}.")
    if "by" in parameters and cursor.is_done:
        return Schedule()
    bits, window, overlap = cursor.byte(), cursor.varint(), cursor.varint()
    if not 16 <= bits <= TABLE_BITS or not 1 <= window <= WINDOW_LIMIT or overlap >= window or not cursor.is_done:
        raise base.Corrupt(f"the schedule says {bits} bits, window {window}, overlap {overlap}: it is damaged.")
    return Schedule(0, window, overlap, bits)


def _the_same(what: str, key: str, said: Mapping[str, str], is_brief: bool, supply: Mapping[str, Any]) -> Any:
    wanted, given = said[what], supply.get(key)
    if given is None:
        raise base.ModelMissing(f"the file was packed with the {what} {wanted[:16]}; none is given.", "Hand it in.")
    found = brief(given.fingerprint, BRIEF[what]) if is_brief else given.fingerprint
    if found != wanted:
        message = f"the file was packed with the {what} {wanted[:16]}; the one given is {found[:16]}."
        raise base.ModelMismatch(message, "Open the same one: kobza ls names it.")
    return given
