"""Edits of an outside package that misbehave, and a runs folder of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kobza.core import techniques
from kobza.recipes import recipe

MODULE = '''
"""Edits that misbehave in every way a worker has to survive."""
import os, signal, time
from pathlib import Path


def apply(model, *, how: str = "", once: str = "", size: int = 0):
    """Do harm.

    Args:
        how: "kill", "exit", "hang", "raise", "eat" or nothing.
        once: a file that is made the first time; the harm is done only then.
        size: changes nothing [count, 0 ..].
    """
    if once and Path(once).exists():
        return model
    if once:
        Path(once).touch()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        print("last words")
        os._exit(3)
    if how == "hang":
        time.sleep(600)
    if how == "raise":
        return 1 / 0
    if how == "eat":
        import torch
        return torch.zeros(1 << 36)
    return model
'''


@pytest.fixture
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "kobza" / "runs"


@pytest.fixture
def harm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The edit `harm`, installed as an outside package for this process and its workers."""
    site = tmp_path_factory.mktemp("site")
    (site / "harmful.py").write_text(MODULE)
    info = site / "harmful-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harmful\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kobza.edits]\nharm = harmful\n")
    monkeypatch.syspath_prepend(site)
    _forget()
    yield
    _forget()


def _forget() -> None:
    for remembered in (techniques.names, techniques._outside, recipe.described):
        remembered.cache_clear()
