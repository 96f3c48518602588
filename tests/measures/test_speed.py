"""Speed counts the tokens it says, and tells how often and with how many threads."""

from typing import Any

import pytest

from kobza.core.errors import EmptyText, OutOfRange
from kobza.measures import speed

TEXT = b"the kobza is a lute " * 30


@pytest.mark.parametrize("of", ["generation", "prompt"])
def test_the_median_lies_between_slowest_and_fastest(tiny: Any, of: Any) -> None:
    reading = speed.measure(tiny, TEXT, of=of, prompt_tokens=20, tokens=5, repeats=3)
    assert reading.low is not None
    assert reading.high is not None
    assert 0 < reading.low <= reading.value <= reading.high
    assert reading.unit == "token/s"
    assert reading.record["machine"]["threads"] == 1
    assert reading.record["how"] == {"of": of, "prompt_tokens": 20, "tokens": 5, "repeats": 3}


def test_every_repeat_counts_once(tiny: Any) -> None:
    speeds = speed.run(tiny, [5, 6, 7], tokens=2, repeats=4)
    assert (len(speeds.prompt), len(speeds.generation)) == (4, 4)


@pytest.mark.parametrize("option", ["prompt_tokens", "tokens", "repeats"])
def test_counts_below_one_are_refused(tiny: Any, option: Any) -> None:
    with pytest.raises(OutOfRange, match=f"{option} is 0; allowed is 1 or more"):
        speed.measure(tiny, TEXT, **dict[str, Any]({option: 0}))


def test_a_text_shorter_than_the_prompt_is_refused(tiny: Any) -> None:
    with pytest.raises(EmptyText, match="at least 128 needed"):
        speed.measure(tiny, b"short")
