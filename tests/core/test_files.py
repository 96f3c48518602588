import os
import subprocess
import sys

import pytest

from kobza.core import files
from kobza.core.errors import CannotWrite
from kobza.core.files import atomic_directory, atomic_file, write_atomic


def test_a_file_is_written_whole(tmp_path):
    assert write_atomic(tmp_path / "a", "é").read_bytes() == "é".encode()
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_an_error_inside_the_block_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_folders_links_and_devices_are_never_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, kind in (("folder", "folder"), ("link", "link")):
        with pytest.raises(CannotWrite, match=f"a {kind} is in its place"):
            write_atomic(tmp_path / name, "x")
    with pytest.raises(CannotWrite, match="a device or pipe is in its place"):
        write_atomic("/dev/full", "x")


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(CannotWrite, match="mkdir -p"):
        write_atomic(tmp_path / "no" / "a", "x")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    # a limit on the file size makes write(2) fail like a full disk does
    code = (
        "import resource, signal, sys\n"
        "from kobza.core.files import write_atomic; from kobza.core.errors import KobzaError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(sys.argv[1], b'x' * 100_000)\n"
        "except KobzaError as e: print(e); sys.exit(e.exit_code)"
    )
    write_atomic(tmp_path / "a", "old")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert run.returncode == 4 and "cannot write" in run.stdout and not run.stderr
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "d") as place:
        (place / "x").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_directory(tmp_path / "d") as place:
        (place / "x").write_text("whole")
    with pytest.raises(CannotWrite, match="exists and is not empty"), atomic_directory(tmp_path / "d"):
        pass
    with atomic_directory(tmp_path / "d", replace=True) as place:
        (place / "y").write_text("new")
    assert os.listdir(tmp_path / "d") == ["y"] and os.listdir(tmp_path) == ["d"]


def test_folders_follow_xdg_and_ignore_relative_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "kobza"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_dir().is_absolute()


def test_sha256_of_a_file_equals_that_of_its_bytes(tmp_path):
    write_atomic(tmp_path / "a", b"abc")
    assert files.sha256_file(tmp_path / "a") == files.sha256(b"abc")
    assert files.sha256(b"abc").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
