"""Commands that intervene: one per technique of the room `interventions`, made from its signature and card."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core import cards, techniques
from kobza.core.errors import UnknownName
from kobza.core.options import Option, check, word

ROOM = "interventions"
_AGAINST = Annotated[
    list[str] | None,
    typer.Option("--against", metavar="SPEC", help="Do the same to the model with this edit, and show the difference: "
                 "lowrank:rank=64. May be given several times; all are applied."),
]  # fmt: skip
_SAVE = Annotated[Path | None, typer.Option("--save", metavar="DIR", help="Write tables, pictures and page to DIR.")]


def register(app: typer.Typer) -> None:
    """Add one command per technique to the command line; nothing heavy is imported for it."""
    for name in techniques.names(ROOM):
        command(app, techniques.COMMANDS.get(name, name), threads=True)(_command(name))


def _command(name: str) -> Callable[..., Any]:
    """Return the function of a technique's command, with its options as parameters."""
    options = techniques.described(ROOM, name)

    def intervene(
        model: str,
        save: Path | None,
        edit: list[str] | None,
        against: list[str] | None,
        dtype: str,
        **words: str | None,
    ) -> Any:
        if save is not None:
            show.require_new_folder(save)
        given = {key: value for key, value in words.items() if value is not None}
        checked = check(options, given, what=f"intervention {name!r}")
        return _run(name, model, checked, save, edit, against, dtype)

    kinds = {"model": spec.ModelName, **{o.name: _kind(o) for o in options}}
    kinds |= {"save": _SAVE, "edit": spec.Edits, "against": _AGAINST, "dtype": spec.Dtype}
    defaults: dict[str, Any] = {"model": inspect.Parameter.empty, "dtype": ""}
    intervene.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=defaults.get(key))
            for key, kind in kinds.items()
        ]
    )
    intervene.__doc__ = _help(name)
    return intervene


def _kind(option: Option) -> Any:
    default = "needed" if option.required else f"default: {word(option.default) or 'none'}"
    text = f"{option.doc} [{option.allowed()}; {default}]"
    metavar = "|".join(option.choices) or option.kinds[0].upper()
    # the range is checked with the technique's own words, so every option is taken as text
    return Annotated[str | None, typer.Option(f"--{option.name.replace('_', '-')}", metavar=metavar, help=text)]


def _help(name: str) -> str:
    about = f"All about it: kobza help {name}"
    try:
        card = cards.card(ROOM, name)
    except UnknownName:  # a technique of an outside package has none, and must not break the other commands
        return about
    return f"{card.title}. {card.claim}\n\n{about}"


def _run(
    name: str,
    model: str,
    options: Mapping[str, Any],
    save: Path | None,
    edit: list[str] | None,
    against: list[str] | None,
    dtype: str,
) -> Any:
    from kobza.cli.looking import opened_model

    if against:
        spec.make_recipe(model, chains=against, dtype=dtype)  # a wrong word is found before the model is opened
    opened = opened_model(model, dtype, edits=edit)
    result = techniques.verb(ROOM, name)(opened, **options)
    if against:
        result = _compared(name, opened, result, options, against)
    if save is not None:
        result.save(save)
    return result


def _compared(name: str, opened: Any, before: Any, options: Mapping[str, Any], against: list[str]) -> Any:
    """Do the same to the edited model, and join the two results."""
    from kobza.interventions.before_after import before_after
    from kobza.recipes.running import apply

    steps = spec.make_recipe(opened.origin.spec, chains=against).points()[0].chain
    after = techniques.verb(ROOM, name)(apply(opened, steps), **options)
    return before_after(before, after, " + ".join(against))
