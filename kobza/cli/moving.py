"""The command that moves a model onto another vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kobza.cli import changing, spec
from kobza.cli.frame import command

if TYPE_CHECKING:
    from kobza.core.result import Result


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "transplant", threads=True)(transplant)


def transplant(
    model: spec.ModelName,
    vocabulary: Annotated[
        str, typer.Argument(metavar="VOCABULARY", help="A vocabulary file, or a model that has one.")
    ],
    method: Annotated[
        str, typer.Option(help="chained, fitted, hybrid, neighbors, subtokens, mean, random.")
    ] = "chained",
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="Updates of both tables afterwards.")] = 0,
    leak: Annotated[bool, typer.Option("--leak", help="Fit one constant against probability on new rows.")] = False,
    text: spec.Texts = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the model to the new folder DIR.")] = None,
    seed: spec.Seed = "0",
) -> Result:
    """Move a model onto another vocabulary, and measure it before and after.

    Examples:

        kobza transplant smollm2 r50k_base.tiktoken --text article.txt
        kobza transplant smollm2 o200k_base.tiktoken --save moved

    All options: kobza help transplant, for kobza edit MODEL transplant:vocabulary=FILE,...
    """
    words = f'transplant:vocabulary="{vocabulary}",method={method},steps={steps},leak={"fit" if leak else "none"}'
    return changing.edit(model, [words], text=text, save=save, seed=seed)
