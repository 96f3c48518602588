"""All commands in one place, in the order in which `kobza --help` shows them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kobza import __version__
from kobza.cli import (
    changing,
    house,
    intervening,
    looking,
    moving,
    packing,
    shrinking,
    speaking,
    training,
    vocabulary_training,
)
from kobza.cli.frame import kept_lines

HELP = """An instrument for language models: open one, look inside, change it, let it speak, measure what changed.

    kobza open smollm2                                  what it is made of
    kobza look smollm2 neighbors:token=" lava"          look at its embeddings
    kobza edit smollm2 lowrank:rank=386 --save small    change it, measure it, keep it
    kobza sweep smollm2 "lowrank:rank=64..576:64"       one edit at many strengths
    kobza train poems.txt --budget 300s --save poems    train a new one on a text
    kobza say smollm2 "Why is the sky blue?"            let it speak
"""


def build() -> Any:
    """Return the command line as a click command; nothing heavy is imported for it."""
    app = typer.Typer(
        name="kobza",
        help=kept_lines(HELP),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
    )
    app.callback()(_options)
    for room in (
        looking,
        intervening,
        changing,
        moving,
        shrinking,
        training,
        vocabulary_training,
        speaking,
        packing,
        house,
    ):
        room.register(app)
    return typer.main.get_command(app)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"kobza {__version__}")
        raise typer.Exit(0)


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass
