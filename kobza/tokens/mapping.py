"""From one vocabulary to another: which token of the new one is which of the old one, or which run of them.

Two tokens are the same if their bytes are. A token the old vocabulary lacks is what the old one cuts its bytes into;
bytes that no old token says are left out of that cut. Control tokens are matched by name, then by their task
(start, end, padding).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import tokenizers

from kobza.core.errors import BadValue, WrongVocabulary
from kobza.tokens.base import Marks, Tokenizer
from kobza.tokens.ranks import Ranked

NOWHERE = -1


@dataclass(frozen=True)
class Match:
    """What every id of a new vocabulary (V') is in an old one.

    Attributes:
        same: old id of the same bytes, or -1 (V').
        parts: for the others the old ids that spell them; () where nothing does (V').
        lost: bytes of a token that no old token says, where there are any.
    """

    same: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    lost: Mapping[int, int]

    @cached_property
    def copied(self) -> list[int]:
        """New ids with a row of the same bytes."""
        return [id for id, old in enumerate(self.same) if old != NOWHERE]

    @cached_property
    def composed(self) -> list[int]:
        """New ids that the old vocabulary spells with several tokens, or with one that lacks some of the bytes."""
        return [id for id, parts in enumerate(self.parts) if parts]

    @cached_property
    def empty(self) -> list[int]:
        """New ids that are nothing in the old vocabulary: no token has them, or none of their bytes is known."""
        return [id for id, old in enumerate(self.same) if old == NOWHERE and not self.parts[id]]


def match(new: Tokenizer, old: Tokenizer) -> Match:
    """Find every token of a new vocabulary in an old one.

    >>> from kobza.tokens.ranks import bytes_vocabulary
    >>> found = match(bytes_vocabulary(), bytes_vocabulary())
    >>> found.same[:3], found.composed, found.empty
    ((0, 1, 2), [], [])
    """
    controls = _controls(new, old)
    same, parts, lost = [], [], {}
    old_controls = set(old.special.values())
    for id in range(len(new)):
        data = new.bytes_of(id)
        found = controls.get(id, NOWHERE) if id in controls else _ordinary(old.id_of(data), old_controls)
        spelled: tuple[int, ...] = ()
        if found == NOWHERE and data and id not in controls:
            spelled, lacking = _spell(old, data)
            if lacking:
                lost[id] = lacking
        same.append(found)
        parts.append(spelled)
    return Match(tuple(same), tuple(parts), lost)


def _ordinary(id: int | None, controls: set[int]) -> int:
    return NOWHERE if id is None or id in controls else id


def _controls(new: Tokenizer, old: Tokenizer) -> dict[int, int]:
    """Return the old id of every new control token, or -1."""
    found = {id: old.special.get(name, NOWHERE) for name, id in new.special.items()}
    for task in ("start_id", "end_id", "padding_id", "unknown_id"):
        ours, theirs = getattr(new.marks, task), getattr(old.marks, task)
        if ours is not None and theirs is not None and found.get(ours, NOWHERE) == NOWHERE:
            found[ours] = theirs
    return found


def _spell(old: Tokenizer, data: bytes) -> tuple[tuple[int, ...], int]:
    """Return the old ids for some bytes, and how many bytes no old token says."""
    try:
        ids = tuple(old.encode(data))
        if old.decode(ids) == data:
            return ids, 0
    except WrongVocabulary:
        pass
    found = [old.id_of(bytes([byte])) for byte in data]
    return tuple(id for id in found if id is not None), found.count(None)


# -- vocabularies made from others ---------------------------------------------------------------------------------
def with_controls(new: Tokenizer, old: Tokenizer) -> Tokenizer:
    """Return a vocabulary with the control tokens, their tasks and the chat template of another.

    Tokens of that name stay where they are; the others get ids behind the last. So a model goes on with the start
    mark and the turns of a chat that it knows. A SentencePiece model, whose file is fixed, keeps its own.
    """
    lacking = [name for name in old.special if name not in new.special]
    special = dict(new.special) | {name: len(new) + n for n, name in enumerate(lacking)}

    def renamed(id: int | None) -> int | None:
        return None if id is None else special[old.bytes_of(id).decode()]

    marks = _renamed(old.marks, renamed)
    if isinstance(new, Ranked):
        return Ranked(new.ranks, new.pattern, special, marks, merges=new._merges, name=new.name)
    if type(new) is not Tokenizer:
        return new
    backend = tokenizers.Tokenizer.from_str(new._backend.to_str())
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in lacking])
    return Tokenizer(backend, marks, name=new.name)


def kept(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Tokenizer, list[int]]:
    """Return a vocabulary that has only some tokens of another, and the old id of each of its ids.

    Byte pair encoding only. What a kept token is merged from is kept as well, and so are control tokens and tokens of a
    single byte: then every text whose tokens were kept is cut as before, and any other text can still be said.

    Raises:
        BadValue: it is not byte pair encoding over bytes.
    """
    source = json.loads(tokenizer._backend.to_str()) if hasattr(tokenizer, "_backend") else {}
    model = source.get("model", {})
    if model.get("type") != "BPE":
        raise BadValue(f"'{tokenizer.name}' is not byte pair encoding; only such a vocabulary can be trimmed.")
    vocab: dict[str, int] = model["vocab"]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    halves: dict[str, list[str]] = {}
    for pair in pairs:
        halves.setdefault("".join(pair), []).extend(pair)
    names = {id: name for name, id in vocab.items()}
    added = {token["content"]: token for token in source.get("added_tokens", [])}
    wanted = {name for id, name in names.items() if len(tokenizer.bytes_of(id)) == 1 or name in added}
    pending = [names[id] for id in ids if id in names]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += halves.get(name, ())
    order = [(id, name) for id, name in sorted(names.items()) if name in wanted]
    outside = sorted((token["id"], name) for name, token in added.items() if name not in vocab)
    renumbered = {name: n for n, (_, name) in enumerate([*order, *outside])}
    model["vocab"] = {name: renumbered[name] for _, name in order}
    model["merges"] = [list(pair) for pair in pairs if {*pair, "".join(pair)} <= wanted]
    for token in source.get("added_tokens", []):
        token["id"] = renumbered[token["content"]]
    for token in _processor_tokens(source.get("post_processor")):
        token["ids"] = [renumbered[name] for name in token["tokens"]]
    old = [id for id, _ in [*order, *outside]]
    backend = tokenizers.Tokenizer.from_str(json.dumps(source))
    return Tokenizer(backend, _renumbered(tokenizer.marks, old), name=f"{tokenizer.name}, trimmed"), old


def _processor_tokens(processor: dict[str, object] | None) -> list[dict[str, list[object]]]:
    """Return the entries in which a TemplateProcessing, alone or in a sequence, holds ids."""
    if not processor:
        return []
    inner = processor.get("processors")
    if isinstance(inner, list):
        return [token for one in inner for token in _processor_tokens(one)]
    special = processor.get("special_tokens")
    return list(special.values()) if isinstance(special, dict) else []


def _renumbered(marks: Marks, old: Sequence[int]) -> Marks:
    new = {id: n for n, id in enumerate(old)}
    return _renamed(marks, lambda id: None if id is None else new.get(id))


def _renamed(marks: Marks, new: Callable[[int | None], int | None]) -> Marks:
    return replace(
        marks,
        start_id=new(marks.start_id),
        end_id=new(marks.end_id),
        padding_id=new(marks.padding_id),
        unknown_id=new(marks.unknown_id),
    )
