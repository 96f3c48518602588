import json

import numpy as np
import pytest

from kobza.core.errors import BadValue, CannotWrite, Corrupt, MissingFile, NotComparable, UnknownName
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table


def reading(parts, *, text="x", window=512, model="m"):
    record = {"text": {"sha256": text}, "how": {"window": window}, "model": {"fingerprint": model}}
    return Reading.from_parts("bits_per_byte", parts, "bit/B", record=record)


@pytest.fixture
def parts():
    rng = np.random.default_rng(1)
    return [(float(b * r), float(b)) for b, r in zip(rng.integers(80, 120, 60), rng.normal(1.1, 0.2, 60), strict=True)]


def test_the_value_is_the_ratio_of_the_sums(parts):
    assert reading(parts).value == pytest.approx(sum(a for a, _ in parts) / sum(b for _, b in parts))


def test_the_interval_agrees_with_the_delta_method(parts):
    # closed formula for the variance of a ratio of sums
    a, b = np.array(parts).T
    r = a.sum() / b.sum()
    error = np.sqrt(np.sum((a - r * b) ** 2)) / b.sum()
    found = reading(parts)
    assert found.low == pytest.approx(r - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(r + 1.96 * error, abs=0.25 * error)


def test_pairing_removes_what_both_share(parts):
    shifted = [(a + 0.01 * b, b) for a, b in parts]
    between = reading(parts).compare(reading(shifted, model="other"))
    assert between.value == pytest.approx(0.01) and between.high - between.low < 1e-9
    assert between.record["factor"] == pytest.approx(1 + 0.01 / reading(parts).value)


def test_a_reading_compared_with_itself_differs_by_nothing(parts):
    between = reading(parts).compare(reading(parts))
    assert (between.value, between.low, between.high, between.record["factor"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("change", "word"), [({"text": "y"}, "text.sha256"), ({"window": 31}, "how.window 512 against 31")]
)
def test_readings_taken_differently_are_not_compared(parts, change, word):
    with pytest.raises(NotComparable, match=word):
        reading(parts).compare(reading(parts, **change))


def test_readings_without_parts_are_compared_without_an_interval():
    between = Reading("memory", 2.0, "MB").compare(Reading("memory", 3.0, "MB"))
    assert (between.value, between.low, between.record["factor"]) == (1.0, None, 1.5)
    with pytest.raises(NotComparable, match="speed"):
        Reading("memory", 2.0, "MB").compare(Reading("speed", 3.0, "MB"))


def test_one_chunk_has_no_spread_and_none_is_refused():
    found = reading([(2.0, 1.0)])
    assert found.value == 2 and found.low == found.high == 2
    with pytest.raises(BadValue):
        reading([])


def test_a_value_that_is_not_finite_becomes_none_with_a_reason():
    plain = Reading("x", float("nan")).to_json()
    assert plain["value"] is None and "nan" in plain["note"]
    assert str(Reading.from_json(plain).value) == "nan"


def test_a_result_is_saved_whole_and_read_back(parts, tmp_path):
    figure = Figure("bars", {"labels": ["a"], "values": [1.0]}, title="F")
    table = Table([{"a": 1}], title="T", figures=[figure])
    result = Result(
        "R", [reading(parts)], [table], [figure], [{"title": "s", "prompt": "p", "text": "<t>"}], {"seed": 0}
    )
    result.save(tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["figure-0.svg", "figure-1.svg", "report.html", "result.json", "table-0.csv"]
    back = Result.load(tmp_path / "run")
    assert json.loads(back.json_text()) == json.loads(result.json_text())
    assert "&lt;t&gt;" in result._repr_html_() and "R" in str(result)
    assert back.compare(result)["b-a"] == [0] and result.plot().get_title(loc="left") == "F"
    with pytest.raises(CannotWrite):
        result.save(tmp_path / "run")


def test_faults_are_named(tmp_path):
    with pytest.raises(UnknownName):
        Result("R").reading("bits")
    with pytest.raises(BadValue, match="no figure"):
        Result("R").plot()
    with pytest.raises(MissingFile):
        Result.load(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": "kobza.result/1"}')
    with pytest.raises(Corrupt):
        Result.load(tmp_path)
