"""SentencePiece models (`.model`): byte pair encoding with byte fallback, and Unigram.

The library `sentencepiece` (an extra) encodes; the file itself is read here for what the library does not tell: the
kinds of its pieces and how it normalizes a text. A space is written U+2581, so that mark and a space are one.

Source: Kudo & Richardson (2018), arXiv:1808.06226; Kudo (2018), arXiv:1804.10959; sentencepiece_model.proto.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from kobza.core.errors import CannotWrite, Corrupt, MissingExtra, Truncated
from kobza.core.files import sha256, write_atomic
from kobza.tokens.alphabet import METASPACE, METASPACED
from kobza.tokens.base import Marks, Tokenizer

_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # SentencePiece.Type
_KINDS = {1: "Unigram", 2: "BPE", 3: "WORD", 4: "CHAR"}  # TrainerSpec.ModelType
# a normalizer_spec with add_dummy_prefix = false: protobuf merges it into the model's own when it is put behind it
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieces(Tokenizer):
    """A SentencePiece model.

    Args:
        data: the content of the file.
        name: what to call it in messages.

    Raises:
        MissingExtra: the package `sentencepiece` is not installed.
        Corrupt, Truncated: it is not such a model, or breaks off.
    """

    def __init__(self, data: bytes, *, name: str = "pieces") -> None:
        self.name = name
        self._data = data
        fields = list(_fields(data, name))
        self._pieces_read = [_piece(value, name) for field, value in fields if field == 1 and isinstance(value, bytes)]
        if not self._pieces_read:
            raise Corrupt(f"'{name}' has no pieces, so it is not a SentencePiece model.")
        self._spec = _merged(fields, 3, name)
        self._trainer = _merged(fields, 2, name)
        self._processor = _processor(data, name)
        self.marks = _marks(self._processor)

    # -- what is in it -----------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """How it splits: "BPE" or "Unigram" (or "WORD", "CHAR")."""
        return _KINDS.get(self._trainer.get(3, 1), "unknown")

    @cached_property
    def _parts(self) -> dict[str, Any]:
        """The same facts in the words of tokenizer.json, from which the face reads how to treat a text."""
        steps = [{"type": "Prepend"}] if self._spec.get(3, 1) else []
        steps += [{"type": name} for name in self._normalizing()]
        normalizer = {"type": "Sequence", "normalizers": steps}
        return {"model": {"type": self.kind}, "normalizer": normalizer, "decoder": {"type": "Metaspace"}}

    def _normalizing(self) -> list[str]:
        found = [self._spec.get(1, b"").decode(errors="replace") or "a character map"] if self._spec.get(2) else []
        return found + (["extra spaces removed"] if self._spec.get(4, 1) else [])

    @cached_property
    def special(self) -> dict[str, int]:
        """Control tokens by their name, the one for the unknown among them."""
        kinds = (_UNKNOWN, _CONTROL)
        return {piece: id for id, (piece, kind) in enumerate(self._pieces_read) if kind in kinds}

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [_bytes_of(piece, kind) for piece, kind in self._pieces_read]

    @cached_property
    def _size(self) -> int:
        return len(self._pieces_read)

    def _name(self, id: int | None) -> str:
        return "" if id is None else self._pieces_read[id][0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return sha256(self._data)

    @cached_property
    def why_not_exact(self) -> str:
        """Why decoding an encoded text may not give the same bytes: at least the mark U+2581 becomes a space."""
        return self._alterations or f"the character {METASPACE} (U+2581) of a text comes back as a space"

    # -- encoding ----------------------------------------------------------------------------------------------
    @cached_property
    def _inner(self) -> Any:
        """The same model for the inside of a text: it puts no space in front."""
        return _processor(self._data + _WITHOUT_PREFIX, self.name)

    def _encode_valid(self, text: str, at: int = 0) -> list[int]:
        processor = self._processor if at == 0 else self._inner
        ids: list[int] = processor.encode(text, out_type=int)
        if not self._alterations:
            self._refuse_lost(ids, text.replace(METASPACE, " "), at)
        return ids

    @cached_property
    def spelling(self) -> str:
        """How the vocabulary writes bytes: always "metaspace"."""
        return METASPACED

    # -- files -------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> Path:
        """Write the model as `tokenizer.model`, byte for byte as it was opened."""
        target = Path(folder)
        if not target.is_dir():
            raise CannotWrite(f"cannot write '{target}/tokenizer.model': there is no folder '{target}'.")
        write_atomic(target / "tokenizer.model", self._data)
        return target


def _bytes_of(piece: str, kind: int) -> bytes:
    if kind == _BYTE:
        return bytes([int(piece[3:5], 16)])
    return piece.encode() if kind in (_UNKNOWN, _CONTROL) else piece.replace(METASPACE, " ").encode()


def _processor(data: bytes, name: str) -> Any:
    try:
        library = importlib.import_module("sentencepiece")
    except ImportError:
        raise MissingExtra.of("opening a SentencePiece model", "sentencepiece", "tokens") from None
    processor = library.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise Corrupt(f"'{name}' is not a SentencePiece model: {str(error).splitlines()[0]}.") from None
    return processor


def _marks(processor: Any) -> Marks:
    ids = [processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.unk_id()]
    start, end, padding, unknown = (id if id >= 0 else None for id in ids)
    # the file does not say; models with a start token of this kind (Llama, Mistral, Gemma) are used with it
    return Marks(start, end, padding, unknown, adds_start=start is not None)


def _piece(message: bytes, name: str) -> tuple[str, int]:
    """Return text and kind of one piece (SentencePiece: 1 piece, 2 score, 3 type)."""
    fields = dict(_fields(message, name))
    text, kind = fields.get(1, b""), fields.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(kind, int):
        raise Corrupt(f"'{name}' has a piece that is not one.")
    try:
        return text.decode(), kind
    except UnicodeDecodeError:
        raise Corrupt(f"'{name}' has a piece that is not UTF-8: {text[:20]!r}.") from None


def _merged(fields: list[tuple[int, Any]], number: int, name: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for field, value in fields:
        if field == number and isinstance(value, bytes):
            found |= dict(_fields(value, name))
    return found


def _fields(data: bytes, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message: int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, name)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, name)
            yield field, value
            continue
        if wire not in (1, 2, 5) or not field:
            raise Corrupt(f"'{name}' is not a SentencePiece model: it is not a protobuf message at byte {at}.")
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _varint(data, at, name)
        if at + size > len(data):
            raise Truncated(f"'{name}' breaks off: {size} bytes should follow byte {at}, {len(data) - at} do.")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, name: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Truncated(f"'{name}' breaks off at byte {at}.", "Fetch the file again.")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise Corrupt(f"'{name}' is not a SentencePiece model: byte {at} belongs to no number.")
