"""Memory is the kernel's count, and the cache per token is the formula."""

from pathlib import Path
from typing import Any

import pytest

from kobza.core import resident
from kobza.measures import memory
from kobza.models.tiny import tiny as make_tiny

TEXT = b"the kobza is a lute " * 30


def test_a_run_takes_no_negative_memory(tiny: Any) -> None:
    reading = memory.measure(tiny, TEXT)
    assert reading.value >= 0
    assert reading.unit == "B"
    assert "process " in reading.note


def test_the_peak_counts_what_was_held(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(*_: Any, **__: Any) -> None:
        assert b"\1" * 200_000_000  # written, so resident

    monkeypatch.setattr(memory, "token_bits", hold)
    assert memory.measure(tiny, TEXT).value == pytest.approx(2e8, rel=0.1)


@pytest.mark.parametrize(("layers", "kv_heads"), [(1, 1), (2, 2), (3, 4)])
def test_the_cache_per_token_is_the_formula(layers: int, kv_heads: int) -> None:
    model = make_tiny(layers=layers, kv_heads=kv_heads)
    width_of_head, bytes_of_number = 8, 4
    assert memory.cache_bytes_per_token(model) == 2 * layers * kv_heads * width_of_head * bytes_of_number


def test_without_a_resettable_count_the_reading_says_so(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CLEAR", Path("/proc/nothing/here"))
    reading = memory.measure(tiny, TEXT)
    assert "an increase may stay hidden" in reading.spread
    assert reading.value >= 0
