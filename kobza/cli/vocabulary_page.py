"""The page of vocabularies side by side: one file, offline, in the look of the tour.

Short texts are taken line by line and drawn token under token; long ones are counted, and their beginning is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kobza.cli.pieces import token_table
from kobza.cli.tour_page import Chapter, columns, folded, side_by_side, tour_page
from kobza.core.progress import progress
from kobza.core.render import heading
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.tokens import aligned, compare, inside, rates, segmentation
from kobza.tokens.ranks import Ranked, bytes_vocabulary

if TYPE_CHECKING:
    from kobza.tokens.base import Tokenizer

SHORT = 1500  # bytes; a longer text is a corpus
DRAWN = 300  # bytes of a corpus drawn as tokens
CUT = 200_000  # bytes of a corpus whose words are cut in three ways
LISTED = 25  # disagreements listed of a corpus
NEVER = 12  # tokens listed that are never given
LEAD = (
    "The same bytes cut by several vocabularies. Start marks are shown where a model is used with one and are not "
    "counted; names of control tokens inside a text are letters."
)
Tokenizers = Sequence["Tokenizer"]


def page(tokenizers: Tokenizers, texts: Sequence[Text], command: str = "") -> str:
    """Return the page.

    Args:
        tokenizers: vocabularies of different names.
        texts: texts of different names; those of at most `SHORT` bytes are taken line by line.
        command: the command line that makes the page.
    """
    rates.same_names(texts)
    lines = [line for text in texts if len(text) <= SHORT for line in text.string.splitlines() if line]
    corpora = [text for text in texts if len(text) > SHORT]
    words = _words([*lines, *(corpus[:DRAWN].string for corpus in corpora)])
    jobs: list[Callable[[], Chapter]] = [lambda: _sentences(tokenizers, lines, command)] if lines else []
    if corpora:
        chapters = (_begin, _counts, _disagreements, _entropies, _ways)
        jobs += [lambda chapter=chapter: chapter(tokenizers, corpora) for chapter in chapters]  # type: ignore[misc]
    jobs += [lambda: _shared(tokenizers, corpora), lambda: _inside(tokenizers), lambda: _merges(tokenizers, words)]
    tiles = [(f"{len(tokenizer):,}", f"ids of {tokenizer.name}") for tokenizer in tokenizers]
    return tour_page("Vocabularies side by side", LEAD, tiles, [job() for job in progress(jobs, "compare")])


def _sentences(tokenizers: Tokenizers, lines: Sequence[str], command: str) -> Chapter:
    blocks: list[Any] = []
    for line in lines:
        blocks += [heading(line, 3), aligned.html(tokenizers, line)]
        tables = (_narrow(token_table(tokenizer, line.encode())) for tokenizer in tokenizers)
        blocks.append(folded("as tables: place, id, bytes", columns(*tables)))
    claim = (
        "Each row is one vocabulary, with the id below each token. One color is one stretch of text that all "
        "vocabularies end together; an orange frame says that one cuts it otherwise than most do. A space is ▁, half a "
        "character \\x.., and a dashed box the start mark."
    )
    return Chapter("sentences", "Sentences, token under token", claim, blocks, command)


def _narrow(table: Table) -> Table:
    kept = ("id", "token", "bytes", "kind")
    rows = [{name: row[name] for name in kept if name != "kind" or row["kind"]} for row in table]
    return Table(rows, title=table.title, note=table.note)


def _begin(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    blocks: list[Any] = []
    for corpus in corpora:
        blocks += [heading(_short(corpus.name), 3), aligned.html(tokenizers, corpus[:DRAWN])]
    claim = f"The first {DRAWN} bytes of each text, in the same manner."
    return Chapter("texts", "How the texts begin", claim, blocks)


def _counts(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    by_text = rates.by_text(tokenizers, [Text(_short(c.name), c.data) for c in corpora])
    blocks: list[Any] = [rates.wide(by_text, "text", value) for value in ("tokens", *rates.RATES)]
    for corpus in corpora:
        by_script = rates.by_script(tokenizers, corpus)
        tables = [rates.wide(by_script, "script", value) for value in rates.RATES]
        for table in tables[:-1]:
            table.note = ""
        blocks += [heading(f"By script: {_short(corpus.name)}", 3), *tables]
    claim = "Rates by byte compare languages; rates by character or word compare vocabularies on one language."
    return Chapter("counts", "Tokens a byte, a character, a word", claim, blocks, "kobza tokens ... --with ... --json")


def _disagreements(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    tables = []
    for corpus in corpora:
        table = compare.disagreements(tokenizers, corpus[:CUT])
        listed = table.head(LISTED)
        listed.title, listed.figures = f"{_short(corpus.name)}, first {len(corpus[:CUT]):,} bytes", []
        tables.append(listed)
    claim = "The stretches of text that are cut differently, the most frequent first; a bar is a cut."
    return Chapter("disagreements", "Where they disagree", claim, tables)


def _entropies(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    tables = []
    plain = [] if "bytes" in (tokenizer.name for tokenizer in tokenizers) else [bytes_vocabulary()]
    for corpus in corpora:
        table = compare.table([*tokenizers, *plain], corpus)
        kept = ("vocabulary", "ids", "tokens", "fixed width", "entropy", "Huffman")
        rows = [{name: row[name] for name in kept} for row in table]
        tables.append(Table(rows, units=table.units, title=_short(corpus.name)))
    claim = (
        "What a text takes if its ids are written with a fixed number of bits, by their entropy, in Huffman's code; "
        "the last row does the same with the bytes themselves. The tables of frequencies are not counted."
    )
    return Chapter("entropies", "As bits", claim, tables)


def _ways(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    tables = []
    for corpus in corpora:
        table = segmentation.summary(tokenizers, corpus[:CUT])
        table.title = f"{_short(corpus.name)}, first {len(corpus[:CUT]):,} bytes"
        tables.append(table)
    claim = (
        "The vocabulary's own cut of each word against the longest token that fits, and against as few tokens as "
        "possible; shares are of running words."
    )
    return Chapter("ways", "Merges, longest match, fewest tokens", claim, tables)


def _shared(tokenizers: Tokenizers, corpora: Sequence[Text]) -> Chapter:
    tables = [compare.overlap(tokenizers)]
    for corpus in corpora:
        table = compare.lacking(tokenizers, corpus)
        table.title = f"Share of running tokens that the column lacks: {_short(corpus.name)}"
        tables.append(table)
    claim = "What two vocabularies share, counted once a token, and counted as often as a text uses it."
    return Chapter("shared", "What they share", claim, tables)


def _inside(tokenizers: Tokenizers) -> Chapter:
    lengths = inside.by_length(tokenizers)
    blocks: list[Any] = [inside.table(tokenizers), inside.by_script(tokenizers), lengths.figures[0]]
    for tokenizer in tokenizers:
        never = inside.unreachable(tokenizer)
        if len(never):
            listed = never.head(NEVER)
            listed.title = f"{never.title}: {len(never):,}, the first {len(listed)}"
            blocks.append(folded(f"{tokenizer.name}: {len(never):,} tokens that are never given", listed))
    claim = "Scripts and lengths of the tokens themselves, and tokens that their own tokenizer does not give."
    return Chapter("inside", "What is inside", claim, blocks)


def _merges(tokenizers: Tokenizers, words: Sequence[str]) -> Chapter:
    blocks: list[Any] = []
    for word in words:
        tables = [segmentation.steps(t, " " + word) for t in tokenizers if isinstance(t, Ranked)]
        blocks += [heading(word, 3), side_by_side(*tables)] if tables else []
    claim = "From bytes to tokens, one merge a row, the lowest rank first. For vocabularies of ranks."
    return Chapter("merges", "Merges, step by step", claim, blocks)


def _words(samples: Sequence[str]) -> list[str]:
    """Return two words to play: the longest of the first text and of the last."""
    found = [max(re.findall(r"\w+", sample), key=len, default="") for sample in samples]
    return list(dict.fromkeys(word for word in (*found[:1], *found[-1:]) if word))


def _short(name: str) -> str:
    """Return a text's name without its folders."""
    return name.rpartition("/")[2]
