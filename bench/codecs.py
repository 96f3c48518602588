"""Codecs against installed peers: sizes, CPU time both ways, and the round trip, on two texts.

The texts: the first 4,000,000 bytes of enwik8 (never to be called enwik8) and Shevchenko's Kobzar, both from the data
folder beside the repository. Seconds are CPU time of one thread in one run; the last table gives the ratios wanted:
bpez under zopfli and 12 % under zlib on Kobzar at zlib's speed; ulz at level 9 under lz4's highest, unpacking at half
of lz4's speed, a kilobyte in 20 microseconds; cm between zpaq -m3 and -m5 at 1 MB/s.

Some peers are for benchmarks only: pip install --no-deps --target PEERS zopfli deflate bzip3, and PYTHONPATH=PEERS.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import shutil
import subprocess
import tempfile
import timeit
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any

from kobza.codecs import native, ulz
from kobza.core import options, techniques
from kobza.core.table import Table

DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "text"
CODECS = (
    "zlib", "bz2", "lzma", "zstd", "brotli", "lz4", "ulz:level=1", "ulz:level=6", "ulz:level=9", "bpez",
    "bpez:block_log2=22", "bpez:second=lzma", "cm",
)  # fmt: skip
Pair = tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes] | None]


def texts() -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the texts that are there."""
    prefix, kobzar = DATA / "enwik8-first4e6.gz", DATA / "kobzar.txt"
    if prefix.is_file():
        yield "enwik8[0:4e6]", gzip.decompress(prefix.read_bytes())
    if kobzar.is_file():
        yield "Kobzar", kobzar.read_bytes()


def ours() -> Iterator[Pair]:
    """Yield our codecs: name, pack, unpack."""
    for spec in CODECS:
        step = options.parse(spec)
        module = techniques.load("codecs", step.name)
        given = options.check(module.compress, step.options)
        yield spec, lambda data, m=module, g=given: m.compress(data, **g), module.decompress


def peers() -> Iterator[Pair]:
    """Yield the peers that are installed: name, pack, unpack."""
    yield "zlib -9 (peer)", lambda data: zlib.compress(data, 9), zlib.decompress
    yield "bzip2 -9 (peer)", lambda data: bz2.compress(data, 9), bz2.decompress
    yield "xz -9e (peer)", lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    with suppress(ImportError):
        lz4: Any = importlib.import_module("lz4.block")
        yield "lz4 12 (peer)", lambda d: lz4.compress(d, mode="high_compression", compression=12), lz4.decompress
    with suppress(ImportError):
        zopfli: Any = importlib.import_module("zopfli.zlib")
        yield "zopfli (peer)", zopfli.compress, zlib.decompress
    with suppress(ImportError):
        deflate: Any = importlib.import_module("deflate")
        yield "libdeflate -12 (peer)", lambda d: deflate.zlib_compress(d, 12), zlib.decompress
    with suppress(ImportError):
        bz3: Any = importlib.import_module("bz3")
        yield "bzip3 (peer)", lambda d: bz3.compress(d, block_size=1 << 24, num_threads=1), bz3.decompress
    if shutil.which("zpaq"):
        for method in (3, 5):
            yield f"zpaq -m{method} (peer)", lambda data, m=method: zpaq(data, m), None


def zpaq(data: bytes, method: int) -> bytes:
    """Return an archive of the program zpaq."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in").write_bytes(data)
        words = ["zpaq", "a", "out.zpaq", "in", f"-m{method}", "-t1"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
        return Path(folder, "out.zpaq").read_bytes()


def cpu() -> float:
    """CPU seconds of this process and of those it waited for."""
    import resource

    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def row(text: str, data: bytes, pair: Pair) -> dict[str, Any]:
    """Pack and unpack once."""
    name, pack, unpack = pair
    begin = cpu()
    packed = pack(data)
    middle = cpu()
    assert unpack is None or unpack(packed) == data, name
    end = cpu()
    return {
        "text": text,
        "codec": name,
        "packed": len(packed),
        "part": 100 * len(packed) / len(data),
        "bits_per_byte": 8 * len(packed) / len(data),
        "pack": len(data) / 1e6 / max(middle - begin, 1e-6),
        "unpack": len(data) / 1e6 / max(end - middle, 1e-6) if unpack else None,
    }


def latency() -> Table:
    """Return microseconds for a kilobyte of text, by the bare format and by the container."""
    data = (DATA / "kobzar.txt").read_bytes()[:1024] if (DATA / "kobzar.txt").is_file() else bytes(range(256)) * 4
    bare, whole = ulz.encode(data, 4), ulz.compress(data, level=4)
    calls = {
        "ulz.encode": lambda: ulz.encode(data, 4),
        "ulz.decode": lambda: ulz.decode(bare, len(data)),
        "ulz.compress": lambda: ulz.compress(data, level=4),
        "ulz.decompress": lambda: ulz.decompress(whole),
        "zlib.compress (peer)": lambda: zlib.compress(data, 6),
    }
    rows = [
        {"call": name, "time": 1e6 * min(timeit.repeat(f, number=500, repeat=9, timer=process_time)) / 500}
        for name, f in calls.items()
    ]
    return Table(rows, units={"time": "us"}, title="1024 bytes of text")


def speeds() -> Table:
    """Return how fast the bare formats unpack 4 MB through Python, best of five."""
    rows = []
    for name, data in texts():
        packed = ulz.encode(data, 9)
        pairs = {"ulz 9": lambda p=packed, d=data: ulz.decode(p, len(d))}
        with suppress(ImportError):
            block: Any = importlib.import_module("lz4.block")
            high = block.compress(data, mode="high_compression", compression=12)
            pairs["lz4 12 (peer)"] = lambda b=block, h=high: b.decompress(h)
        best = {who: min(timeit.repeat(f, number=1, repeat=5, timer=process_time)) for who, f in pairs.items()}
        rows += [{"text": name, "codec": who, "unpack": len(data) / 1e6 / t} for who, t in best.items()]
    return Table(rows, units={"unpack": "MB/s"}, title="Bare unpacking")


def main() -> None:
    """Print the tables."""
    if not native.compiled:
        print("the C extension is not built: these are the speeds of the plain Python twins, which take hours")
        return
    rows = [row(name, data, pair) for name, data in texts() for pair in (*ours(), *peers())]
    units = {"packed": "B", "part": "%", "bits_per_byte": "bit", "pack": "MB/s", "unpack": "MB/s"}
    print(Table(rows, units=units, title="Codecs, CPU seconds of one thread"), speeds(), latency(), sep="\n\n")


if __name__ == "__main__":
    main()
