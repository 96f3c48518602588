"""Archives: folders come back, hostile paths do not come out."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobza.codecs import base, zlib
from kobza.codecs.archive.manifest import FILE, FOLDER, LINK, Entry, read_manifest, write_manifest
from kobza.codecs.archive.packing import pack_paths
from kobza.codecs.archive.paths import check_path
from kobza.codecs.archive.unpacking import entries_of, unpack_into
from kobza.codecs.container.layout import ARCHIVE
from kobza.core.errors import BadValue, CannotWrite, MissingFile, Unsafe
from kobza.core.files import sha256

LIMITS = base.Limits()
HOSTILE = [
    "../evil", "a/../../evil", "/etc/evil", "C:evil", "c:\\evil", "\\\\host\\evil", "a\0b", "a\x1b[2J", "a//b", "./a",
    "a/.", "con", "a/NUL.txt", "a ", "a.", "e\u0301", "", "a:stream", "x" * 256, "\x85",
]  # fmt: skip


def archive(*entries: Entry, content: bytes = b"") -> bytes:
    return base.pack(write_manifest(entries) + content, zlib.coder(), flags=ARCHIVE)


def a_file(path: str, data: bytes = b"x") -> Entry:
    return Entry(FILE, path, size=len(data), sha256=bytes.fromhex(sha256(data)))


def reader(blob: bytes, **limits: int) -> base.Reader:
    return base.Reader(io.BytesIO(blob), limits=base.Limits(**limits))


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "songs"
    (folder / "old" / "empty").mkdir(parents=True)
    (folder / "old" / "дума.txt").write_text("Ой у полі вітер віє\n", encoding="utf-8")
    (folder / "big.bin").write_bytes(os.urandom(3000) + bytes(200_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o4755)
    (folder / "link").symlink_to("old/дума.txt")
    (folder / "old" / "up").symlink_to("../big.bin")
    return folder


def test_a_folder_comes_back_whole(tree, tmp_path):
    file = io.BytesIO()
    packed = pack_paths([tree], file, [zlib.coder()], block_log2=12)
    out = tmp_path / "out"
    assert unpack_into(reader(file.getvalue()), out) == packed == entries_of(reader(file.getvalue()))
    for path in tree.rglob("*"):
        twin = out / "songs" / path.relative_to(tree)
        assert twin.is_symlink() == path.is_symlink()
        assert twin.is_dir() == path.is_dir()
        if path.is_file():
            assert twin.read_bytes() == path.read_bytes()
            assert int(twin.lstat().st_mtime) == int(path.lstat().st_mtime) or path.is_symlink()
    assert (out / "songs" / "run.sh").stat().st_mode & 0o7777 == 0o755  # setuid dropped
    assert os.readlink(out / "songs" / "old" / "up") == "../big.bin"


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused_and_nothing_is_left(path, tmp_path):
    with pytest.raises(Unsafe, match="the archive holds the path"):
        unpack_into(reader(archive(a_file(path), content=b"x")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "target"),
    [("l", "../x"), ("l", "/etc/passwd"), ("a/l", "../../x"), ("l", "a/../.."), ("l", "a/../x"), ("l", "C:\\x")],
)
def test_links_that_may_lead_outside_are_refused(path, target, tmp_path):
    with pytest.raises(Unsafe, match=r"leads outside|the path"):
        unpack_into(reader(archive(Entry(LINK, path, target=target))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entries",
    [
        [a_file("Read.me"), a_file("read.ME")],
        [a_file("a"), a_file("a")],
        [a_file("a"), a_file("a/b")],
        [Entry(LINK, "a", target="b"), a_file("a/x")],
        [a_file("straße"), a_file("STRASSE")],
    ],
)
def test_entries_that_clash_are_refused(entries):
    with pytest.raises(Unsafe, match=r"may be one file|not a folder"):
        entries_of(reader(archive(*entries, content=b"xx")))


def test_entries_paths_and_depth_are_limited():
    many = archive(*(a_file(str(i)) for i in range(11)), content=b"x" * 11)
    with pytest.raises(base.LimitExceeded, match="11 entries; the limit is 10"):
        entries_of(reader(many, entries=10))
    deep = archive(Entry(FOLDER, "/".join("abcdef")))
    with pytest.raises(base.LimitExceeded, match="6 parts deep"):
        entries_of(reader(deep, depth=5))
    with pytest.raises(base.LimitExceeded, match="200 bytes in one field"):
        entries_of(reader(archive(Entry(FOLDER, "x" * 200)), path=100))
    huge = archive(Entry(FILE, "a", size=1 << 40, sha256=bytes(32)))
    with pytest.raises(base.LimitExceeded, match="1099511627776 bytes; the limit"):
        entries_of(reader(huge))


def test_content_that_contradicts_the_manifest_leaves_nothing(tmp_path):
    for blob in (
        archive(a_file("a", b"xyz"), content=b"xy"),
        archive(a_file("a", b"xyz"), content=b"xyzz"),
        archive(a_file("a", b"xyz"), content=b"xyy"),
    ):
        with pytest.raises(base.Corrupt, match="manifest"):
            unpack_into(reader(blob), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_not_unpacked_into(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CannotWrite, match="not empty"):
        unpack_into(reader(archive(a_file("mine"), content=b"x")), tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_cannot_be_packed_is_named(tmp_path):
    with pytest.raises(MissingFile, match="nowhere"):
        pack_paths([tmp_path / "nowhere"], io.BytesIO(), [])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadValue, match="device, pipe or socket"):
        pack_paths([tmp_path / "pipe"], io.BytesIO(), [])
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(Unsafe):
        pack_paths([tmp_path / "out"], io.BytesIO(), [])


def test_a_plain_stream_is_no_archive():
    with pytest.raises(BadValue, match="one stream, not an archive"):
        entries_of(reader(base.pack(b"x")))


@given(st.binary(max_size=200))
def test_no_manifest_does_anything_but_be_read_or_refused(body):
    try:
        read_manifest(body, LIMITS)
    except (base.Corrupt, base.LimitExceeded, Unsafe):
        return


@given(st.text(max_size=30))
def test_every_path_allowed_stays_inside(path):
    try:
        check_path(path, LIMITS)
    except (Unsafe, base.LimitExceeded):
        return
    assert not os.path.isabs(path)
    assert os.path.normpath(path) == path
    assert not os.path.normpath("in/" + path).startswith("..")
