"""The look of the tour: chapters, prose with numbers, pictures side by side. Everything shown is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from kobza.core.render import Html, fragment, page


@dataclass(frozen=True)
class Chapter:
    """One chapter of the page.

    Attributes:
        name: its anchor and its word in the contents.
        title: its heading.
        claim: one or two sentences that say what is seen.
        blocks: what follows: figures, tables, readings, `Html`.
        command: the command line that shows the same.
        numbers: the figures behind its sentences, for the summary and for tests.
    """

    name: str
    title: str
    claim: str
    blocks: Sequence[Any] = ()
    command: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def tour_page(title: str, lead: str, tiles: Iterable[tuple[str, str]], chapters: Sequence[Chapter]) -> str:
    """Return the page: tiles of (value, what it is) on top, contents, chapters."""
    style = (Path(__file__).parent / "assets" / "tour.css").read_text(encoding="utf-8")
    contents = "".join(f'<a href="#{escape(c.name)}">{escape(c.name.replace("-", " "))}</a>' for c in chapters)
    blocks = [
        Html(f"<style>{style}</style>"),
        Html('<div class="hero">' + "".join(_tile(*tile) for tile in tiles) + "</div>"),
        Html(f'<nav class="contents">{contents}</nav>'),
        *(_chapter(number, chapter) for number, chapter in enumerate(chapters, 1)),
    ]
    return page(title, blocks, lead=lead)


def side_by_side(*things: Any) -> Html:
    """Return things in columns as wide screens allow."""
    return Html('<div class="side">' + "".join(f"<div>{fragment(thing)}</div>" for thing in things) + "</div>")


def columns(*things: Any) -> Html:
    """Return narrow things, such as short tables, in as many columns as fit."""
    return Html('<div class="columns">' + "".join(f"<div>{fragment(thing)}</div>" for thing in things) + "</div>")


def folded(title: str, *things: Any) -> Html:
    """Return things behind a title that opens them."""
    return Html(f"<details><summary>{escape(title)}</summary>{''.join(map(fragment, things))}</details>")


def learned(sentences: Iterable[str]) -> Html:
    """Return sentences set off as what follows from the figures."""
    return Html('<div class="learned">' + "".join(f"<p>{escape(s)}</p>" for s in sentences) + "</div>")


def said(prompt: str, samples: Iterable[tuple[str, str, str]]) -> Html:
    """Return what models said: (title, figure, text) each."""
    cells = (
        f"<div><h4><span>{escape(figure)}</span>{escape(title)}</h4><p><b>{escape(prompt)}</b>{escape(_flat(text))}</p>"
        "</div>"
        for title, figure, text in samples
    )
    return Html('<div class="said">' + "".join(cells) + "</div>")


def _flat(text: str) -> str:
    """Return a text in one paragraph, its line breaks visible: `one\\ntwo` becomes `one \N{RETURN SYMBOL} two`."""
    return re.sub(r"\s*\n\s*", " \N{RETURN SYMBOL} ", text)


def _tile(value: str, what: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>"


def _chapter(number: int, chapter: Chapter) -> Html:
    command = f'<p class="try">The same on the command line: <code>{escape(chapter.command)}</code></p>'
    return Html(
        f'<section id="{escape(chapter.name)}"><h2><small>{number}</small>{escape(chapter.title)}</h2>'
        f'<p class="claim">{escape(chapter.claim)}</p>'
        + "\n".join(fragment(block) for block in chapter.blocks)
        + (command if chapter.command else "")
        + "</section>"
    )
