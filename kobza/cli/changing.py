"""Commands that change and measure: edit, sweep, run, runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core.errors import BadValue

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.core.table import Table

Specs = Annotated[
    list[str],
    typer.Argument(metavar="SPEC...", help="name:option=value,option=value", autocompletion=spec.complete_edit),
]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Processes; 0: one per processor, up to 8.")]
Shard = Annotated[str, typer.Option(metavar="I/N", help="Measure only the I-th of N parts.")]
Merge = Annotated[
    list[Path] | None,
    typer.Option("--merge", metavar="FOLDER", help="Take over finished points of another run's folder."),
]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="What a worker may allocate: 4G (Linux).")]
Limit = Annotated[str, typer.Option("--time-limit", metavar="TIME", help="What a point may take: 90s, 10m.")]
Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the run in DIR, not in the runs folder.")]
Keep = Annotated[Path | None, typer.Option("--save", metavar="DIR", help="Write the result to the new folder DIR.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "edit", threads=True)(edit)
    command(app, "sweep", then=_require_whole)(sweep)
    command(app, "run", threads=True, then=_require_whole)(run)
    command(app, "runs")(runs)


def edit(
    model: spec.ModelName,
    specs: Specs,
    text: spec.Texts = None,
    measure: spec.Measures = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the edited model to the new folder DIR.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Save factors multiplied back, so that plain transformers opens the folder.")
    ] = False,
    seed: spec.Seed = "0",
    dtype: spec.Dtype = "",
    title: spec.Title = "",
) -> Result:
    """Change a model, and measure it before and after. Several edits are applied one after another.

    Examples:

        kobza edit smollm2 lowrank:rank=386
        kobza edit smollm2 lowrank:rank=386,where=embed.in noise:strength=0.1 --save edited
        kobza edit smollm2 scaling:factor=0.5 --text poem.txt --measure divergence

    All edits: kobza list edits. Options of one: kobza help lowrank
    """
    if save is not None:
        show.require_new_folder(save)
    recipe = spec.make_recipe(model, chains=specs, measures=measure, text=text, seed=seed, dtype=dtype, title=title)
    if recipe.is_sweep:
        raise BadValue("a range or alternatives were given, which is a sweep.", f"Write: kobza sweep {model} ...")
    from kobza.recipes.running import execute

    result, edited = execute(recipe)
    if save is not None:
        saved = edited.save(save, dense=dense)
        result.made_by["saved"] = str(saved)
        sys.stderr.write(f"saved {saved}\n")
    return result


def sweep(
    model: spec.ModelName,
    specs: Specs,
    text: spec.Texts = None,
    measure: spec.Measures = None,
    seed: spec.Seed = "0",
    dtype: spec.Dtype = "",
    title: spec.Title = "",
    workers: Workers = 0,
    shard: Shard = "",
    merge: Merge = None,
    memory: Memory = "",
    time_limit: Limit = "",
    folder: Folder = None,
    save: Keep = None,
) -> Result:
    """Measure edits over ranges of their options. Killed, the same command goes on where it was.

    Ranges: 64..576:64 in steps of 64; 64..512:*2 doubling; 64|128|256 each of them; 0..4 every whole number when at
    most 16 apart, else doubling. Several at once give every combination. Several SPECs are compared.

    Examples:

        kobza sweep smollm2 "lowrank:rank=64..576:64"
        kobza sweep smollm2 "lowrank:rank=64..512,where=embed.in|embed" "random_projection:rank=64..512" --seed 0..2
        kobza sweep smollm2 "noise:strength=0.1..1.6" --text topics[:4000] --text source[:4000] -o noise.csv

    On several machines, then together:

        kobza sweep smollm2 "lowrank:rank=64..576:64" --shard 1/2 --folder part1
        kobza sweep smollm2 "lowrank:rank=64..576:64" --merge part1 --merge part2
    """
    from kobza.recipes.runs import folder_of

    if save is not None:
        show.require_new_folder(save)
    recipe = spec.make_recipe(model, compare=specs, measures=measure, text=text, seed=seed, dtype=dtype, title=title)
    place = folder or folder_of(recipe)
    how = {"workers": workers, "shard": shard, "folder": place, "merge": merge or []}
    result = _swept(recipe, memory=spec.byte_size(memory), seconds=spec.seconds(time_limit), **how)
    if save is not None:
        result.save(save)
    return result


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe to run.")],
    workers: Workers = 0,
    shard: Shard = "",
    merge: Merge = None,
    memory: Memory = "",
    time_limit: Limit = "",
    folder: Folder = None,
    save: Keep = None,
) -> Result:
    """Run a recipe from a file. With ranges it is a sweep. The result is kept in the runs folder.

    A recipe:

        open: smollm2
        steps:
          - lowrank: {rank: 64..576:64, where: embed}
        measures: [bits_per_byte, stored_bytes]
        text: ["topics[:4000]"]
        seed: 0

    Examples:

        kobza run lowrank.yaml
        kobza run lowrank.yaml --save result
    """
    from kobza.recipes import runs as shelf
    from kobza.recipes.recipe import Recipe
    from kobza.recipes.running import run as run_once

    if save is not None:
        show.require_new_folder(save)
    wanted = Recipe.load(recipe).check()
    if wanted.is_sweep:
        how = {"workers": workers, "shard": shard, "folder": folder, "merge": merge or []}
        result = _swept(wanted, memory=spec.byte_size(memory), seconds=spec.seconds(time_limit), **how)
    else:
        shelf.begin(wanted, folder)
        result = run_once(wanted)
        shelf.keep(wanted, result, folder)
    if save is not None:
        result.save(save)
    return result


def runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="None: list all. One: show it. Two: compare.", autocompletion=spec.complete_run
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the runs named.")] = False,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print the recipe of the run named.")] = False,
    path: Annotated[bool, typer.Option("--path", help="Print the folder of the run named.")] = False,
) -> Result | Table | str:
    """List runs, show one, compare two, remove some. The beginning of a name is enough.

    Examples:

        kobza runs
        kobza runs smollm2-lowrank -o report.html
        kobza runs smollm2-lowrank smollm2-noise
        kobza runs smollm2-lowrank --recipe > again.yaml
        kobza runs smollm2-noise --remove
    """
    from kobza.recipes import runs as shelf

    found = [shelf.find(name) for name in names or []]
    if remove:
        _require(found, "--remove")
        return "\n".join(f"removed {shelf.remove(run.name)}" for run in found)
    if recipe or path:
        _require(found, "--recipe" if recipe else "--path")
        return "\n".join(run.recipe.to_yaml() if recipe else str(run.folder) for run in found)
    if len(found) > 2:
        raise BadValue(f"{len(found)} runs were named; one is shown, two are compared.", "Name two.")
    if len(found) == 2:
        return shelf.compare(found[0].name, found[1].name)
    return found[0].result() if found else shelf.listing()


def _swept(recipe: Any, **how: Any) -> Result:
    from kobza.recipes.sweep import sweep as run_sweep

    return run_sweep(recipe, **how)


def _require_whole(found: Any) -> None:
    from kobza.recipes.sweep import require_whole

    require_whole(found)


def _require(found: list[Any], option: str) -> None:
    if not found:
        raise BadValue(f"{option} needs the name of a run.", "See all: kobza runs")
