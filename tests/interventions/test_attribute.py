"""Attribution: its gradient is the model's own (finite differences), and its error against the exact grid is stated."""

from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue
from kobza.interventions import attribute, patch
from kobza.interventions.base import Edit, metrics, places, prompt_ids
from kobza.interventions.planner import Run
from kobza.models.tiny import tiny as make

CLEAN, CORRUPT = "the winds of it", "the winks of it"


def difference(run: Run, edit: Edit, metric: Any, step: float) -> float:
    """Central difference of the metric along the edit's value."""
    cells = [(Edit(edit.site, edit.positions, edit.value * s, adds=True),) for s in (step, -step)]
    up, down = run.outcome(cells, [metric]).values[:, 0].tolist()
    return (up - down) / (2 * step)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("over", ["resid_pre.*@*", "z.*.*", "mlp_out.*", "neuron.0.5"])
def test_the_estimate_is_the_finite_difference_within_1_percent(family: str, over: str) -> None:
    model = make(family)
    model.module.double()  # in float32 the difference itself is rounded away
    source, target = (Run(model, prompt_ids(model, text)) for text in (CLEAN, CORRUPT))
    target.last = target.last.double()
    metric = metrics(model, "logit", source.top)[0]
    table = attribute.run(model, clean=CLEAN, corrupt=CORRUPT, over=over, exact=False).tables[0]
    estimates = {row["place"]: row["logit change"] for row in table}
    for place in places(model, source.ids, over)[:12]:
        empty = Edit(place.site, place.positions, torch.tensor(0.0))
        change = source.part(empty) - target.part(empty)
        # float32 logits of the plan round at 1e-7: a step of 0.01 leaves both errors below 1 %
        found = difference(target, Edit(place.site, place.positions, change), metric, 0.01)
        assert estimates[place.address] == pytest.approx(found, rel=0.01, abs=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_integrated_gradients_at_the_embedding_sum_to_the_whole_difference(family: str) -> None:
    """The axiom of completeness, which the plain gradient does not keep."""
    model = make(family)
    source, target = (Run(model, prompt_ids(model, text)) for text in (CLEAN, CORRUPT))
    metric = metrics(model, "logit:k", source.top)
    whole = float(source.clean(metric).values[0, 0] - target.clean(metric).values[0, 0])
    options = {"clean": CLEAN, "corrupt": CORRUPT, "over": "resid_pre.0@*", "metric": "logit:k", "exact": False}
    found = attribute.run(model, **options, how="integrated", steps=40).tables[0]
    assert sum(found["logit:k change"]) == pytest.approx(whole, rel=0.01, abs=1e-4)


def test_places_before_the_first_difference_are_exactly_0(tiny: Any) -> None:
    table = attribute.run(tiny, clean=CLEAN, corrupt=CORRUPT).tables[0]
    assert all(row["logit change"] == 0 for row in table if int(row["place"].split("@")[1]) < 5)


def test_the_correlation_is_that_with_the_exact_grid(tiny: Any) -> None:
    options = {"clean": CLEAN, "corrupt": CORRUPT, "over": "z.*.*"}
    result = attribute.run(tiny, **options)
    exact = {row["place"]: row["logit change"] for row in patch.run(tiny, **options).tables[0]}
    rows = result.tables[0]
    both = torch.tensor([[row["logit change"], exact[row["place"]]] for row in rows], dtype=torch.float64)
    assert result.reading("correlation").value == pytest.approx(float(torch.corrcoef(both.T)[0, 1]), rel=1e-6)


def test_without_the_exact_grid_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in attribute.run(tiny, clean=CLEAN, corrupt=CORRUPT, exact=False).title
    assert "uncontrolled" not in attribute.run(tiny, clean=CLEAN, corrupt=CORRUPT).title


def test_a_metric_without_gradient_is_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="has no gradient"):
        attribute.run(tiny, clean=CLEAN, corrupt=CORRUPT, metric="top1")


def test_no_gradient_is_left_on_the_weights(tiny: Any) -> None:
    attribute.run(tiny, clean=CLEAN, corrupt=CORRUPT)
    assert all(p.grad is None and not p.requires_grad for p in tiny.module.parameters())
