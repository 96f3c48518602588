"""One tokenizer face: text to ids and back, in exact bytes.

A token is a run of bytes, not a string: a byte-level token may cut a character in two, and a round trip through
`str` would lose that. Text that a person typed never becomes a control token: `<|im_end|>` in a text is encoded as
the letters it consists of. Control tokens come from `start=True`, from a chat template or as ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from kobza.core.errors import BadValue, OutOfRange, WrongVocabulary
from kobza.core.files import sha256
from kobza.core.table import Table
from kobza.tokens import alphabet
from kobza.tokens.alphabet import BYTE_LEVEL, METASPACED
from kobza.tokens.template import Hidden, render


@dataclass(frozen=True)
class Token:
    """One token of an encoded text.

    Attributes:
        id: its number in the vocabulary.
        bytes: what it stands for.
        start, end: the bytes of the encoded text it covers, [start, end).
        special: True for a control token.
    """

    id: int
    bytes: bytes
    start: int
    end: int
    special: bool = False


@dataclass(frozen=True)
class Marks:
    """The control tokens with a task, and what a file says about their use.

    Attributes:
        start_id, end_id, padding_id, unknown_id: ids, or None where the vocabulary has no such token.
        adds_start: True if the model is used with the start token in front of every text.
        chat_template: the Jinja source of the chat format, or None.
    """

    start_id: int | None = None
    end_id: int | None = None
    padding_id: int | None = None
    unknown_id: int | None = None
    adds_start: bool = False
    chat_template: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Tokenizer:
    """A vocabulary with its splitting rules, over the library `tokenizers`.

    Args:
        backend: the library's object; truncation and padding are switched off.
        marks: which tokens start, end, pad; the chat template.
        name: what to call it in messages.
    """

    def __init__(self, backend: tokenizers.Tokenizer, marks: Marks | None = None, *, name: str = "tokenizer") -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.marks = marks or Marks()
        self.name = name

    # -- reading -----------------------------------------------------------------------------------------------
    @classmethod
    def from_file(cls, path: str | Path, marks: Marks | None = None) -> Tokenizer:
        """Read a `tokenizer.json`, or a folder with one beside its `tokenizer_config.json`.

        Raises:
            MissingFile, Corrupt: no such file, or not a tokenizer.
        """
        from kobza.tokens.reading import read

        return read(Path(path), marks)

    # -- what is in it -----------------------------------------------------------------------------------------
    @cached_property
    def _parts(self) -> dict[str, Any]:
        """The tokenizer's JSON without the vocabulary and merges."""
        backend = self._backend
        parts: dict[str, Any] = {"model": {"type": type(backend.model).__name__}}
        for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
            part = getattr(backend, name)
            # the library's own pickling is its JSON; to_str() would also write the whole vocabulary (50 ms)
            parts[name] = None if part is None else json.loads(part.__getstate__())
        return parts

    @cached_property
    def spelling(self) -> str:
        """How the vocabulary writes bytes: "byte-level", "metaspace", "wordpiece" or "plain"."""
        return alphabet.spelling(self._parts)

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self._backend.get_added_tokens_decoder())

    @cached_property
    def special(self) -> dict[str, int]:
        """Control tokens by their name."""
        return {token.content: id for id, token in sorted(self._added.items()) if token.special}

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @property
    def start_id(self) -> int | None:
        """The token in front of a text, or None."""
        return self.marks.start_id

    @property
    def end_id(self) -> int | None:
        """The token behind a text, or None."""
        return self.marks.end_id

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat format, or None."""
        return self.marks.chat_template

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of every id; ids that no token has are empty."""
        table = [b""] * len(self)
        for token, id in self._backend.get_vocab(with_added_tokens=True).items():
            literal = id in self._special_ids or (id in self._added and self.spelling == BYTE_LEVEL)
            table[id] = token.encode() if literal else alphabet.spelled_bytes(token, self.spelling)
        return table

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        ordinary = {data: id for id, data in reversed(list(enumerate(self._bytes))) if data}
        return {token.encode(): id for token, id in self.special.items()} | {
            data: id for data, id in ordinary.items() if id not in self._special_ids
        }

    def __len__(self) -> int:
        """Return one more than the highest id."""
        return self._size

    @cached_property
    def _size(self) -> int:
        highest = max(self._added, default=-1)
        return max(self._backend.get_vocab_size(with_added_tokens=True), highest + 1, self._highest() + 1)

    def _highest(self) -> int:
        # a vocabulary with gaps has ids above its count of tokens
        count = self._backend.get_vocab_size(with_added_tokens=False)
        if count and self._backend.id_to_token(count - 1) is not None:
            return count - 1
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {len(self)} ids, {self.spelling})"

    # -- one token ---------------------------------------------------------------------------------------------
    def bytes_of(self, id: int) -> bytes:
        """Return the bytes a token stands for; for a control token, its name.

        Raises:
            OutOfRange: no such id.
        """
        return self._bytes[self._checked(id)]

    def id_of(self, data: bytes) -> int | None:
        """Return the token that stands for exactly these bytes, or None."""
        return self._ids.get(data)

    def show(self, id: int) -> str:
        """Return a token printable on one line: a space as U+2581, anything unprintable escaped.

        >>> Tokenizer.from_file("tokenizer.json").show(1)  # doctest: +SKIP
        '▁the'
        """
        return printable(self.bytes_of(id))

    def missing_bytes(self) -> list[int]:
        """Return the bytes (0 .. 255) that no single token stands for; a text with one may be impossible to encode."""
        return [byte for byte in range(256) if bytes([byte]) not in self._ids]

    def _checked(self, id: int) -> int:
        if not 0 <= id < len(self):
            raise OutOfRange(f"no token has the id {id}: '{self.name}' has ids 0 .. {len(self) - 1}.")
        return id

    # -- encoding ----------------------------------------------------------------------------------------------
    def encode(self, text: str | bytes, *, start: bool = False) -> list[int]:
        """Return the ids of a text; the names of control tokens in it stay literal text.

        Args:
            text: a string, or bytes, which need not be UTF-8.
            start: put the start token in front, if the vocabulary has one.

        Raises:
            BadValue: the string has a lone surrogate.
            WrongVocabulary: the text has a byte that the vocabulary cannot express.
        """
        pieces = list(self._pieces(text))
        ids = pieces[0] if len(pieces) == 1 else [id for piece in pieces for id in piece]
        return [self.start_id, *ids] if start and self.start_id is not None else ids

    def _pieces(self, text: str | bytes) -> Iterator[list[int]]:
        data = _as_bytes(text)
        at = 0
        for part in _valid_parts(data):
            yield self._encode_valid(part, at) if isinstance(part, str) else self._encode_raw(part, at)
            at += len(part.encode()) if isinstance(part, str) else len(part)

    def _encode_valid(self, text: str, at: int = 0) -> list[int]:
        backend = self._backend if at == 0 else self._middle
        ids = _literally(backend, text)
        if not self._alterations:
            self._refuse_lost(ids, text, at)
        return ids

    def _refuse_lost(self, ids: list[int], text: str, at: int) -> None:
        """Raise if the library dropped a character, as it silently does where no token can express it."""
        data = text.encode()
        table = self._bytes
        got = b"".join([table[id] for id in ids])
        if at == 0 and self._is_prefixed(data):
            got = got.removeprefix(b" ")
        unknown = self.marks.unknown_id
        if got == data and not (unknown is not None and unknown in ids and self.spelling == METASPACED):
            return
        offset = next((n for n, (a, b) in enumerate(zip(got, data, strict=False)) if a != b), min(len(got), len(data)))
        raise self._cannot_say(data[offset : offset + 1], at + offset)

    def _encode_raw(self, data: bytes, at: int) -> list[int]:
        ids = []
        for n, byte in enumerate(data):
            id = self.id_of(bytes([byte]))
            if id is None:
                raise self._cannot_say(bytes([byte]), at + n)
            ids.append(id)
        return ids

    def _cannot_say(self, byte: bytes, offset: int) -> WrongVocabulary:
        lacking = len(self.missing_bytes())
        return WrongVocabulary(
            f"'{self.name}' cannot express byte 0x{byte.hex()} at offset {offset}: {lacking} of the 256 bytes have no "
            "token in its vocabulary.",
            "Remove that byte from the text, or use a model whose vocabulary has all bytes.",
        )

    @cached_property
    def _middle(self) -> tokenizers.Tokenizer:
        """The same tokenizer for the inside of a text: it puts no space in front."""
        if not self._prefix_space:
            return self._backend
        whole = json.loads(self._backend.to_str())
        return tokenizers.Tokenizer.from_str(json.dumps(alphabet.without_prefix_space(whole)))

    @cached_property
    def _prefix_space(self) -> str:
        return alphabet.prefix_rule(self._parts)

    @property
    def prefixes(self) -> bool:
        """True if encoding puts a space in front of a text (that does not begin with one)."""
        return bool(self._prefix_space)

    def _is_prefixed(self, data: bytes) -> bool:
        """Say whether encoding these bytes puts a space in front of them."""
        return self._prefix_space == "always" or (self._prefix_space == "unless" and not data.startswith(b" "))

    # -- decoding ----------------------------------------------------------------------------------------------
    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of a run of ids; control tokens give nothing.

        A space that encoding put in front of the text is taken off again.

        Raises:
            OutOfRange: no such id.
        """
        special, table = self._special_ids, self._bytes
        data = b"".join([table[self._checked(id)] for id in ids if id not in special])
        return data.removeprefix(b" ") if self._prefix_space else data

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of a run of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode(ids).decode("utf-8", errors="replace")

    def split(self, text: str | bytes) -> list[Token]:
        """Return the tokens of a text with the bytes each covers.

        Where the tokenizer alters the text (`why_not_exact`), offsets are those of the altered text.
        """
        tokens, at = [], 0
        is_prefixed = self._is_prefixed(_as_bytes(text))
        for n, id in enumerate(self.encode(text)):
            data = self._bytes[id]
            # the space put in front of the text covers none of its bytes
            size = len(data) - (n == 0 and is_prefixed and data.startswith(b" "))
            tokens.append(Token(id, data, at, at + size, id in self._special_ids))
            at += size
        return tokens

    @cached_property
    def _alterations(self) -> str:
        if self.spelling not in (BYTE_LEVEL, METASPACED):
            return f"its {self.spelling} vocabulary does not keep the spaces of the text"
        if changed := alphabet.alterations(self._parts):
            return f"it alters the text before splitting it ({', '.join(changed)})"
        return ""

    @cached_property
    def why_not_exact(self) -> str:
        """Why decoding an encoded text may not give the same bytes; empty if it always does."""
        if self._prefix_space == "unless":
            return self._alterations or "a text that begins with a space has the ids of the text without it"
        return self._alterations

    @property
    def is_exact(self) -> bool:
        """True if `decode(encode(text)) == text` for every text that it can express at all."""
        return not self.why_not_exact

    # -- chat --------------------------------------------------------------------------------------------------
    def chat(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True) -> list[int]:
        """Return the ids of a conversation in the model's own chat format.

        The template is rendered in a sandbox with limits of time and size. Names of control tokens inside the
        messages stay literal text: only the template writes control tokens.

        Args:
            messages: each with "role" and "content".
            reply: end with the head of the assistant's turn, so that the model goes on from there.

        Raises:
            BadValue: the model has no chat template, or it refuses these messages.
            OutOfTime, Unsafe: the template runs too long, grows too large or tries to leave its sandbox.
        """
        if self.chat_template is None:
            raise BadValue(f"'{self.name}' has no chat template.", "Give it the text itself instead of messages.")
        hidden = Hidden(self.special)
        names = {"bos_token": self._name(self.start_id), "eos_token": self._name(self.end_id)}
        names |= {"pad_token": self._name(self.marks.padding_id), "unk_token": self._name(self.marks.unknown_id)}
        rendered = render(self.chat_template, hidden.hide(list(messages)), add_generation_prompt=reply, **names)
        ids: list[int] = []
        at = 0
        for piece, is_control in hidden.pieces(rendered):
            ids += [self.special[piece]] if is_control else self._encode_valid(piece, at)
            at += len(piece.encode())
        return ids

    def _name(self, id: int | None) -> str:
        return "" if id is None else self._backend.id_to_token(id) or ""

    # -- as a whole --------------------------------------------------------------------------------------------
    def table(self) -> Table:
        """Return all tokens: id, text with the start of a word visible, bytes and whether it is a control token."""
        rows = [
            {"id": id, "token": printable(data), "bytes": data.hex(" "), "size": len(data)}
            | {"special": id in self._special_ids}
            for id, data in enumerate(self._bytes)
        ]
        note = "A space is shown as ▁: a token that begins with it starts a word."
        return Table(rows, units={"bytes": "hex", "size": "bytes"}, title=f"Tokens of {self.name}", note=note)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's whole JSON and its marks."""
        marks = {name: getattr(self.marks, name) for name in ("start_id", "end_id", "adds_start", "chat_template")}
        return sha256((self._backend.to_str() + json.dumps(marks, sort_keys=True)).encode())

    def save(self, folder: str | Path) -> Path:
        """Write the files that transformers opens: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
        from kobza.tokens.reading import write

        return write(self, Path(folder))


def printable(data: bytes) -> str:
    """Return bytes as one line of text: a space as U+2581, other unprintable characters and half ones escaped.

    >>> printable(b" sea\\n"), printable(b"\\xa0"), printable("\\xa0".encode())
    ('▁sea\\\\n', '\\\\xa0', '\\\\u00a0')
    """
    shown = []
    for character in data.decode("utf-8", errors="backslashreplace"):
        if character == " ":
            shown.append(alphabet.METASPACE)
        elif character == alphabet.METASPACE or not character.isprintable():
            escaped = character.encode("unicode_escape").decode()
            # subtle: \xa0 is the byte; the character of that number, two bytes long, is another token
            shown.append(f"\\u{ord(character):04x}" if "\x7f" < character <= "\xff" else escaped)
        else:
            shown.append(character)
    return "".join(shown)


def _as_bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    if not isinstance(text, str):
        raise BadValue(f"a text must be str or bytes, not {type(text).__name__}.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        message = f"the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}."
        raise BadValue(message, "Half a character cannot be encoded; give the text as bytes instead.") from None


def _valid_parts(data: bytes) -> Iterator[str | bytes]:
    """Yield the valid UTF-8 stretches of `data` as str and what lies between them as bytes."""
    at = 0
    while at < len(data):
        try:
            yield data[at:].decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[at : at + error.start].decode()
            yield data[at + error.start : at + error.end]
            at += error.end


def _literally(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode with the names of control tokens taken as letters."""
    backend.encode_special_tokens = True
    return list(backend.encode(text, add_special_tokens=False).ids)
