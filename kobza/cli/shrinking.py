"""Commands that make a model smaller and hand it on: shrink, merge, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.core.table import Table
    from kobza.recipes.recipe import Recipe

To = Annotated[
    str, typer.Option("--to", metavar="FORM", help="hf, or gguf with a type: gguf:f16, gguf:q8_0, gguf:q4_0, ...")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "shrink", threads=True)(shrink)
    command(app, "merge", threads=True)(merge)
    command(app, "export", threads=True)(export)


def shrink(
    model: spec.ModelName,
    to: Annotated[str, typer.Option("--to", metavar="BYTES", help="At most 60% of the base, or 80M.")] = "",
    lose: Annotated[float | None, typer.Option(metavar="BITS", help="Lose at most so many bits per byte: 0.02")] = None,
    speed: Annotated[str, typer.Option(metavar="FACTOR", help="Generate at least 2x as many tokens a second.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--save", metavar="PATH", help="Write the winner: a file for gguf, else a new folder."),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--as", metavar="FORM", help="gguf: llama.cpp. codes: a folder of kobza. hf: plain transformers, bfloat16."
        ),
    ] = "gguf",
    of: Annotated[
        str, typer.Option("--of", metavar="BASE", help="The base: file (it came from), 16 (bits a weight), opened.")
    ] = "",
    attempts: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="SPEC", help="Edits of the shape to try first. May be given several times."),
    ] = None,
    text: spec.Texts = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Choose on these texts. May be given several times.")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens that rounding reads.")] = 2048,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the journal in DIR.")] = None,
    dtype: spec.Dtype = "",
) -> Result:
    """Find the best composition of edits within a budget, measure it on held-out text, write it with its recipe.

    Several budgets hold together. Every matrix gets the form that costs least; layers are dropped, and what --try
    names is tried, where forms alone do not reach the budget. Killed, the same command goes on where it was. How it
    searches, and what a share is of: docs/shrinking.md.

    Examples:

        kobza shrink smollm2 --to 80% --save small.gguf
        kobza shrink smollm2 --lose 0.02 --of 16 --save small.gguf
        kobza shrink smollm2 --speed 2x --of 16 --save fast.gguf -o frontier.html
        kobza shrink smollm2 --to 60% --try "trimming" --save small.gguf
        kobza export small.gguf.yaml again.gguf --to gguf:f16
    """
    from kobza.recipes import shrink as search_for

    if out is not None:
        show.require_writable(out) if form == "gguf" else show.require_new_folder(out)
    texts: dict[str, Any] = {"text": text} if text else {}
    texts |= {"search": search} if search else {}
    how: dict[str, Any] = {"form": form, "of": of, "attempts": attempts or (), "out": out, "folder": folder}
    how |= {"calibration_tokens": calibration_tokens, "dtype": dtype}
    return search_for.shrink(model, to=to, lose=lose, speed=speed, **texts, **how)


def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to merge and how.")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the merged model to the new folder DIR.")
    ] = None,
    line: Annotated[
        int, typer.Option(min=0, metavar="POINTS", help="Measure so many points on the line between the two models.")
    ] = 0,
    text: spec.Texts = None,
) -> Result:
    """Merge models of one family, shape and vocabulary, as a YAML recipe says; mergekit's words are understood.

    Methods: linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, passthrough. A recipe:

        merge_method: ties
        base_model: smollm2
        models:
          - model: folder/of/another
            parameters: {weight: 1.0, density: 0.5}

    Models of two families, vocabularies or shapes, or only one of them tied, are refused with the reason.

    Examples:

        kobza merge recipe.yaml --save merged
        kobza merge recipe.yaml --line 5 --text "topics[:4000]" -o barrier.html
    """
    from kobza.recipes import merge_recipe

    if save is not None:
        show.require_new_folder(save)
    return merge_recipe.run(merge_recipe.load(recipe), save=save, line=line, text=text or ())


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
    in a GGUF file, where its blocks can say them. MODEL may be a recipe (.yaml): its model with its edits.

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
    recipe = _recipe(model, edit or [], dtype)
    changed = running.apply(running.open_model(recipe), recipe.points()[0].chain)
    if form == "hf":
        saved = changed.save(path, dense=True, texts={"recipe.yaml": recipe.to_yaml()})
        row = {"file": str(path), "bytes": saved.file_bytes, "weights": saved.stored_bytes}
        return Table([row | {"largest_difference": saved.largest_difference}], title="Exported", note=saved.statement)
    from kobza.models.gguf_export import export as write

    found = write(changed, path, type=kind or "q8_0", table=table, texts={"yaml": recipe.to_yaml()})
    row = {"file": str(path), "bytes": found.file_bytes, "weights": found.tensor_bytes}
    row |= {"kept_codes": found.kept_codes, "largest_difference": found.largest_difference}
    return Table([row], title="Exported", note=", ".join(f"{name} ({count})" for name, count in found.types.items()))


def _recipe(model: str, edits: list[str], dtype: str) -> Recipe:
    """The recipe that words describe, or that a file holds."""
    from dataclasses import replace

    from kobza.recipes.recipe import Recipe as File
    from kobza.recipes.recipe import chain

    if not model.endswith((".yaml", ".yml")):
        return spec.make_recipe(model, chains=edits, dtype=dtype)
    found = File.load(model).check()
    if found.is_sweep:
        raise BadValue(f"the recipe '{model}' has ranges: it is many models.", "Name single values.")
    more = tuple(step for line in edits for step in chain(line))
    return replace(found, steps=(*found.steps, *more), dtype=dtype or found.dtype).check()
