"""Help, completion and listings import nothing heavy."""

import os
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "matplotlib",
    "scipy",
    "sqlite3",
    "jinja2",
}
CODE = """
import sys
from kobza.cli.main import main
code = main(sys.argv[1:])
print("LOADED", code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded(words: list[str], **environment: str) -> set[str]:
    """Return the top-level modules that a command leaves loaded."""
    call = [sys.executable, "-c", CODE, *words]
    shown = subprocess.run(call, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
    last = shown.stdout.splitlines()[-1].split()
    assert last[:2] == ["LOADED", "0"], shown.stderr
    return set(last[2:])


@pytest.mark.parametrize("words", [["--help"], ["edit", "--help"], ["sweep", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert not loaded(words) & HEAVY


@pytest.mark.parametrize("words", [["help", "lowrank"], ["list", "edits"], ["look", "smollm2", "--list"], ["runs"]])
def test_listings_load_no_torch(words: list[str]) -> None:
    assert not loaded(words) & {"torch", "transformers", "tokenizers", "matplotlib"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("kobza edit smollm2 lowr", "lowrank"),
        ("kobza edit smollm2 lowrank:ra", "lowrank:rank="),
        ("kobza look smollm2 neigh", "neighbors"),
        ("kobza measure smollm2 bits", "bits_per_byte"),
        ("kobza open smol", "smollm2"),
        ("kobza sw", "sweep"),
    ],
)
def test_completion_offers_names_and_loads_nothing_heavy(words: str, offered: str) -> None:
    code = CODE.replace("code = main(sys.argv[1:])", "try:\n    main([])\nexcept SystemExit:\n    pass\ncode = 0")
    environment = {
        **os.environ,
        "_KOBZA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    *lines, last = shown.stdout.splitlines()
    assert offered in [line.strip() for line in lines], shown
    assert not set(last.split()) & HEAVY
