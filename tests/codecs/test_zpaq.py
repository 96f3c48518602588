"""ZPAQ archives: versions and deduplication, both ways with the program itself, and nothing outside the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kobza.codecs import base, zpaq
from kobza.core.errors import BadValue, CannotWrite, InputRefused, KobzaError, MissingExtra, MissingFile, Unsafe

PROGRAM = shutil.which("zpaq")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the program zpaq is not installed: apt-get install zpaq")
TEXT = b"Reve ta stohne Dnipr shyrokyi.\r\n" * 300


def program(folder: Path, *words: str) -> None:
    subprocess.run(["zpaq", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    (folder / "old").mkdir(parents=True)
    (folder / "one").write_bytes(TEXT)
    (folder / "old" / "zwei drei").write_bytes(b"\xff\0")
    (folder / "empty").mkdir()
    return folder


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), method=st.integers(0, 5))
def test_any_bytes_come_back(data: bytes, method: int) -> None:
    blob = zpaq.compress(data, method=method)
    assert zpaq.decompress(blob) == data
    assert zpaq.compress(data, method=method) == blob


def test_the_program_reads_what_we_write(songs: Path, tmp_path: Path) -> None:
    zpaq.add(tmp_path / "a.zpaq", [songs])
    (tmp_path / "out").mkdir()
    program(tmp_path / "out", "x", "../a.zpaq")
    assert (tmp_path / "out/songs/one").read_bytes() == TEXT
    assert (tmp_path / "out/songs/old/zwei drei").read_bytes() == b"\xff\0"


def test_we_read_what_the_program_writes(songs: Path, tmp_path: Path) -> None:
    program(tmp_path, "a", "b.zpaq", "songs", "-m5")
    entries = zpaq.extract(tmp_path / "b.zpaq", tmp_path / "out")
    assert {entry.path for entry in entries} == {
        "songs", "songs/one", "songs/old", "songs/old/zwei drei", "songs/empty",
    }  # fmt: skip
    assert (tmp_path / "out/songs/one").read_bytes() == TEXT
    assert (tmp_path / "out/songs/empty").is_dir()


def test_a_file_stored_twice_takes_its_place_once(songs: Path, tmp_path: Path) -> None:
    noise = os.urandom(100_000)
    (songs / "noise").write_bytes(noise)
    archive = tmp_path / "a.zpaq"
    zpaq.add(archive, [songs], method=1)
    before = archive.stat().st_size
    (songs / "again").write_bytes(noise)
    zpaq.add(archive, [songs], method=1)
    assert before > 100_000
    assert archive.stat().st_size - before < 1500


def test_versions_are_kept_and_come_back_by_date(songs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zpaq"
    zpaq.add(archive, [songs], date="2026-01-01")
    (songs / "one").write_bytes(b"changed")
    os.utime(songs / "one", (zpaq.EPOCH, zpaq.EPOCH))
    zpaq.add(archive, [songs], date="2026-02-01 12:00:00")
    for until, content in [("2026-01-15", TEXT), ("1", TEXT), ("2026-03-01", b"changed"), ("", b"changed")]:
        out = tmp_path / f"out{until}"
        zpaq.extract(archive, out, until=until)
        assert (out / "songs/one").read_bytes() == content
    versions = [e.version for e in zpaq.listing(archive, is_whole=True) if e.path == "songs/one"]
    assert versions == [1, 2]
    assert len([e for e in zpaq.listing(archive) if e.path == "songs/one"]) == 1


def test_a_key_is_needed_where_one_was_given(songs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zpaq"
    zpaq.add(archive, [songs], key="kobza")
    assert TEXT[:20] not in archive.read_bytes()
    for key in ("", "other"):
        with pytest.raises(InputRefused, match=r"the key does not open|zpaq refuses"):
            zpaq.extract(archive, tmp_path / "out", key=key)
    zpaq.extract(archive, tmp_path / "out", key="kobza")
    assert (tmp_path / "out/songs/one").read_bytes() == TEXT


@pytest.mark.parametrize(
    "name",
    ["../evil", "/kobza-evil", "a/../../evil", "C:/evil", "a\\evil", "CON", "evil\nname", "a//evil"],
)
def test_hostile_paths_are_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"evil")
    program(tmp_path, "a", "e.zpaq", "file", "-to", name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Unsafe):
        zpaq.extract(tmp_path / "e.zpaq", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/kobza-evil").exists()


def test_a_name_that_fakes_a_line_of_the_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"evil")
    program(tmp_path, "a", "e.zpaq", "file", "-to", "a\n- 2026-01-01 00:00:00            4  0644 b")
    with pytest.raises(Unsafe, match="line break"):
        zpaq.listing(tmp_path / "e.zpaq")


def test_names_alike_but_for_case_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    program(tmp_path, "a", "e.zpaq", "file", "-to", "Song")
    program(tmp_path, "a", "e.zpaq", "file", "-to", "song")
    with pytest.raises(Unsafe, match="may be one file"):
        zpaq.extract(tmp_path / "e.zpaq", tmp_path / "out")


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(100 << 20)
    program(tmp_path, "a", "z.zpaq", "zeros")
    assert (tmp_path / "z.zpaq").stat().st_size < 5000
    with pytest.raises(base.LimitExceeded, match="1000 to 1"):
        zpaq.extract(tmp_path / "z.zpaq", tmp_path / "out")
    with pytest.raises(base.LimitExceeded, match="limit is 1000"):
        zpaq.extract(tmp_path / "z.zpaq", tmp_path / "out", limits=base.Limits(output=1000))


def test_damage_never_gives_wrong_bytes() -> None:
    blob = zpaq.compress(TEXT)
    for at in range(0, len(blob), max(1, len(blob) // 60)):
        damaged = bytearray(blob)
        damaged[at] ^= 0x55
        try:
            assert zpaq.decompress(bytes(damaged)) == TEXT
        except KobzaError:
            continue


def test_an_archive_that_keeps_the_program_busy_is_refused(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spinning = tmp_path / "spin"
    spinning.write_text("#!/bin/sh\nwhile :; do :; done\n")
    spinning.chmod(0o755)
    archive = tmp_path / "a.zpaq"
    zpaq.add(archive, [songs])
    monkeypatch.setattr(zpaq, "program", lambda: str(spinning))
    monkeypatch.setattr(zpaq, "SECONDS", 1)
    with pytest.raises(base.LimitExceeded, match=r"did not list .* within 1 s"):
        zpaq.listing(archive)


def test_a_cut_archive_is_refused() -> None:
    blob = zpaq.compress(TEXT)
    for end in range(0, len(blob), max(1, len(blob) // 40)):
        with pytest.raises(KobzaError):
            zpaq.decompress(blob[:end])


def test_what_is_in_the_way_or_not_there_is_said(songs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zpaq"
    with pytest.raises(MissingFile):
        zpaq.listing(archive)
    with pytest.raises(MissingFile):
        zpaq.add(archive, [tmp_path / "nothing"])
    os.mkfifo(songs / "pipe")
    with pytest.raises(BadValue, match="device, pipe"):
        zpaq.add(archive, [songs])
    (songs / "pipe").unlink()
    (songs / "link").symlink_to("one")
    assert zpaq.add(archive, [songs]) == ["songs/link"]
    with pytest.raises(BadValue, match="YYYY-MM-DD"):
        zpaq.extract(archive, tmp_path / "out", until="yesterday")
    with pytest.raises(CannotWrite, match="not empty"):
        zpaq.extract(archive, songs)


def test_without_the_program_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtra, match="apt-get install zpaq"):
        zpaq.compress(b"")
