"""Importing and asking for help is light; every public name is there."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "matplotlib", "scipy", "pandas", "tokenizers")


def loaded(code: str) -> set[str]:
    """Return the heavy modules that a fresh interpreter holds after running `code`."""
    asked = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
    shown = subprocess.run(
        [sys.executable, "-c", f"{asked}print('HELD', *(m for m in {HEAVY} if m in sys.modules))"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(shown.stdout.splitlines()[-1].split()[1:])


def test_importing_kobza_imports_nothing_heavy() -> None:
    assert loaded("import kobza") == set()


@pytest.mark.parametrize(
    "command",
    ["", "open", "look", "ablate", "edit", "measure", "sweep", "say", "tokens", "run", "runs", "tour", "train", "tune"],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    words = [w for w in ("kobza", command, "--help") if w]
    assert loaded(f"sys.argv = {words}; from kobza.cli.main import main; main()") == set()


def test_every_public_name_exists() -> None:
    import kobza

    for name in kobza.__all__:
        assert getattr(kobza, name) is not None
