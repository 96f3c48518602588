"""Latent steps: none changes nothing; a vector of the table is a token."""

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import greedy, latent
from kobza.decoding.base import Note
from kobza.decoding.latent import matched
from kobza.models.bare import BareStepper
from kobza.models.stepping import using
from kobza.models.tiny import tiny


def test_no_latent_step_is_greedy() -> None:
    model = tiny()
    assert (
        latent.generate(model, "The kobza", tokens=20, latents=0).ids
        == greedy.generate(model, "The kobza", tokens=20).ids
    )


def test_a_certain_expectation_is_the_token_itself() -> None:
    model = tiny()
    logits = torch.full((1, 300), -1e4).index_fill_(1, torch.tensor([7]), 0.0)
    vector = matched(model, torch.zeros(1, 1, 32), logits, "expected")
    run, twin = BareStepper(model), BareStepper(model)
    for each in (run, twin):
        each.feed([[1, 2, 3]])
    assert torch.allclose(run.feed_vectors(vector)[0], twin.feed([[7]]), atol=1e-5)


def test_the_norm_is_that_of_the_table() -> None:
    model = tiny()
    found = matched(model, torch.randn(1, 1, 32), torch.zeros(1, 300), "norm")
    mean = model.module.get_input_embeddings().weight.norm(dim=-1).mean()
    assert float(found.norm()) == pytest.approx(float(mean.detach()), rel=1e-5)


@pytest.mark.parametrize("match", ["state", "norm", "expected"])
def test_latent_steps_take_places_and_are_told(match: latent.Match) -> None:
    said = latent.generate(tiny(), "The kobza", tokens=8, latents=3, match=match)
    notes = [event.said for event in said.events if isinstance(event, Note)]
    assert [note.split(":")[0] for note in notes] == ["latent 1", "latent 2", "latent 3"]
    assert len(said.ids) == 8 and said.passes == 1 + 3 + 7


def test_what_cannot_be_fed_vectors_is_refused() -> None:
    with pytest.raises(BadValue, match="cannot be fed vectors"), using("transformers"):
        _ = latent.generate(tiny(), "a").text
    with pytest.raises(OutOfRange, match="latents is -1"):
        latent.generate(tiny(), "a", latents=-1)
    with pytest.raises(OutOfRange, match="was trained for 16"):
        latent.generate(tiny(context=16), "a", tokens=8, latents=8)
