"""Commands about packed files: pack, unpack, ls, verify, bench, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kobza.cli import spec
from kobza.cli.frame import command

if TYPE_CHECKING:
    from kobza.core.table import Table

Packed = Annotated[Path, typer.Argument(metavar="FILE.kbz", help="A packed file.")]
MaxOutput = Annotated[int, typer.Option("--max-output", min=0, metavar="BYTES", help="Unpack at most so much.")]
MaxRatio = Annotated[
    int, typer.Option("--max-ratio", min=0, metavar="N", help="Past 64 MiB, at most N bytes per packed byte; 0: any.")
]
MaxMemory = Annotated[int, typer.Option("--max-memory", min=0, metavar="BYTES", help="Memory a codec may take.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model that packs (lm), or whose tokens do (tok).",
        autocompletion=spec.complete_model,
    ),
]
Key = Annotated[str, typer.Option("--key", metavar="WORD", help="Password of a .zpaq archive.")]
Until = Annotated[
    str,
    typer.Option("--until", metavar="DATE", help="A .zpaq archive as it was then (UTC), or after so many updates."),
]
Anyhow = Annotated[
    bool,
    typer.Option("--other-arithmetic", help="Try although a model packed it under other versions or threads."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")]


def complete_codec(incomplete: str) -> list[str]:
    """Return codecs, or the options of the codec at hand, that begin so."""
    return spec.complete_spec("codecs", incomplete)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "pack", output=False, threads=True)(pack)
    command(app, "unpack", output=False, threads=True)(unpack)
    command(app, "ls")(ls)
    command(app, "verify", output=False, threads=True)(verify)
    command(app, "bench")(bench)
    command(app, "explain", threads=True)(explain)


def pack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files or folders; several make an archive.")],
    codec: Annotated[
        str,
        typer.Option(
            "--codec",
            "-c",
            metavar="NAME[:OPTIONS]",
            help="ulz, bpez, cm, lm, zlib, ...; A+B: per block whichever is shorter.",
            autocompletion=complete_codec,
        ),
    ] = "cm",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The packed file.")] = None,
    model: ModelName = "smollm2",
    force: Force = False,
    key: Key = "",
) -> str:
    """Make files smaller, without loss. One file becomes a stream, a folder or several files an archive.

    Examples:

        kobza pack poems.txt
        kobza pack photos/ notes.txt --codec lzma -o all.kbz
        kobza pack poems.txt --codec ulz:level=9
        kobza pack poems.txt --codec lm --model smollm2
        kobza pack poems.txt --codec lm+cm
        kobza pack notes/ --codec zpaq -o notes.zpaq
        kobza pack sheet.png --codec font:grid=auto
        kobza pack Lat15-Fixed16.psf.gz --codec font:gunzip=true
    """
    from kobza.cli import packed

    return packed.pack(files, codec, out, model=model, force=force, key=key)


def unpack(
    file: Packed,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="File, or a new folder for an archive; - : stdout."),
    ] = None,
    model: ModelName = "smollm2",
    force: Force = False,
    anyhow: Anyhow = False,
    key: Key = "",
    until: Until = "",
    max_output: MaxOutput = 1 << 30,
    max_ratio: MaxRatio = 1000,
    max_memory: MaxMemory = 1 << 30,
) -> str | None:
    """Give a packed file back, whole or not at all. Every checksum is checked, every limit holds.

    Examples:

        kobza unpack poems.txt.kbz
        kobza unpack all.kbz -o folder
        kobza unpack poems.txt.kbz -o - | head
        kobza unpack notes.zpaq --until 2026-11-01 -o then
    """
    from kobza.cli import packed, zpaq_files

    bounds = packed.limits(max_output, max_ratio, max_memory)
    if zpaq_files.is_zpaq(file):
        return zpaq_files.unpack(file, out, bounds, key=key, until=until)
    return packed.unpack(file, out, bounds, model=model, force=force, anyhow=anyhow)


def ls(
    file: Packed,
    key: Key = "",
    until: Until = "",
    versions: Annotated[bool, typer.Option("--versions", help="All versions in a .zpaq archive.")] = False,
) -> Table:
    """List what a packed file holds. An archive's entries, or a stream's blocks; nothing is unpacked.

    Examples:

        kobza ls all.kbz
        kobza ls poems.txt.kbz --json
        kobza ls notes.zpaq --versions
    """
    from kobza.cli import packed, zpaq_files

    if zpaq_files.is_zpaq(file):
        return zpaq_files.listing(file, key=key, until=until, versions=versions)
    return packed.listing(file)


def verify(
    file: Packed,
    model: ModelName = "smollm2",
    anyhow: Anyhow = False,
    key: Key = "",
    max_output: MaxOutput = 1 << 30,
    max_ratio: MaxRatio = 1000,
    max_memory: MaxMemory = 1 << 30,
) -> str:
    """Check a packed file to its last byte. It is unpacked, compared with its checksums and thrown away.

    Examples:

        kobza verify all.kbz
    """
    from kobza.cli import packed, zpaq_files

    bounds = packed.limits(max_output, max_ratio, max_memory)
    if zpaq_files.is_zpaq(file):
        return zpaq_files.verify(file, bounds, key=key)
    return packed.verify(file, bounds, model=model, anyhow=anyhow)


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files to pack.")],
    codec: Annotated[
        list[str] | None,
        typer.Option("--codec", "-c", metavar="NAME[:OPTIONS]", help="Only these.", autocompletion=complete_codec),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="BYTES", help="Of each file; 0: all of it.")] = 1 << 22,
    model: ModelName = "smollm2",
) -> Table:
    """Compare codecs on your files. Size, speed both ways, memory, and whether the bytes came back.

    Examples:

        kobza bench poems.txt
        kobza bench poems.txt photo.bmp -c cm -c lzma -c ulz:level=9
    """
    from kobza.cli import packed

    return packed.bench(files, codec or [], limit, model)


def explain(
    file: Annotated[str, typer.Argument(metavar="TEXT", help="A text or a file.", autocompletion=spec.complete_text)],
    model: ModelName = "smollm2",
    limit: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Bytes from its beginning.")] = 2000,
) -> object:
    """Show where the bits go. What every token of a text costs a model, as a colored text and a table.

    Examples:

        kobza explain poems.txt
        kobza explain topics[:800] --model smollm2 -o cost.html
    """
    from kobza.cli import packed

    return packed.explain(file, model, limit)
