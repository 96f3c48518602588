"""The C kernels under the address and undefined-behavior sanitizers, on random and on damaged input: `make fuzz`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_kernels_touch_only_their_own_memory(tmp_path):
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("no make or no C compiler")
    words = ["make", "--silent", "--no-print-directory", "fuzz", "ROUNDS=400", f"FUZZ={tmp_path / 'fuzz'}", "CC=cc"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if "cannot find" in ran.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert (ran.returncode, ran.stdout) == (0, "400 rounds clean\n"), ran.stderr
