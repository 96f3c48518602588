"""What the commands of `packing` do; imported when one of them runs."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kobza.cli import zpaq_files
from kobza.cli.supply import Supply
from kobza.codecs import base
from kobza.codecs.archive.manifest import FOLDER, LINK, Entry
from kobza.codecs.archive.packing import pack_paths
from kobza.codecs.archive.unpacking import entries_of, unpack_into
from kobza.core import options, techniques
from kobza.core.errors import BadValue, CannotWrite, MissingExtra, MissingFile
from kobza.core.files import atomic_file
from kobza.core.progress import progress, task
from kobza.core.result import Result
from kobza.core.table import Table

SUFFIX = ".kbz"
PIECE = 1 << 20
SAMPLE = 1 << 22  # bytes a codec may learn from before it begins


def limits(output: int, ratio: int, memory: int) -> base.Limits:
    """Return the limits that the options ask for."""
    return base.Limits(output=output, ratio=ratio, memory=memory)


def pack(files: Sequence[Path], codec: str, out: Path | None, *, model: str, force: bool, key: str = "") -> str:
    """Pack files and say what became of their size."""
    for file in files:
        if not file.exists() and not file.is_symlink():
            raise MissingFile(f"there is no file or folder '{file}'.")
    steps = _steps(codec)
    for step in steps:  # a misspelled codec is said before a file in the way
        techniques.load("codecs", step.name)
    if codec.partition(":")[0] == "zpaq":
        return zpaq_files.pack(files, options.parse(codec), out, key=key)
    target = out or Path(f"{files[0].resolve().name}{SUFFIX}")
    _require_free(target, force)
    if [step.name for step in steps] == ["font"] and {"grid", "gunzip"} & set(steps[0].options) and len(files) == 1:
        return _pack_made(files[0], steps[0], target)
    supply, costs = Supply(model), list[float]()
    is_archive = len(files) > 1 or files[0].is_dir()
    coders, log2 = coders_of(codec, _sample(files), supply, costs)
    size = (_pack_archive if is_archive else _pack_stream)(files, coders, log2, target)
    packed = target.stat().st_size
    said = f"{size} -> {packed} bytes ({100 * packed / max(size, 1):.2f} %)  {target}"
    if not costs:
        return said
    ideal = f"ideal code length by the model {sum(costs) / 8:.1f} bytes"
    return f"{said}\n{ideal}; file and the model's own {supply.bytes}: {packed + supply.bytes} bytes"


def unpack(
    file: Path, out: Path | None, bounds: base.Limits, *, model: str, force: bool, anyhow: bool = False
) -> str | None:
    """Unpack a file to where it is wanted; to standard output only after everything was checked."""
    with _opened(file) as source:
        reader = _supplied(base.Reader(source, limits=bounds), Supply(model), anyhow)
        target = _target(file, out)
        if reader.header.is_archive:
            entries = unpack_into(reader, target)
            return f"{len(entries)} entries, {sum(e.size for e in entries)} bytes  {target}"
        if str(target) == "-":
            return _deliver(reader.read(), target, force)
        _require_free(target, force)
        with atomic_file(target) as sink:
            total = sum(sink.write(block) for block in progress(reader, "unpacking"))
    return f"{total} bytes  {target}"


def listing(file: Path) -> Table:
    """Return an archive's entries or a stream's blocks as a table."""
    with _opened(file) as source:
        reader = base.Reader(source)
        header = reader.header
        codecs = ", ".join(_named(codec) for codec in header.codecs) or "store"
        if header.is_archive:
            note = f"codec: {codecs}; {file.stat().st_size} bytes packed"
            return Table([_entry_row(e) for e in entries_of(reader)], units={"size": "B"}, title=file.name, note=note)
        rows = [
            {
                "block": i,
                "codec": header.codecs[block.codec - 1].name if block.codec else "store",
                "raw": block.raw_size,
                "packed": block.packed_size,
                "bits per byte": 8 * block.packed_size / block.raw_size,
            }
            for i, block in enumerate(reader.blocks())
        ]
    return Table(rows, units={"raw": "B", "packed": "B"}, title=file.name, note=f"codec: {codecs}")


def _named(codec: Any) -> str:
    """Return a codec as the header lists it, with the model it needs."""
    describe = getattr(base.load(codec.name), "described", dict) if codec.name in base.names() else dict
    known = describe(codec.parameters)
    wanted = [f"{key} {_text(known[key])[:16]}" for key in ("model", "vocabulary") if key in known]
    return f"{codec.name} ({', '.join(wanted)})" if wanted else str(codec.name)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def verify(file: Path, bounds: base.Limits, *, model: str, anyhow: bool = False) -> str:
    """Unpack a file to nowhere; everything wrong with it raises."""
    supply = Supply(model)
    with _opened(file) as source:
        reader = _supplied(base.Reader(source, limits=bounds), supply, anyhow)
        if reader.header.is_archive:
            with _opened(file) as again:
                entries_of(_supplied(base.Reader(again, limits=bounds), supply, anyhow))
        size = sum(len(block) for block in progress(reader, "checking"))
    return f"{file} is whole: {size} bytes come out of {file.stat().st_size}"


def bench(files: Sequence[Path], wanted: Sequence[str], limit: int, model: str) -> Table:
    """Return a row per file and codec: size, speeds, memory, and whether the bytes came back."""
    supply = Supply(model)
    specs = list(wanted) or [name for name in techniques.names("codecs") if not supply.needs(name)]
    rows, absent = [], []
    for file in files:
        with _opened(file) as source:
            data = source.read(limit or -1)
        for spec in progress(specs, f"packing {file.name}"):
            try:
                rows.append({"file": file.name, **bench_row(spec, data, supply)})
            except MissingExtra as error:
                absent.append(error.message)
    sizes = ("ideal", "with model")
    if any(row["ideal"] is not None for row in rows):
        absent.append("Ideal: code length by the model; with model: the file and the model's own.")
    else:
        rows = [{key: value for key, value in row.items() if key not in sizes} for row in rows]
    units = {"packed": "B", "part": "%", "pack": "MB/s", "unpack": "MB/s", "memory": "MiB"} | dict.fromkeys(sizes, "B")
    note = "Speeds of one run in this process; memory: what unpacking a block may take. "
    return Table(rows, units=units, title="Codecs", note=note + " ".join(dict.fromkeys(absent)))


def bench_row(spec: str, data: bytes, supply: Supply) -> dict[str, Any]:
    """Pack and unpack `data` once with a codec and return what it took; of a model's codec all three sizes."""
    step = options.parse(spec)
    module = techniques.load("codecs", step.name)
    given = options.check(module.compress, step.options, what=f"codec {step.name!r}")
    handed = supply.given([step.name])
    costs: list[float] | None = [] if "predictor" in handed else None
    began = _cpu()
    if costs is None:
        blob = module.compress(data, **given, **handed)
    else:
        coder, log2 = _coder_of(step, data, supply, costs)
        blob = base.pack(data, coder, block_log2=base.fitting_block(len(data), log2))
    packed = _cpu()
    back = module.decompress(blob, **handed)
    ended = _cpu()
    return {
        "codec": spec,
        "packed": len(blob),
        "ideal": None if costs is None else sum(costs) / 8,
        "with model": None if costs is None else len(blob) + supply.bytes,
        "part": 100 * len(blob) / max(len(data), 1),
        "pack": len(data) / 1e6 / max(packed - began, 1e-9),
        "unpack": len(data) / 1e6 / max(ended - packed, 1e-9),
        "memory": _memory(blob, len(data)),
        "round trip": "same bytes" if back == data else "DIFFERENT",
    }


def _cpu() -> float:
    """Return CPU seconds of this process and of programs it waited for."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def _memory(blob: bytes, size: int) -> float | None:
    """Return what unpacking a block may take [MiB]; None of a file that does not tell."""
    try:
        header = base.Reader(io.BytesIO(blob)).header
    except base.BadMagic:
        return None
    needed = [base.memory(c.name, min(header.block_size, size), c.parameters) for c in header.codecs]
    return max(needed, default=0) / 2**20


def explain(text: str, model: str, limit: int) -> Result:
    """Return what every token of a text costs a model, in bits."""
    import kobza
    from kobza.codecs import lm
    from kobza.core import texts
    from kobza.core.figure import Figure
    from kobza.models.predictor import ModelPredictor

    sample = texts.text(text, limit=limit)
    opened = kobza.open(model)
    packed = lm.pack(sample.data, ModelPredictor(opened), opened.tokenizer, streams=1)
    shown = [opened.tokenizer.show(i) for i in packed.spelled.ids]
    rows = [{"token": s, "bits": float(b)} for s, b in zip(shown, packed.ideal_bits, strict=True)]
    pieces = [{"text": r["token"], "value": r["bits"], "title": f"{r['bits']:.2f} bits"} for r in rows]
    total = sum(float(r["bits"]) for r in rows)
    note = (
        f"ideal code length {total / 8:.1f} B, packed {len(packed.payload)} B, of {len(sample.data)} B "
        f"({total / len(sample.data):.4f} bits per byte); literal bytes {packed.spelled.literal_bytes}"
    )
    figure = Figure("tokens", {"pieces": pieces}, title=f"Bits per token of '{sample.name}' by {opened.name}")
    table = Table(rows, units={"bits": "bit"}, title=f"Bits per token of '{sample.name}'", note=note)
    return Result(f"What '{sample.name}' costs {opened.name}", tables=[table], figures=[figure])


def coders_of(
    codec: str, sample: bytes, supply: Supply, costs: list[float] | None = None
) -> tuple[list[base.Coder], int]:
    """Return the coders that a codec's spec asks for, and log2 of their blocks.

    Args:
        codec: `NAME:OPTIONS`, or several joined by +: each block takes whichever is shortest.
        sample: first bytes of what will be packed, for codecs that learn from them.
        supply: the model for those that need one.
        costs: takes the ideal code length of every block packed by a model [bits].

    Raises:
        UnknownName, UnknownOption, BadValue, OutOfRange: the spec is wrong; the message names what is near.
        BadValue: a codec does not write block by block.
    """
    made = [_coder_of(step, sample, supply, costs) for step in _steps(codec)]
    return [coder for coder, _ in made], min(log2 for _, log2 in made)


def _steps(codec: str) -> list[options.Step]:
    return [options.parse(spec) for spec in codec.split("+")]


def _coder_of(step: options.Step, sample: bytes, supply: Supply, costs: list[float] | None) -> tuple[base.Coder, int]:
    module = techniques.load("codecs", step.name)
    if not hasattr(module, "coder"):
        raise BadValue(f"codec {step.name!r} does not write block by block.", "See kobza help " + step.name)
    given = dict(options.check(module.compress, step.options, what=f"codec {step.name!r}"))
    log2 = given.pop("block_log2", module.BLOCK_LOG2)
    base.check_range("block_log2", log2, 10, 24)
    handed = supply.given([step.name])
    if "predictor" in handed:
        handed["costs"] = costs
    return module.coder(sample, **given, **handed), log2


def _supplied(reader: base.Reader, supply: Supply, anyhow: bool) -> base.Reader:
    known = base.names()
    handed = supply.given(codec.name for codec in reader.header.codecs if codec.name in known)
    reader.supply |= {**handed, "is_forced": anyhow}
    return reader


def _pack_stream(files: Sequence[Path], coders: Sequence[base.Coder], log2: int, target: Path) -> int:
    size = files[0].stat().st_size
    log2 = base.fitting_block(size, log2)
    with _opened(files[0]) as source, atomic_file(target) as sink, task("packing", size) as work:
        begin = source.read((1 << log2) + 1)
        if len(begin) <= 1 << log2:
            sink.write(base.pack(begin, *coders, block_log2=log2))
            return len(begin)
        writer = base.Writer(sink, coders, block_log2=log2)
        writer.write(begin)
        while piece := source.read(PIECE):
            writer.write(piece)
            work.step(len(piece))
        writer.close()
    return sum(raw for raw, _ in writer.blocks)


def _pack_made(file: Path, step: options.Step, target: Path) -> str:
    """Pack the font that a picture of glyphs or a .gz holds and say what it is."""
    from kobza.codecs import font

    given = dict(options.check(font.compress, step.options, what="codec 'font'"))
    log2 = {"block_log2": given.pop("block_log2")} if "block_log2" in given else {}
    made, said = font.prepared(file.read_bytes(), **{"grid": "", **given})
    with atomic_file(target) as sink:
        packed = sink.write(font.compress(made, **log2))
    return f"{said or f'{len(made)} bytes'} -> {packed} bytes  {target}\nunpacking gives that, not {file.name}"


def _pack_archive(files: Sequence[Path], coders: Sequence[base.Coder], log2: int, target: Path) -> int:
    with atomic_file(target) as sink:
        entries = pack_paths(files, sink, coders, block_log2=log2)
    return sum(entry.size for entry in entries)


def _sample(files: Sequence[Path]) -> bytes:
    """Return the first bytes of the first regular file: something for a codec to learn from."""
    inside = (inner for file in files for inner in ([file] if not file.is_dir() else sorted(file.rglob("*"))))
    first = next((path for path in inside if path.is_file() and not path.is_symlink()), None)
    if first is None:
        return b""
    with _opened(first) as source:
        return bytes(source.read(SAMPLE))


def _deliver(raw: bytes, target: Path, force: bool) -> str | None:
    if str(target) != "-":
        _require_free(target, force)
        with atomic_file(target) as sink:
            sink.write(raw)
        return f"{len(raw)} bytes  {target}"
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
    return None


def _target(file: Path, out: Path | None) -> Path:
    if out is not None:
        return out
    if file.suffix != SUFFIX:
        raise BadValue(f"'{file}' does not end in {SUFFIX}, so its unpacked name is not known.", "Give one: -o NAME.")
    return Path(file.stem)


def _opened(file: Path) -> Any:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise MissingFile(f"there is no file '{file}'.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise BadValue(f"'{file}' cannot be read: {(error.strerror or 'refused').lower()}.") from None


def _require_free(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise CannotWrite(f"'{target}' exists.", "Name another with -o, or replace it with --force.")


def _entry_row(entry: Entry) -> dict[str, Any]:
    kind = "folder" if entry.kind == FOLDER else "link" if entry.kind == LINK else "file"
    return {
        "path": entry.path,
        "kind": kind,
        "size": entry.size if kind == "file" else None,
        "mode": f"{entry.mode:03o}",
        "modified": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.modified)),
        "sha256": entry.sha256.hex()[:16] or entry.target,
    }
