"""Before and after: one intervention on two models, joined place by place."""

import json
from typing import Any

import pytest

from kobza.cli.main import main
from kobza.core.errors import NotComparable
from kobza.core.table import Table
from kobza.edits import noise
from kobza.interventions import ablate
from kobza.interventions.before_after import before_after

OPTIONS: Any = {"prompt": "the banks of it", "over": "z.*.*", "metric": "logit:k"}


def test_a_model_against_itself_agrees_and_differs_nowhere(tiny: Any) -> None:
    one = ablate.run(tiny, **OPTIONS)
    result = before_after(one, one, "nothing")
    assert result.reading("agreement").value == pytest.approx(1)
    assert result.tables[0]["logit:k change b-a"] == [0] * 8
    assert result.tables[0].figures[-1].data["values"] == [[0] * 4, [0] * 4]


def test_the_difference_is_after_minus_before(tiny: Any) -> None:
    before, after = (ablate.run(model, **OPTIONS) for model in (tiny, noise.apply(tiny, strength=0.5)))
    result = before_after(before, after, "noise")
    a, b = ({row["place"]: row["logit:k change"] for row in one.tables[0]} for one in (before, after))
    for row in result.tables[0]:
        assert row["logit:k change b-a"] == pytest.approx(b[row["place"]] - a[row["place"]])
    assert len(result.tables[0].figures) == 3
    assert result.reading("clean before").value == before.reading("clean").value


def test_unequal_places_are_refused(tiny: Any) -> None:
    with pytest.raises(NotComparable, match="do not name the same places"):
        before_after(ablate.run(tiny, **OPTIONS), ablate.run(tiny, **{**OPTIONS, "over": "mlp_out.*"}), "x")


def test_the_command_line_takes_an_edit_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "tiny", "--prompt", "the banks of it", "--metric", "logit:k", "--against", "noise:strength=0.5"]
    assert main([*words, "--json"]) == 0
    table = Table.from_json(json.loads(capsys.readouterr().out)["tables"][0])
    assert table["logit:k change b-a"][0] != 0
    assert main([*words[:-1], "noize"]) == 2
    assert "noise" in capsys.readouterr().err
