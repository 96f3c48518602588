"""The command that trains a vocabulary: byte pair encoding, or supertokens that may span words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core.errors import BadValue, UnknownName

if TYPE_CHECKING:
    from kobza.core.table import Table
    from kobza.core.texts import Text
    from kobza.tokens.pairs import Trained

TRAINERS = ("pairs", "supertokens")
SUFFIXES = (".tiktoken", ".json")
SHOWN = 20  # merges listed on a terminal


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "vocabulary", brief=_first_merges)(vocabulary)


def complete_trainer(incomplete: str) -> list[str]:
    """Return trainers that begin so."""
    return [name for name in TRAINERS if name.startswith(incomplete)]


def vocabulary(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="topics, source, a file, ...; a slice may follow.", autocompletion=spec.complete_text
        ),
    ],
    trainer: Annotated[
        str,
        typer.Argument(
            metavar="[SPEC]",
            help="pairs:size=8192,pattern=gpt2,least=2 or supertokens:size=8192,by=words,seed=0.",
            autocompletion=complete_trainer,
        ),
    ] = "pairs",
    more: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", metavar="TEXT", help="A further text. May be given several times."),
    ] = None,
    held_out: Annotated[
        str, typer.Option("--held-out", metavar="TEXT", help="Count the tokens of this other text as well.")
    ] = "",
    save: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write own.tiktoken or own.json (a tokenizer.json). May be given twice."),
    ] = None,
) -> Table:
    """Train a vocabulary on a text and list its merges with their counts.

    pairs is byte pair encoding (size, pattern: gpt2, cl100k, o200k, none or a regular expression; special: control
    tokens; least: the rarest pair that is joined; name). supertokens may span words (by: words, characters, stages;
    first; seed; size, special, least, name).

    Examples:

        kobza vocabulary poems.txt pairs:size=8192 --save poems.tiktoken --save poems.json
        kobza vocabulary topics 'supertokens:size=4096,by=stages' --held-out source --save super.json
        kobza vocabulary topics pairs:size=1024,pattern=o200k,special=none --csv
    """
    name, options = _checked(trainer)
    files = save or []
    _require(files)
    from kobza.core.texts import text as read_text

    texts = [read_text(one) for one in (text, *(more or []))]
    other = read_text(held_out) if held_out else None
    trained = _train(name, texts, options)
    for file in files:
        _save(trained, file)
    table = trained.history()
    table.note = _said(trained, texts, other, _notice(name, options))
    return table


def _checked(words: str) -> tuple[str, dict[str, Any]]:
    """Read the trainer and its options, checked against its signature; nothing of it is imported."""
    from kobza.core.options import check, options_in, parse

    step = parse(words)
    if step.name not in TRAINERS:
        raise UnknownName.of("trainer of vocabularies", step.name, TRAINERS)
    source = Path(__file__).resolve().parents[1] / "tokens" / f"{step.name}.py"
    return step.name, check(options_in(source, "train"), step.options, what=f"trainer {step.name!r}")


def _require(files: Sequence[Path]) -> None:
    for file in files:
        if file.suffix not in SUFFIXES:
            raise BadValue(f"cannot tell the format of '{file}'.", f"Suffixes: {', '.join(SUFFIXES)}")
        show.require_writable(file)


def _train(name: str, texts: Sequence[Text], options: dict[str, Any]) -> Trained:
    from kobza.tokens import pairs, supertokens

    return pairs.train(texts, **options) if name == "pairs" else supertokens.train(texts, **options)


def _save(trained: Trained, file: Path) -> None:
    if file.suffix == ".json":
        sys.stderr.write(f"saved {trained.save_json(file)}\n")
        return
    lacks = "ranks only: a .json holds the split pattern and the control tokens as well"
    sys.stderr.write(f"saved {trained.save_ranks(file)} ({lacks})\n")


def _notice(name: str, options: dict[str, Any]) -> str:
    from kobza.tokens import supertokens

    is_drawn = name == "supertokens" and options.get("by") == "characters"
    return supertokens.notice(supertokens.PUBLISHED) if is_drawn else ""


def _said(trained: Trained, texts: Sequence[Text], other: Text | None, notice: str) -> str:
    """Return in a few sentences what was made and how well it packs."""
    size, ids = sum(map(len, texts)), sum(len(trained.encode(text.data)) for text in texts)
    special = f", control tokens: {', '.join(trained.special)}" if trained.special else ""
    parts = [
        f"{len(trained):,} ids: 256 bytes, {len(trained.merges):,} merges{special}.",
        f"{size / ids:.3f} bytes a token on its own {size:,} bytes.",
    ]
    if other is not None:
        ids = len(trained.encode(other.data))
        parts.append(f"Held out ({other.name}): {len(other) / ids:.3f} bytes a token, {ids:,} tokens.")
    return " ".join([*parts, *([notice] if notice else [])])


def _first_merges(found: Any) -> Any:
    """Return the table with its first merges only, for a terminal."""
    if len(found) <= SHOWN:
        return found
    short = found.head(SHOWN)
    short.note = f"{len(found) - SHOWN:,} further merges: --csv, --json or -o FILE. {found.note}"
    return short
