"""What is inside a vocabulary: which scripts, which lengths, and tokens that its own rules never give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.tokens import scripts
from kobza.tokens.base import Tokenizer, printable

LONGEST = 20  # bytes; longer tokens share the last row of a table of lengths
_AROUND = (
    (b"", b""), (b"x", b""), (b"x", b"x"), (b"x ", b" x"), (b"\n", b"\n"), (b".", b"."), (b"!", b""), (b"//", b"//"),
    (b"", b"s"), (b"", b"LL"), (b"\n\n", b""), (b"1", b"1"),
)  # fmt: skip


def table(tokenizers: Sequence[Tokenizer], *, reach: bool = True) -> Table:
    """Describe vocabularies, a row each.

    Args:
        tokenizers: the vocabularies.
        reach: also count the tokens that are never given, which encodes every token (seconds for 200,000).

    Returns:
        ids; control tokens; bytes (of 256) without a token; tokens that begin with a space, that hold several words,
        that are no whole characters; mean and greatest length; ids that no token has; tokens never given.
    """
    return Table(
        [_row(tokenizer, reach) for tokenizer in tokenizers],
        units={"mean length": "B", "longest": "B"},
        title="What is inside",
        note="Several words: a space inside. Never given: see the list of such tokens.",
    )


def by_script(tokenizers: Sequence[Tokenizer]) -> Table:
    """Count each vocabulary's tokens by script: a row per script, a column per vocabulary [count]."""
    counts = [Counter(scripts.main_script(token) for _, token in _tokens(tokenizer)) for tokenizer in tokenizers]
    names = sorted(set().union(*counts), key=lambda name: -max(count[name] for count in counts))
    rows = [{"script": name} | {t.name: c[name] for t, c in zip(tokenizers, counts, strict=True)} for name in names]
    return Table(rows, title="Tokens of the vocabulary by script", note="By most of a token's letters.")


def by_length(tokenizers: Sequence[Tokenizer]) -> Table:
    """Return the share of each vocabulary's tokens by length: a row per length [B], a column per vocabulary."""
    rows: list[dict[str, object]] = [{"bytes": n} for n in range(1, LONGEST + 1)]
    series = []
    for tokenizer in tokenizers:
        sizes = Counter(min(len(token), LONGEST) for _, token in _tokens(tokenizer))
        shares = [sizes[n] / sizes.total() for n in range(1, LONGEST + 1)]
        series.append({"name": tokenizer.name, "x": list(range(1, LONGEST + 1)), "y": shares})
        for row, share in zip(rows, shares, strict=True):
            row[tokenizer.name] = share
    title = "Tokens of the vocabulary by length"
    figure = Figure("lines", {"series": series}, title=title, x=f"bytes ({LONGEST}: as many or more)", y="share")
    return Table(rows, title=title, figures=[figure], note=f"The last row: {LONGEST} bytes or more.")


def unreachable(tokenizer: Tokenizer) -> Table:
    """List the tokens that their own vocabulary gives nowhere: neither alone nor among letters, digits, signs, spaces
    or line ends.

    Only tokens that are whole characters are tried, since half characters never stand alone. Where a token can be
    had in other surroundings only, the list is too long.

    Returns:
        A row per token: id, text, and the tokens that its text gives instead.
    """
    rows = [
        {"id": id, "token": printable(token), "gives": "|".join(map(tokenizer.show, instead))}
        for id, token in _tokens(tokenizer)
        if tokenizer.id_of(token) == id and _is_text(token) and (instead := _instead(tokenizer, id, token)) is not None
    ]
    note = (
        "Tried alone and among letters, digits, signs, spaces, line ends: a row of the embedding that texts do not use."
    )
    title = f"Tokens of {tokenizer.name} that are never given"
    return Table(rows, title=title, note=note, order=["id", "token", "gives"])


def _row(tokenizer: Tokenizer, reach: bool) -> dict[str, object]:
    tokens = [token for _, token in _tokens(tokenizer)]
    row: dict[str, object] = {
        "vocabulary": tokenizer.name,
        "ids": len(tokenizer),
        "control tokens": len(tokenizer.special),
        "bytes missing": len(tokenizer.missing_bytes()),
        "begin with a space": sum(token.startswith(b" ") for token in tokens),
        "several words": sum(b" " in token.strip(b" ") for token in tokens),
        "half characters": sum(not _is_text(token) for token in tokens),
        "mean length": sum(map(len, tokens)) / len(tokens),
        "longest": max(map(len, tokens)),
        "unused ids": len(tokenizer) - len(tokens) - len(tokenizer.special),
    }
    return row | ({"never given": len(unreachable(tokenizer))} if reach else {})


def _tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """Yield id and bytes of what is neither a control token nor nothing."""
    special = set(tokenizer.special.values())
    for id in range(len(tokenizer)):
        if id not in special and (token := tokenizer.bytes_of(id)):
            yield id, token


def _instead(tokenizer: Tokenizer, id: int, data: bytes) -> list[int] | None:
    for before, after in _AROUND:
        if id in tokenizer.encode(before + data + after):
            return None
    return tokenizer.encode(data)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
