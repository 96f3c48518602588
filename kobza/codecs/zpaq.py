"""ZPAQ archives by the installed `zpaq` program: versions, deduplication, dates, encryption; under our rules for paths.

Source: Mahoney, "The ZPAQ Open Standard Format for Highly Compressed Data", level 2, revision 2.06 (2016); the program
is his zpaq 7.15 (public domain and MIT), Debian's package of the same name.

Why the program and not a binding: the one with wheels (`zpaq` 0.3.7, public domain) turns bytes into bytes and knows no
files, versions, dates or keys; its wheels want glibc 2.34 and its sources a C++ compiler. The program has it all, but
writes wherever an archive says, calls a cut archive empty and sound, and expands anything: so each archive is listed
first, judged by the rules of `codecs.archive`, unpacked in a fresh folder under limits of memory, file size and time,
compared with its list, and only then moved to its place. What the format cannot tell stays untold: an archive that was
cut exactly between two updates is its own earlier version.

A key travels on the program's command line, where other users of the machine can see it.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kobza.codecs import base
from kobza.codecs.archive.packing import walk
from kobza.codecs.archive.paths import check_all, check_path
from kobza.core.errors import BadValue, Corrupt, InputRefused, MissingExtra, MissingFile, Unsafe
from kobza.core.files import atomic_directory

SUFFIX = ".zpaq"
EPOCH = 946684800  # 2000-01-01, the date of everything in an archive made of bytes
SPARE = 512 << 20  # bytes of address space for the program beside what its limit says
SECONDS, SLOWEST = 5, 100_000  # of processor time: at least, and bytes a second (-m5 takes 300,000); damage can spin
DATE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?|-?\d{1,6}")
# "- ", date, size right-aligned in 12 or more, blank, type and mode (blank where none was kept), blank, name
LINE = re.compile(r"- (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ( *-?\d+) ([ d][0-7]{4}|     ) ?(.*)")
VERSION = re.compile(r"(\d{4,})/ \+(\d+) -(\d+) -> (\d+)")
HARMLESS = re.compile(r"[\d.]+ seconds \(.*\)|[\d.]+ \+ \(.*MB|Warning: adjusting date .*")
SHOWN = re.compile(r"\((\d+) files\) shown")


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive.

    Args:
        path: as in the archive, without the last slash of a folder.
        size: of a file [bytes].
        modified: date and time, UTC.
        mode: permissions, as the archive says ("0644"), or "".
        version: the update it came with, from 1; 0 where only the newest was asked for.
    """

    path: str
    size: int
    modified: str
    mode: str
    is_folder: bool
    version: int = 0


def compress(data: bytes, *, method: int = 3) -> bytes:
    """Return `data` as a ZPAQ archive of one file named `data`.

    Args:
        data: any bytes.
        method: 0 stores; 1 and 2 are LZ77, 3 BWT, 4 and 5 context mixing [level, 0 .. 5].

    Returns:
        The archive; the same for the same bytes.

    Raises:
        MissingExtra: the program is not installed.
        OutOfRange: the method is not one.
    """
    base.check_range("method", method, 0, 5)
    with tempfile.TemporaryDirectory() as folder:
        file, archive = Path(folder, "data"), Path(folder, "archive.zpaq")
        file.write_bytes(data)
        file.chmod(0o644)
        os.utime(file, (EPOCH, EPOCH))
        add(archive, [file], method=method, date="2000-01-01 00:00:00")
        return archive.read_bytes()


def decompress(blob: bytes, *, limits: base.Limits | None = None) -> bytes:
    """Return the bytes of the only file of an archive.

    Raises:
        MissingExtra: the program is not installed.
        InputRefused: the archive holds none or several.
        Corrupt, LimitExceeded, Unsafe: see `extract`.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "archive.zpaq")
        archive.write_bytes(blob)
        files = [entry for entry in extract(archive, Path(folder, "out"), limits=limits) if not entry.is_folder]
        if len(files) != 1:
            raise InputRefused(f"the archive holds {len(files)} files, not one.", "Extract it to a folder.")
        return Path(folder, "out", files[0].path).read_bytes()


def program() -> str:
    """Return the path of the `zpaq` program.

    Raises:
        MissingExtra: it is not installed.
    """
    found = shutil.which("zpaq")
    if found is None:
        raise MissingExtra("codec 'zpaq' needs the program 'zpaq', which is not installed.", "apt-get install zpaq")
    return found


def add(archive: Path, paths: Sequence[Path], *, method: int = 3, key: str = "", date: str = "") -> list[str]:
    """Add files and folders to an archive as its next version; what it holds already is not stored again.

    Args:
        archive: its file; made if there is none.
        paths: what to add; each is stored under its own last name. A file that was there and is gone is marked deleted.
        method: as in `compress` [level, 0 .. 5].
        key: password; the same for every version of an archive.
        date: of this version, UTC, "YYYY-MM-DD[ HH:MM:SS]"; now by default.

    Returns:
        The names of links, which ZPAQ does not keep.

    Raises:
        MissingExtra: the program is not installed.
        MissingFile, BadValue, Unsafe: a path is not there, no file or folder, or has a name that cannot be unpacked
            everywhere.
        InputRefused: a file could not be read, the key is another, or the archive is damaged.
    """
    base.check_range("method", method, 0, 5)
    found = [pair for path in paths for pair in walk(Path(path))]
    links = [name for name, path in found if path.is_symlink()]
    kept = [(name, path) for name, path in found if not path.is_symlink()]
    for name, path in kept:
        check_path(name, base.Limits())
        if not path.is_dir() and not path.is_file():
            raise BadValue(f"'{path}' is a device, pipe or socket.", "Only files and folders can be packed.")
    check_all((name, path.is_dir()) for name, path in kept)
    if archive.exists():
        listing(archive, key=key)  # nothing is added to a damaged one, which the program would overwrite from there
    tops = [path for path in paths if not Path(path).is_symlink()]
    names = [Path(path).resolve().name for path in tops]
    words = [str(Path(path).resolve()) for path in tops] + ["-to", *names, f"-m{method}"]
    _run("add", archive, *words, *_options(key, date))
    return links


def listing(archive: Path, *, key: str = "", until: str = "", is_whole: bool = False) -> list[Entry]:
    """Return what an archive holds, by its own list; no content is decoded.

    Args:
        archive: its file.
        key: password of an encrypted one.
        until: as it was at that date, UTC, "YYYY-MM-DD[ HH:MM:SS]", or after so many updates.
        is_whole: every version of every file, not the newest only.

    Raises:
        MissingExtra: the program is not installed.
        MissingFile: there is no such archive.
        Corrupt, Unsafe, InputRefused: it is damaged, has paths that are not allowed, or the key is another.
    """
    said = _run("list", archive, *(["-all"] if is_whole else []), *_options(key, until))
    return list(_read(said, is_whole))


def extract(
    archive: Path, folder: Path, *, key: str = "", until: str = "", limits: base.Limits | None = None
) -> list[Entry]:
    """Unpack an archive into a folder, which must be new or empty; it appears whole or not at all.

    Args:
        archive: its file.
        folder: where to.
        key: password of an encrypted one.
        until: as it was at that date, UTC, "YYYY-MM-DD[ HH:MM:SS]", or after so many updates.
        limits: what it may cost; None takes the defaults.

    Returns:
        The entries.

    Raises:
        MissingExtra, MissingFile: the program, or the archive, is not there.
        Corrupt, Unsafe, InputRefused, LimitExceeded: it is refused, before anything is written where possible.
    """
    bounds = limits or base.Limits()
    entries = listing(archive, key=key, until=until)
    if len(entries) > bounds.entries:
        raise base.LimitExceeded(f"the archive holds {len(entries)} entries; the limit is {bounds.entries}.")
    for entry in entries:
        check_path(entry.path, bounds)
    check_all((entry.path, entry.is_folder) for entry in entries)
    bounds.check_output(sum(entry.size for entry in entries), archive.stat().st_size)
    with atomic_directory(folder) as place:
        work = sum(entry.size for entry in entries)
        _run("extract", archive.resolve(), *_options(key, until), place=place, limits=bounds, work=work)
        _compare(place, entries)
    return entries


def verify(archive: Path, *, key: str = "", limits: base.Limits | None = None) -> int:
    """Decode every file of an archive to nowhere and compare it with its SHA-1; return the bytes of the newest version.

    Raises:
        As `extract`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return sum(entry.size for entry in extract(archive, Path(folder, "out"), key=key, limits=limits))


def _options(key: str, date: str) -> list[str]:
    if date and not DATE.fullmatch(date):
        raise BadValue(f"the date is {date!r}; allowed is 'YYYY-MM-DD', 'YYYY-MM-DD HH:MM:SS', or a number of updates.")
    return (["-key", key] if key else []) + (["-until", *date.split()] if date else [])


def _run(
    command: str,
    archive: Path,
    *words: str,
    place: Path | None = None,
    limits: base.Limits | None = None,
    work: int = 0,
) -> list[str]:
    """Run the program; return the lines it printed. Anything it complains about is an error here.

    Reading an archive is bounded in memory, in the size of a file, and in processor time: `work` are the bytes that its
    list promises.
    """
    if command != "add" and not archive.is_file():
        raise MissingFile(f"there is no file '{archive}'.")
    bounds = limits or base.Limits()
    seconds = 0
    if command != "add":
        size = archive.stat().st_size
        # subtle: a damaged list tells any sizes; what repeats is decoded once
        seconds = SECONDS + (size + (min(work, bounds.ratio * size) if bounds.ratio else work)) // SLOWEST

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (bounds.output, bounds.output))
        resource.setrlimit(resource.RLIMIT_AS, (bounds.memory + SPARE, bounds.memory + SPARE))

    ran = subprocess.run(
        [program(), command, str(archive), *words, "-t1"],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=None if command == "add" else confine,
        check=False,
    )
    if ran.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and seconds:
        raise base.LimitExceeded(f"zpaq did not {command} '{archive}' within {seconds} s: it is damaged, or a trap.")
    said = ran.stdout.decode("utf-8", errors="surrogateescape")
    errors = ran.stderr.decode("utf-8", errors="replace").splitlines()
    wrong = [line for line in errors if line and not HARMLESS.fullmatch(line)]
    if "Note: " in said and command == "list":
        wrong.append("its last update is not whole")
    if ran.returncode or wrong:
        raise _refusal(archive, wrong or [f"exit {ran.returncode}"])
    return said.splitlines()


def _refusal(archive: Path, wrong: list[str]) -> InputRefused | base.LimitExceeded:
    text = "; ".join(line.strip().removeprefix("zpaq error: ") for line in wrong[:2])
    if "password" in text:
        return InputRefused(f"the key does not open '{archive}'.", "Give the one it was made with: --key.")
    if "memory" in text.lower() or "bad_alloc" in text:
        return base.LimitExceeded(f"unpacking '{archive}' takes more memory than allowed.", "--max-memory BYTES")
    return Corrupt(f"zpaq refuses '{archive}': {text[:200]}")


def _read(said: list[str], is_whole: bool) -> Iterator[Entry]:
    """Yield the entries of a list; a line that is none, or a wrong number of them, is a name with a line break."""
    begin = next((i for i, line in enumerate(said) if not line), len(said))
    end = max((i for i, line in enumerate(said) if SHOWN.search(line)), default=len(said))
    count = 0
    version = 0
    for line in said[begin + 1 : max(begin + 1, end - 1)]:
        match = LINE.fullmatch(line)
        if match is None:
            raise Unsafe(f"the archive's list has the line {line[:80]!r}: a name holds a line break.")
        modified, size, mode, path = match.groups()
        count += 1
        if is_whole:
            update = VERSION.fullmatch(path)
            if update:
                version = int(update[1])
                continue
            path = path.partition("/")[2]
        if int(size) < 0:
            raise InputRefused("a streaming archive does not tell the sizes of its files.", "Extract it with zpaq.")
        is_folder = path.endswith("/")
        size = 0 if is_folder else int(size)
        yield Entry(path.removesuffix("/"), size, modified, mode[1:].strip(), is_folder, version)
    shown = SHOWN.search(said[end]) if end < len(said) else None
    if shown is None or int(shown[1]) != count:
        raise Unsafe("the archive's list does not have as many lines as files: a name holds a line break.")


def _compare(place: Path, entries: Sequence[Entry]) -> None:
    """Refuse what was written if it is not what the list says."""
    found = {path.relative_to(place).as_posix(): path for path in place.rglob("*")}
    wanted = {entry.path: entry for entry in entries}
    above = {str(parent) for path in wanted for parent in Path(path).parents}
    surplus = [name for name, path in found.items() if name not in wanted and not (name in above and path.is_dir())]
    for name, entry in wanted.items():
        path = found.get(name)
        kind = path is not None and not path.is_symlink() and path.is_dir() == entry.is_folder
        if path is None or not kind or (path.is_file() and path.stat().st_size != entry.size):
            raise Corrupt(f"the archive's {name[:80]!r} did not come out as its list says.")
    if surplus:
        raise Corrupt(f"the archive gave {surplus[0][:80]!r}, which its list does not name.")
