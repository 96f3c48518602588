"""How a vocabulary spells bytes: the tables between the strings in a tokenizer file and the bytes they stand for.

Three spellings are in use. *Byte-level* vocabularies (GPT-2 and its heirs) write every byte as one printable
character. *Metaspace* vocabularies (SentencePiece) write text as it is, a space as U+2581 and, with byte
fallback, a lone byte as `<0x0A>`. *WordPiece* marks what continues a word by `##` and forgets the spaces.

Source: GPT-2 `bytes_to_unicode` (Radford et al. 2019, released encoder); SentencePiece (Kudo & Richardson 2018,
arXiv:1808.06226), section 3.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

METASPACE = "\u2581"
BYTE_LEVEL, METASPACED, WORDPIECE, PLAIN = "byte-level", "metaspace", "wordpiece", "plain"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def byte_to_character() -> dict[int, str]:
    """Return the printable character GPT-2's alphabet gives to each of the 256 bytes.

    >>> byte_to_character()[ord("A")], byte_to_character()[ord(" ")]
    ('A', 'Ġ')
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def character_to_byte() -> dict[str, int]:
    """Return the inverse of `byte_to_character`."""
    return {character: byte for byte, character in byte_to_character().items()}


def spelling(parts: dict[str, Any]) -> str:
    """Return which of the four spellings a tokenizer's parts (its JSON) use.

    Args:
        parts: the tokenizer's JSON with the keys `decoder`, `pre_tokenizer`, `normalizer`, `model`.
    """
    kinds = set(_types(parts.get("decoder"))) | set(_types(parts.get("pre_tokenizer")))
    if "ByteLevel" in kinds:
        return BYTE_LEVEL
    if "WordPiece" in kinds or (parts.get("model") or {}).get("type") == "WordPiece":
        return WORDPIECE
    replaced = {str(r.get("content")) for r in _nodes(parts.get("decoder")) if r.get("type") == "Replace"}
    if "Metaspace" in kinds or "ByteFallback" in kinds or " " in replaced:
        return METASPACED
    return PLAIN


def spelled_bytes(token: str, how: str) -> bytes:
    """Return the bytes that a vocabulary's string stands for.

    >>> spelled_bytes("Ġsea", BYTE_LEVEL), spelled_bytes("<0x0A>", METASPACED), spelled_bytes("▁sea", METASPACED)
    (b' sea', b'\\n', b' sea')
    """
    if how == BYTE_LEVEL:
        table = character_to_byte()
        # subtle: an added token is written literally and may use characters outside the alphabet
        return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    if how == METASPACED:
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(METASPACE, " ").encode()
    return token.removeprefix("##").encode() if how == WORDPIECE else token.encode()


def prefix_rule(parts: dict[str, Any]) -> str:
    """Return when encoding puts a space in front of a text: "" never, "always", or "unless" it begins with one."""
    nodes = [*_nodes(parts.get("pre_tokenizer")), *_nodes(parts.get("normalizer"))]
    rule = ""
    for node in nodes:
        kind = node.get("type")
        if kind == "Prepend":
            return "always"
        if kind == "ByteLevel" and node.get("add_prefix_space"):
            rule = "unless"
        if kind == "Metaspace" and node.get("prepend_scheme", "always") != "never":
            rule = "unless"
    return rule


def without_prefix_space(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the same parts with nothing put in front: how the middle of a text is encoded."""
    return {**parts, **{key: _unprefixed(parts.get(key)) for key in ("pre_tokenizer", "normalizer")}}


def alterations(parts: dict[str, Any]) -> list[str]:
    """Return the names of the normalizer's steps that change the text itself (a space as U+2581 does not)."""
    harmless = {"Sequence", "Prepend"}
    found = []
    for node in _nodes(parts.get("normalizer")):
        is_space = node.get("type") == "Replace" and node.get("content") == METASPACE
        if node.get("type") not in harmless and not is_space:
            found.append(str(node.get("type")))
    return found


def _unprefixed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return None
    if kind == "Metaspace":
        return {**node, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**node, "add_prefix_space": False}
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        return {**node, key: [kept for part in node[key] if (kept := _unprefixed(part)) is not None]}
    return node


def _nodes(node: Any) -> list[dict[str, Any]]:
    """Return a part and everything in its sequences, flat."""
    if not isinstance(node, dict):
        return []
    inner = [*node.get("normalizers", []), *node.get("pretokenizers", []), *node.get("decoders", [])]
    return [node, *(found for part in inner for found in _nodes(part))]


def _types(node: Any) -> list[str]:
    return [str(found.get("type")) for found in _nodes(node)]
