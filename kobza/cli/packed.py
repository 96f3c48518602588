"""What the commands of `packing` do; imported when one of them runs."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

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
MODEL_MAGIC = b"KBLM"  # of `codecs.lm`
NEEDS_MORE = ("lm", "tok")  # codecs that want a model or a vocabulary besides bytes
PIECE = 1 << 20
SAMPLE = 1 << 22  # bytes a codec may learn from before it begins


def limits(output: int, ratio: int, memory: int) -> base.Limits:
    """Return the limits that the options ask for."""
    return base.Limits(output=output, ratio=ratio, memory=memory)


def pack(files: Sequence[Path], codec: str, out: Path | None, *, model: str, force: bool) -> str:
    """Pack files and say what became of their size."""
    for file in files:
        if not file.exists() and not file.is_symlink():
            raise MissingFile(f"there is no file or folder '{file}'.")
    techniques.load("codecs", options.parse(codec).name)  # a misspelled codec is said before a file in the way
    target = out or Path(f"{files[0].resolve().name}{SUFFIX}")
    _require_free(target, force)
    if codec.partition(":")[0] == "lm":
        size = _pack_by_model(files, codec, target, model)
    elif len(files) > 1 or files[0].is_dir():
        size = _pack_archive(files, codec, target, model)
    else:
        size = _pack_stream(files[0], codec, target, model)
    packed = target.stat().st_size
    return f"{size} -> {packed} bytes ({100 * packed / max(size, 1):.2f} %)  {target}"


def unpack(file: Path, out: Path | None, bounds: base.Limits, *, model: str, force: bool) -> str | None:
    """Unpack a file to where it is wanted; to standard output only after everything was checked."""
    with _opened(file) as source:
        if _is_model_packed(source):
            raw = _unpack_by_model(file, model, bounds)
            return _deliver(raw, _target(file, out), force)
        reader = _supplied(base.Reader(source, limits=bounds), model)
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
        codecs = ", ".join(codec.name for codec in header.codecs) or "store"
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


def verify(file: Path, bounds: base.Limits, *, model: str) -> str:
    """Unpack a file to nowhere; everything wrong with it raises."""
    with _opened(file) as source:
        if _is_model_packed(source):
            size = len(_unpack_by_model(file, model, bounds))
        else:
            reader = _supplied(base.Reader(source, limits=bounds), model)
            if reader.header.is_archive:
                with _opened(file) as again:
                    entries_of(_supplied(base.Reader(again, limits=bounds), model))
            size = sum(len(block) for block in progress(reader, "checking"))
    return f"{file} is whole: {size} bytes come out of {file.stat().st_size}"


def bench(files: Sequence[Path], wanted: Sequence[str], limit: int) -> Table:
    """Return a row per file and codec: size, speeds, memory, and whether the bytes came back."""
    specs = list(wanted) or [name for name in techniques.names("codecs") if name not in NEEDS_MORE]
    rows, absent = [], []
    for file in files:
        with _opened(file) as source:
            data = source.read(limit or -1)
        for spec in progress(specs, f"packing {file.name}"):
            try:
                rows.append({"file": file.name, **bench_row(spec, data)})
            except MissingExtra as error:
                absent.append(error.message)
    units = {"packed": "B", "part": "%", "pack": "MB/s", "unpack": "MB/s", "memory": "MiB"}
    note = "Speeds of one run in this process; memory: what unpacking a block may take. "
    return Table(rows, units=units, title="Codecs", note=note + " ".join(dict.fromkeys(absent)))


def bench_row(spec: str, data: bytes) -> dict[str, Any]:
    """Pack and unpack `data` once with a codec and return what it took."""
    step = options.parse(spec)
    module = techniques.load("codecs", step.name)
    given = options.check(module.compress, step.options, what=f"codec {step.name!r}")
    began = time.process_time()
    blob = module.compress(data, **given)
    packed = time.process_time()
    back = module.decompress(blob)
    ended = time.process_time()
    header = base.Reader(io.BytesIO(blob)).header
    needed = [base.memory(c.name, min(header.block_size, len(data)), c.parameters) for c in header.codecs]
    return {
        "codec": spec,
        "packed": len(blob),
        "part": 100 * len(blob) / max(len(data), 1),
        "pack": len(data) / 1e6 / max(packed - began, 1e-9),
        "unpack": len(data) / 1e6 / max(ended - packed, 1e-9),
        "memory": max(needed, default=0) / 2**20,
        "round trip": "same bytes" if back == data else "DIFFERENT",
    }


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
        f"ideal code length {total / 8:.1f} B, packed {len(packed.blob)} B, of {len(sample.data)} B "
        f"({total / len(sample.data):.4f} bits per byte); literal bytes {packed.spelled.literal_bytes}"
    )
    figure = Figure("tokens", {"pieces": pieces}, title=f"Bits per token of '{sample.name}' by {opened.name}")
    table = Table(rows, units={"bits": "bit"}, title=f"Bits per token of '{sample.name}'", note=note)
    return Result(f"What '{sample.name}' costs {opened.name}", tables=[table], figures=[figure])


def coder_of(spec: str, sample: bytes, model: str) -> tuple[base.Coder, int]:
    """Return the coder that a codec's spec asks for, and log2 of its blocks; `tok` takes the model's tokenizer.

    Raises:
        UnknownName, UnknownOption, BadValue, OutOfRange: the spec is wrong; the message names what is near.
        BadValue: the codec does not write block by block.
    """
    step = options.parse(spec)
    module = techniques.load("codecs", step.name)
    if not hasattr(module, "coder"):
        raise BadValue(f"codec {step.name!r} does not write block by block.", "See kobza help " + step.name)
    given = dict(options.check(module.compress, step.options, what=f"codec {step.name!r}"))
    log2 = given.pop("block_log2", module.BLOCK_LOG2)
    base.check_range("block_log2", log2, 10, 24)
    supply = {"vocabulary": _tokenizer(model)} if step.name == "tok" else {}
    return module.coder(sample, **given, **supply), log2


def _supplied(reader: base.Reader, model: str) -> base.Reader:
    if any(codec.name == "tok" for codec in reader.header.codecs):
        reader.supply["vocabulary"] = _tokenizer(model)
    return reader


def _tokenizer(model: str) -> Any:
    import kobza

    return kobza.open(model).tokenizer


def _pack_stream(file: Path, codec: str, target: Path, model: str) -> int:
    with _opened(file) as source, atomic_file(target) as sink, task("packing", file.stat().st_size) as work:
        piece = source.read(SAMPLE)
        coder, log2 = coder_of(codec, piece, model)
        writer = base.Writer(sink, [coder], block_log2=min(log2, base.fitting_block(file.stat().st_size, log2)))
        while piece:
            writer.write(piece)
            work.step(len(piece))
            piece = source.read(PIECE)
        writer.close()
    return sum(raw for raw, _ in writer.blocks)


def _pack_archive(files: Sequence[Path], codec: str, target: Path, model: str) -> int:
    coder, log2 = coder_of(codec, _sample(files), model)
    with atomic_file(target) as sink:
        entries = pack_paths(files, sink, [coder], block_log2=log2)
    return sum(entry.size for entry in entries)


def _sample(files: Sequence[Path]) -> bytes:
    """Return the first bytes of the first regular file: something for a codec to learn from."""
    inside = (inner for file in files for inner in ([file] if not file.is_dir() else sorted(file.rglob("*"))))
    first = next((path for path in inside if path.is_file() and not path.is_symlink()), None)
    if first is None:
        return b""
    with _opened(first) as source:
        return bytes(source.read(SAMPLE))


def _pack_by_model(files: Sequence[Path], codec: str, target: Path, model: str) -> int:
    import kobza
    from kobza.codecs import lm
    from kobza.models.predictor import ModelPredictor

    if len(files) > 1 or files[0].is_dir():
        raise BadValue(f"codec 'lm' packs one file; {len(files)} or a folder were given.", "Pack them one by one.")
    given = options.check(lm.compress, options.parse(codec).options, what="codec 'lm'")
    with _opened(files[0]) as source:
        data = source.read()
    opened = kobza.open(model)
    predictor = ModelPredictor(opened)
    blob = lm.compress(data, predictor=predictor, vocabulary=opened.tokenizer, **given)
    if lm.decompress(blob, predictor=predictor, vocabulary=opened.tokenizer) != data:
        raise base.NotReproducible("the model did not give the bytes back; nothing was packed.")
    with atomic_file(target) as sink:
        sink.write(blob)
    return len(data)


def _unpack_by_model(file: Path, model: str, bounds: base.Limits) -> bytes:
    import kobza
    from kobza.codecs import lm
    from kobza.models.predictor import ModelPredictor

    opened = kobza.open(model)
    blob = file.read_bytes()
    return lm.decompress(
        blob, predictor=ModelPredictor(opened), vocabulary=opened.tokenizer, limit=min(bounds.output, lm.RAW_LIMIT)
    )


def _is_model_packed(source: Any) -> bool:
    head = source.read(len(MODEL_MAGIC))
    source.seek(0)
    return bool(head == MODEL_MAGIC)


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
