"""Exit codes, errors, interruption: what a shell sees."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import kobza.core.errors as errors
from kobza import __version__
from kobza.cli import looking, main
from kobza.core.errors import KobzaError, OutOfRange


def kinds(parent: type[KobzaError] = KobzaError) -> list[type[KobzaError]]:
    return [k for child in parent.__subclasses__() for k in (child, *kinds(child))]


@pytest.mark.parametrize("kind", kinds())
def test_every_error_ends_with_the_code_of_its_kind(
    kind: type[KobzaError], kobza: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("what is wrong.", "what to do.")

    monkeypatch.setattr(looking, "opened_model", fail)
    said = kobza("open tiny")
    assert said.code == kind.exit_code
    assert said.code in (1, 2, 3, 4, 5)
    assert said.err == f"{kind.__name__}: what is wrong.\n{' ' * (len(kind.__name__) + 2)}what to do.\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 4, "OutOfMemory: not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), 4, "OutOfMemory"),
        (OSError(28, "No space left on device"), 4, "CannotWrite: cannot write: no space left on device"),
        (KeyboardInterrupt(), 130, "interrupted: what was finished is kept"),
        (main.Terminated(), 143, "terminated"),
        (ZeroDivisionError("ours"), 70, f"This is a bug of kobza {__version__}: please report"),
        (FileNotFoundError(2, "not told by kobza"), 70, "Traceback"),
        (SystemExit(3), 3, ""),
    ],
)
def test_whatever_happens_has_a_code(
    error: BaseException, code: int, words: str, kobza: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(looking, "opened_model", fail)
    said = kobza("open tiny")
    assert said.code == code
    assert words in said.err
    assert ("Traceback" in said.err) == (code == 70)


@pytest.mark.parametrize("words", ["nonsense", "edit", "open", "open tiny --nonsense", "say tiny hi -n 0", "open a b"])
def test_wrong_usage_is_2_and_says_where_help_is(words: str, kobza: Callable[..., Any]) -> None:
    said = kobza(words)
    assert said.code == 2
    assert said.err.startswith("UsageError: ")
    assert "--help" in said.err
    assert len(said.err.splitlines()) <= 4


def test_nothing_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    assert "Usage: kobza" in capsys.readouterr().out


def test_the_version_is_printed(kobza: Callable[..., Any]) -> None:
    said = kobza("--version")
    assert (said.code, said.out) == (0, f"kobza {__version__}\n")


def test_a_long_error_is_four_lines_and_never_raw() -> None:
    text = main.text_of(OutOfRange("one\ntwo\n\x1b[2Jthree\nfour\nfive", "six"))
    assert text.splitlines() == ["OutOfRange: one", *(" " * 12 + w for w in ("two", "\\x1b[2Jthree", "four"))]


def test_a_reader_who_leaves_is_no_error() -> None:
    call = f"{sys.executable} -m kobza list --jsonl | head -n 1; echo ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", call], capture_output=True, text=True, env={**os.environ})
    assert shown.stdout.splitlines()[-1] == "0"
    assert shown.stderr == ""


def test_python_m_kobza_is_kobza() -> None:
    shown = subprocess.run([sys.executable, "-m", "kobza", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (0, f"kobza {__version__}\n")


def test_every_exit_code_is_documented() -> None:
    for kind in kinds():
        assert kind.__doc__
        assert str(kind.exit_code) in (errors.__doc__ or "")
