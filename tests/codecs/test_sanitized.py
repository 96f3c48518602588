"""The C kernels under the address and undefined-behavior sanitizers, on random and on damaged input."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "kobza" / "codecs" / "native"
KERNELS = ("checksum", "bpe", "ulz", "mixing", "logistic", "network", "prediction", "picture", "glyphs")
FLAGS = "-g -O1 -std=c11 -D_DEFAULT_SOURCE -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"


def test_kernels_touch_only_their_own_memory(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "fuzz"
    sources = [
        HERE / "fuzz_kernels.c",
        *(NATIVE / f"{name}.c" for name in KERNELS),
    ]
    made = subprocess.run([compiler, *FLAGS.split(), f"-I{NATIVE}", "-o", program, *sources], capture_output=True)
    if b"cannot find" in made.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert made.returncode == 0, made.stderr.decode()
    ran = subprocess.run([program, "400"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "400 rounds clean\n"), ran.stderr
