"""What cannot be decoded ends in one clear error with both values, and the exit code of its kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAY = ("say", "tiny:llama?context=64", "--plain", "-n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((*SAY, "70", "hello"), 2, "76 in all, but 'tiny:llama' was trained for 64"),
        ((*SAY, "5", "--strategy", "greedy:stop=<|eot_id|>", "x"), 2, "no control token of 'tiny:llama' is named"),
        ((*SAY, "5", "--strategy", "greedy:stop=", "x"), 2, "a stop text is empty"),
        (
            (*SAY, "5", "--strategy", "assisted:assistant=tiny:llama?vocabulary=310", "x"),
            3,
            "needs the same vocabulary",
        ),
        ((*SAY, "5", "--strategy", "hydra:heads=none", "x"), 2, "there is no file 'none'"),
        ((*SAY, "5", "--backend", "pagd", "x"), 2, "Nearest: 'paged'"),
    ],
)
def test_it_is_refused_with_the_reason(
    kobza: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch makes a relative one absolute
    found = kobza(*words)
    assert (found.code, found.out) == (code, "")
    assert said in " ".join(found.err.split()) and "Traceback" not in found.err
