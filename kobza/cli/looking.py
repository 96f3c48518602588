"""Commands that look: open, tokens, look, measure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.core.table import Table
    from kobza.core.texts import Text

Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Only for sources you trust."),
]
Pickle = Annotated[bool, typer.Option("--convert-pickle", help="Read a pickle checkpoint, its weights only.")]
Allow = Annotated[bool, typer.Option("--allow-nonfinite", help="Open a model with NaN or infinite weights.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "open", brief=_without_every_weight)(open_model)
    command(app, "tokens")(tokens)
    command(app, "look", threads=True)(look)
    command(app, "measure", threads=True)(measure)


def open_model(
    model: spec.ModelName,
    matrices: Annotated[bool, typer.Option("--matrices", help="List every matrix.")] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write it as safetensors to the new folder DIR.")
    ] = None,
    dtype: spec.Dtype = "",
    trust_remote_code: Trust = False,
    convert_pickle: Pickle = False,
    allow_nonfinite: Allow = False,
) -> Result | Table:
    """Open a model and print its anatomy. Matrices, bytes, exact counts of parameters, cache and work.

    Examples:

        kobza open smollm2
        kobza open smollm2 --matrices --csv
        kobza open model.gguf --json
        kobza open model.gguf --save folder
        kobza open pytorch_model.bin --convert-pickle --save folder
    """
    if save is not None:
        show.require_new_folder(save)
    opened = opened_model(
        model,
        dtype,
        trust_remote_code=trust_remote_code,
        convert_pickle=convert_pickle,
        allow_nonfinite=allow_nonfinite,
    )
    if save is not None:
        sys.stderr.write(f"saved {opened.save(save)}\n")
    anatomy = opened.anatomy()
    return _every_weight(anatomy) if matrices else anatomy


def tokens(
    model: spec.ModelName,
    words: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The text itself, or - for standard input; else see --text.")
    ] = None,
    text: spec.Texts = None,
    vocabulary: Annotated[bool, typer.Option("--vocabulary", help="List every token of the vocabulary.")] = False,
    pieces: Annotated[bool, typer.Option("--pieces", help="Print the text cut into its tokens.")] = False,
    others: Annotated[
        str, typer.Option("--with", metavar="A,B,...", help="Compare these vocabularies, and MODEL if TEXT is given.")
    ] = "",
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --with: write the page of all comparisons to FILE.html.")
    ] = None,
) -> Result | Table | str:
    """Show how a model cuts a text into tokens. Ids, exact bytes, the start mark in front.

    A vocabulary file (.tiktoken, tokenizer.json, a SentencePiece .model) or bytes will do instead of a model.

    Examples:

        kobza tokens smollm2 "lava flows"
        kobza tokens smollm2 "lava flows" --pieces
        kobza tokens smollm2 --text poem.txt --csv
        kobza tokens smollm2 --vocabulary -o vocabulary.csv
        kobza tokens "lava flows" --with smollm2,o200k_base.tiktoken,bytes --pieces
        kobza tokens smollm2 --text poem.txt --with o200k_base.tiktoken --page page.html
        kobza tokens smollm2 -t poem.txt -t topics --with o200k_base.tiktoken,bytes --json
    """
    from kobza.cli.pieces import colored, token_table
    from kobza.models.vocabulary import vocabulary as open_vocabulary

    if others:
        from kobza.cli.vocabularies import side_by_side

        is_text = words is None and not text  # then the only word is the text
        names = [*([] if is_text else [model]), *others.split(",")]
        return side_by_side(names, _given(model if is_text else words, text), pieces=pieces, page=page)
    if page is not None:
        raise BadValue("--page compares vocabularies, but --with names none.", "Add: --with smollm2,bytes")
    tokenizer = open_vocabulary(model)
    if vocabulary:
        return tokenizer.table()
    given = _given(words, text)
    if len(given) > 1:
        raise BadValue(f"{len(given)} texts were given.", "Give one, or compare vocabularies on them: --with A,B")
    data = given[0].data
    return colored(tokenizer, data) if pieces else token_table(tokenizer, data)


def look(
    model: spec.ModelName,
    views: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VIEW]...", help="spectrum, projection, neighbors, ...", autocompletion=spec.complete_view
        ),
    ] = None,
    list_views: Annotated[bool, typer.Option("--list", help="List the views.")] = False,
    edit: spec.Edits = None,
    dtype: spec.Dtype = "",
) -> Any:
    """Look at a model's embeddings: one view or several. Options follow the view's name.

    Examples:

        kobza look smollm2 --list
        kobza look smollm2 spectrum -o spectrum.svg
        kobza look smollm2 'neighbors:token=" lava",k=5'
        kobza look smollm2 projection -o map.html
        kobza look smollm2 sizes spectrum -o page.html
        kobza look glove.txt.gz 'words:word="king - man + woman"'

    All options of a view: kobza help neighbors
    """
    from kobza.cli.house import technique_table
    from kobza.cli.spec import parse_technique

    if list_views:
        return technique_table("embeddings")
    if not views:
        raise BadValue("no view was named.", "See all: kobza list embeddings")
    steps = [parse_technique("embeddings", view) for view in views]
    from kobza.embeddings.base import WORD_FILES, subject

    if model.lower().endswith(WORD_FILES) and not edit:
        return _seen(subject(model), steps)
    return _seen(opened_model(model, dtype, edits=edit), steps)


def measure(
    model: spec.ModelName,
    measures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MEASURE]...",
            help="bits_per_byte, packed_size, speed, ... (see: kobza list measures).",
            autocompletion=spec.complete_measure,
        ),
    ] = None,
    text: spec.Texts = None,
    edit: spec.Edits = None,
    seed: spec.Seed = "0",
    dtype: spec.Dtype = "",
) -> Result:
    """Measure a model on a text. Without a measure: bits per byte and stored bytes.

    Examples:

        kobza measure smollm2 --text topics[:4000]
        kobza measure smollm2 bits_per_byte:window=512 packed_size --text poem.txt
        kobza measure smollm2 divergence --edit lowrank:rank=386 --text source
    """
    from kobza.recipes.running import run

    return run(spec.make_recipe(model, chains=edit or (), measures=measures or None, text=text, seed=seed, dtype=dtype))


def opened_model(model: str, dtype: str = "", *, edits: list[str] | None = None, **how: Any) -> Any:
    """Return the opened model, with edits applied."""
    from kobza.core.progress import task

    recipe = spec.make_recipe(model, chains=edits or (), dtype=dtype)  # checked before the model is opened
    from kobza.models import opening
    from kobza.recipes.running import apply

    with task(f"open {model}"):
        opened = opening.open(model, dtype=dtype or None, **how)
    return apply(opened, recipe.points()[0].chain)


def _seen(model: Any, steps: list[Any]) -> Any:
    from kobza.core import techniques
    from kobza.core.options import check
    from kobza.core.progress import progress
    from kobza.core.result import Result

    tables = []
    for step in progress(steps, "look"):
        verb = techniques.verb("embeddings", step.name)
        tables.append(verb(model, **check(verb, step.options, what=f"view {step.name!r}")))
    return tables[0] if len(tables) == 1 else Result(title=f"Embeddings of {model.name}", tables=tables)


def _given(words: str | None, text: list[str] | None) -> list[Text]:
    from kobza.core.texts import Text
    from kobza.core.texts import text as read_text

    if words is not None and text:
        raise BadValue("both a text and --text were given.", "Give one of them.")
    if words in (None, "-"):
        return [read_text(name) for name in text or ["-"]]
    try:
        data = words.encode("utf-8", errors="surrogateescape")  # the bytes that the user typed
    except UnicodeEncodeError as error:
        raise BadValue(f"character {error.start} of the text is half a surrogate pair.") from None
    return [Text("the text", data)]


def _every_weight(anatomy: Result) -> Table:
    return anatomy.tables[-1]


def _without_every_weight(found: Any) -> Any:
    """Return an anatomy without its longest table, which --matrices prints."""
    tables = getattr(found, "tables", None)
    return replace(found, tables=tables[:-1]) if tables else found
