"""Trace: the table tells what is there, and the file holds it."""

from pathlib import Path
from typing import Any

import pytest

from kobza.core.errors import OutOfRange, UnknownName
from kobza.interventions import trace
from kobza.models.trace import Trace

PROMPT = "the banks"


def test_norms_are_those_of_the_values(tiny: Any) -> None:
    values = tiny.trace(PROMPT, ["resid_post.1", "z.0"])
    rows = trace.run(tiny, prompt=PROMPT, over="resid_post.1; z.0.2@-1").tables[0]
    assert rows["norm"][:-1] == pytest.approx(values["resid_post.1"].double().norm(dim=1).tolist(), rel=1e-6)
    assert rows["norm"][-1] == pytest.approx(float(values["z.0"][-1, 2].norm()), rel=1e-6)


def test_a_pattern_has_mean_1_over_its_keys_and_masked_scores_are_left_out(tiny: Any) -> None:
    table = trace.run(tiny, prompt=PROMPT, over="pattern.1.2; scores.1.2@0").tables[0]
    T = len(table) - 1
    assert table["mean"][:-1] == pytest.approx([1 / T] * T)
    assert table["at"][-1] == 0, "the first query sees one key"


def test_the_file_holds_whole_sites(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "values.safetensors"
    trace.run(tiny, prompt=PROMPT, over="neuron.*.5@-1; norm1_scale.0; logits", into=str(path))
    found = Trace.load(path)
    assert list(found) == ["neuron.0", "neuron.1", "norm1_scale.0", "logits"]
    assert found["neuron.1"].shape[1] == 96


def test_pictures_are_made_of_sites_of_several_layers(tiny: Any) -> None:
    result = trace.run(tiny, prompt=PROMPT, over="resid_post.*; mlp_out.1; embed")
    assert [figure.title for figure in result.tables[0].figures] == ["Norm of resid_post.*"]


@pytest.mark.parametrize(
    ("over", "error", "text"),
    [("resid_pots.1", UnknownName, "resid_post"), ("z.1@9", OutOfRange, "positions"), ("k.1.3", OutOfRange, "0 to 1")],
)
def test_what_is_not_there_is_refused(tiny: Any, over: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        trace.run(tiny, prompt=PROMPT, over=over)
