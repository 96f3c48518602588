"""Commands that make a model smaller and hand it on: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.core.table import Table

To = Annotated[
    str, typer.Option("--to", metavar="FORM", help="hf, or gguf with a type: gguf:f16, gguf:q8_0, gguf:q4_0, ...")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "export", threads=True)(export)


def export(
    model: spec.ModelName,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new folder (hf) or a file (gguf).")],
    to: To = "gguf:q8_0",
    table: Annotated[str, typer.Option(metavar="TYPE", help="GGUF type of the tables of embeddings, if another.")] = "",
    edit: spec.Edits = None,
    dtype: spec.Dtype = "",
) -> Table:
    """Write a model for other software: a folder for transformers, or a GGUF file for llama.cpp.

    What was written is opened again and compared before it is there. Matrices stored as codes keep their very codes
    in a GGUF file, where its blocks can say them.

    Examples:

        kobza export smollm2 small.gguf --to gguf:q8_0
        kobza export smollm2 small.gguf --to gguf:q8_0 -e "gptq:format=q4_0"
        kobza export smollm2 folder --to hf -e layer_drop:layers=5
    """
    from kobza.core.table import Table
    from kobza.recipes import running

    form, _, kind = to.partition(":")
    if form not in ("hf", "gguf") or (form == "hf" and kind):
        raise BadValue(f"--to {to!r} is no form; there are: hf, gguf:TYPE.", "Write for example: --to gguf:q4_0")
    if form == "hf":
        show.require_new_folder(path)
    recipe = spec.make_recipe(model, chains=edit or [], dtype=dtype)
    changed = running.apply(running.open_model(recipe), recipe.points()[0].chain)
    if form == "hf":
        saved = changed.save(path, dense=True)
        row = {"file": str(path), "bytes": saved.file_bytes, "weights": saved.stored_bytes}
        return Table([row | {"largest_difference": saved.largest_difference}], title="Exported", note=saved.statement)
    from kobza.models.gguf_export import export as write

    found = write(changed, path, type=kind or "q8_0", table=table)
    row = {"file": str(path), "bytes": found.file_bytes, "weights": found.tensor_bytes}
    row |= {"kept_codes": found.kept_codes, "largest_difference": found.largest_difference}
    return Table([row], title="Exported", note=", ".join(f"{name} ({count})" for name, count in found.types.items()))
