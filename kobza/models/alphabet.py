"""Only the characters of a text: which tokens may come next, also where a character is spelled by several of them.

A token is allowed if the bytes so far and its own are whole characters of the alphabet, but perhaps for the beginning
of one more. So a vocabulary of bytes is held to the alphabet like one of words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.tokens.base import Tokenizer


class Alphabet:
    """The characters of a text, for one vocabulary.

    Args:
        tokenizer: the vocabulary; its control tokens are not allowed.
        text: whose characters are.

    Raises:
        BadValue: no token begins one of the characters.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._characters = {character.encode() for character in set(text)}
        self._beginnings = {c[:n] for c in self._characters for n in range(1, len(c))}
        control = set(tokenizer.special.values())
        self._tokens = [b"" if id in control else tokenizer.bytes_of(id) for id in range(len(tokenizer))]
        self._allowed: dict[bytes, Tensor] = {}
        if not bool(self.allowed(b"").any()):
            raise BadValue(f"no token of '{tokenizer.name}' is made of the {len(self._characters)} characters given.")

    def allowed(self, begun: bytes) -> Tensor:
        """Return which ids may follow (V,), where the text ends with the beginning of a character, or b""."""
        if begun not in self._allowed:
            fits = [bool(token) and self._rest(begun + token) is not None for token in self._tokens]
            self._allowed[begun] = torch.tensor(fits)
        return self._allowed[begun]

    def after(self, begun: bytes, id: int) -> bytes:
        """Return what is begun behind an allowed token."""
        return self._rest(begun + self._tokens[id]) or b""

    def cut(self, logits: Tensor, begun: bytes) -> Tensor:
        """Return logits (V,), -inf where a token is not allowed."""
        allowed = self.allowed(begun)
        rows = torch.zeros(len(logits), dtype=torch.bool)
        rows[: len(allowed)] = allowed  # rows beyond the vocabulary belong to no token
        return logits.masked_fill(~rows.to(logits.device), -torch.inf)

    def _rest(self, data: bytes) -> bytes | None:
        """Return the beginning of a character at the end of `data`; None if anything is not of the alphabet."""
        at = 0
        while at < len(data):
            first = data[at]
            size = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)  # of UTF-8
            piece = data[at : at + size]
            if len(piece) < size:
                return piece if piece in self._beginnings else None
            if piece not in self._characters:
                return None
            at += size
        return b""
