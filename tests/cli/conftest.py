"""The command line called in this process, as a user would call it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kobza.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command ended with."""

    code: int
    out: str
    err: str


Kobza = Callable[..., Said]


@pytest.fixture
def kobza(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kobza:
    """Run a command in a folder of its own; words are split at blanks unless given apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*words: str) -> Said:
        before = dict(os.environ)
        capfd.readouterr()
        code = main(words[0].split() if len(words) == 1 else list(words))
        out, err = capfd.readouterr()
        assert dict(os.environ) == before, "a command leaves the environment as it was"
        return Said(code, out, err)

    return call
