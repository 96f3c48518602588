"""What every command has in common: how results are wanted, progress, threads, messages of libraries."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kobza.cli import bar, show
from kobza.core.progress import listen

GROUP = "Output"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=GROUP)]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print the table as JSON lines.", rich_help_panel=GROUP)]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV.", rich_help_panel=GROUP)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=f"Write to FILE instead; its suffix says how: {' '.join(show.SUFFIXES)}",
        rich_help_panel=GROUP,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.", rich_help_panel=GROUP)]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Show what the libraries have to say (-vv: all).", rich_help_panel=GROUP
    ),
]
Threads = Annotated[
    int, typer.Option(min=0, metavar="N", help="Threads to compute with; 0: as many as there are processors.")
]

_OUTPUT = {"as_json": Json, "as_jsonl": Jsonl, "as_csv": Csv, "output": Output}
_TALK = {"quiet": Quiet, "verbose": Verbose}
_DEFAULTS: dict[str, Any] = {
    "as_json": False,
    "as_jsonl": False,
    "as_csv": False,
    "output": None,
    "quiet": False,
    "verbose": 0,
    "threads": 0,
}


def command(
    app: typer.Typer,
    name: str,
    *,
    output: bool = True,
    threads: bool = False,
    then: Callable[[Any], None] | None = None,
    brief: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a command; what it returns (Result, Table or text) is shown as the user wants it.

    Args:
        app: where to register.
        name: the command's word.
        output: give it --json, --jsonl, --csv and -o.
        threads: give it --threads.
        then: looks at what was found after it was shown, and raises if a check of it failed.
        brief: shortens what is shown to a person; files and machines get all of it.
        settings: for `typer.Typer.command`.
    """
    extra: dict[str, Any] = {**(_OUTPUT if output else {}), **({"threads": Threads} if threads else {}), **_TALK}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(**given: Any) -> int:
            common = {key: given.pop(key, _DEFAULTS[key]) for key in _DEFAULTS}
            wanted = show.form(**{key: common[key] for key in _OUTPUT})
            try:
                with settled(quiet=common["quiet"], verbose=common["verbose"], threads=common["threads"]):
                    found = function(**given)
            except KeyboardInterrupt:  # typer would turn it into a silent exit
                raise show.Interrupted from None
            if found is not None:
                show.show(brief(found) if brief is not None and wanted == show.Form() else found, wanted)
                if then is not None:
                    then(found)
            return 0

        own = inspect.signature(function).parameters
        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[key], annotation=kind)
            for key, kind in extra.items()
        ]
        kept = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_evaluated(p, function)) for p in own.values()
        ]
        run.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
        run.__name__ = function.__name__
        words = inspect.getdoc(function) or ""
        app.command(name, help=kept_lines(words), short_help=words.partition(".")[0], **settings)(run)
        return function

    return decorate


def kept_lines(words: str) -> str:
    """Return help in which indented lines stay as they are: click rewraps a paragraph unless it begins with \\b."""
    parts = words.split("\n\n")
    return "\n\n".join(f"\b\n{part}" if part.startswith("    ") else part for part in parts)


def _evaluated(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    # by hand, since the return types are names for the type checker only, whose modules are not imported
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    kind = parameter.annotation
    return eval(kind, function.__globals__) if isinstance(kind, str) else kind


def speaks() -> bool:
    """Whether this process says and saves what is found: of several that torchrun started the first does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def settled(*, quiet: bool = False, verbose: int = 0, threads: int = 0) -> Iterator[None]:
    """Run the block with a bar on a terminal, `threads` threads, and libraries as talkative as asked."""
    drawn = bar.Bar(sys.stderr) if bar.wanted(sys.stderr) and not quiet and speaks() else None
    environment = {"TRANSFORMERS_VERBOSITY": ("error", "info", "debug")[min(verbose, 2)], "TQDM_DISABLE": "1"}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with _environment(environment), _threads(threads), warnings.catch_warnings(), listen(drawn):
        if not verbose:
            warnings.simplefilter("ignore")
        else:
            logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.INFO, stream=sys.stderr)
        try:
            yield
        finally:
            if drawn is not None:
                drawn.erase()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    # what the user has set stands, the number of threads excepted: that was asked for just now
    os.environ.update({k: v for k, v in values.items() if before[k] is None or k.endswith("_THREADS")})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None or not count:  # not loaded yet: the environment tells it
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
