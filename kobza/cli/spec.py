"""Words of the command line: shared arguments, completion, and how words become a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kobza.core import techniques, texts
from kobza.core.errors import BadValue, KobzaError

if TYPE_CHECKING:
    from kobza.core.options import Step
    from kobza.recipes.recipe import Recipe

MODELS = ("smollm2", "kobzar", "tiny")


def complete_model(incomplete: str) -> list[str]:
    """Return names of models that begin so."""
    return [name for name in MODELS if name.startswith(incomplete)]


def complete_text(incomplete: str) -> list[str]:
    """Return names of texts that begin so."""
    return [name for name in texts.names() if name.startswith(incomplete)]


def complete_edit(incomplete: str) -> list[str]:
    """Return edits, or the options of the edit at hand, that begin so."""
    return complete_spec("edits", incomplete)


def complete_view(incomplete: str) -> list[str]:
    """Return views, or the options of the view at hand, that begin so."""
    return complete_spec("embeddings", incomplete)


def complete_measure(incomplete: str) -> list[str]:
    """Return measures, or the options of the measure at hand, that begin so."""
    return complete_spec("measures", incomplete)


def complete_strategy(incomplete: str) -> list[str]:
    """Return decoding strategies, or the options of the one at hand, that begin so."""
    return complete_spec("decoding", incomplete)


def complete_anything(incomplete: str) -> list[str]:
    """Return names of techniques of every room that begin so."""
    return sorted({n for room in techniques.rooms() for n in techniques.names(room) if n.startswith(incomplete)})


def complete_run(incomplete: str) -> list[str]:
    """Return names of runs that begin so."""
    from kobza.recipes.runs import runs

    return [run.name for run in runs() if run.name.startswith(incomplete)]


def complete_spec(room: str, incomplete: str) -> list[str]:
    """Return what may follow: a technique's name, or after its colon its options; nothing is imported.

    >>> complete_spec("edits", "lowr")
    ['lowrank']
    """
    name, colon, rest = incomplete.partition(":")
    try:
        if not colon:
            return [n for n in techniques.names(room) if n.startswith(name)]
        given, comma, last = rest.rpartition(",")
        known = [o.name for o in techniques.described(room, name)]
        return [f"{name}:{given}{comma}{o}=" for o in known if o.startswith(last) and f"{o}=" not in given]
    except KobzaError:
        return []


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='smollm2, kobzar, a hub id "org/name[@revision]", a folder, a .safetensors or .gguf file, or tiny.',
        autocompletion=complete_model,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "-t",
        metavar="TEXT",
        help='topics, source, ukrainian, a file, or - for standard input; "topics[:4000]" takes the first 4000 bytes. '
        "May be given several times.",
        autocompletion=complete_text,
    ),
]
Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        "-m",
        metavar="MEASURE",
        help="What to measure: bits_per_byte, divergence, ... (see: kobza list measures). May be given several times.",
        autocompletion=complete_measure,
    ),
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        "-e",
        metavar="SPEC",
        help="Apply this edit first: lowrank:rank=64. May be given several times.",
        autocompletion=complete_edit,
    ),
]
Seed = Annotated[str, typer.Option(metavar="N", help="Where randomness starts; a sweep draws several times: 0..4")]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="Number format of the opened weights: float32, bfloat16, float16.")
]
Title = Annotated[str, typer.Option(metavar="WORDS", help="What to call the run.")]


def make_recipe(
    model: str,
    *,
    chains: Sequence[str] = (),
    compare: Sequence[str] = (),
    measures: Sequence[str] | None = None,
    text: Sequence[str] | None = None,
    seed: str = "0",
    title: str = "",
    dtype: str = "",
) -> Recipe:
    """Return the checked recipe that words describe.

    Args:
        model: what to open.
        chains: edits applied one after another.
        compare: chains measured beside each other.
        measures: what to measure; None for the usual.
        text: on what; None for the usual.
        seed: a number, or a range.
        title: what to call it.
        dtype: number format.
    """
    from kobza.recipes.recipe import MEASURES, TEXT, Recipe, chain

    return Recipe(
        open=model,
        dtype=dtype,
        steps=tuple(step for line in chains for step in chain(line)),
        compare=tuple(chain(line) for line in compare),
        measures=tuple(step for line in measures or MEASURES for step in chain(line)),
        text=tuple(text or TEXT),
        seed=seed,
        title=title,
    ).check()


def parse_technique(room: str, spec: str) -> Step:
    """Read `name:option=value` and check it against the technique of that room; nothing is imported."""
    from kobza.core.options import Step, check, parse

    step = parse(spec)
    what = f"{techniques.SINGULAR[room]} {step.name!r}"
    return Step(step.name, check(techniques.described(room, step.name), step.options, what=what))


def byte_size(words: str) -> int:
    """Read a size in bytes: 4G, 500M, 1.5GiB, 1000000; "" is 0, no limit.

    >>> byte_size("4G"), byte_size("1.5GiB"), byte_size("")
    (4000000000, 1610612736, 0)
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    units |= {f"{unit}i": 1024**i for i, unit in enumerate(units) if unit}
    text = words.strip().lower().removesuffix("b")
    number = text.rstrip("kmgti")
    try:
        return int(float(number or text) * units[text[len(number) :]]) if text else 0
    except (KeyError, ValueError, OverflowError):
        raise BadValue(f"{words!r} is not a size.", "Write 4G, 500M or a number of bytes.") from None


def seconds(words: str) -> float:
    """Read a time in seconds: 90, 90s, 10m, 2h; "" is 0, no limit."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600}
    text = words.strip().lower()
    number = text.rstrip("smh")
    try:
        return float(int(1000 * float(number)) * units[text[len(number) :]]) / 1000 if text else 0.0
    except (KeyError, ValueError, OverflowError):
        raise BadValue(f"{words!r} is not a time.", "Write 90s, 10m or 2h.") from None


def quoted(names: Iterable[str]) -> str:
    """Return names as a list in words."""
    return ", ".join(repr(name) for name in names)
