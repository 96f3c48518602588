"""Glitch tokens: kinds follow from the tokenizer, a planted untrained row comes first, repetition is the model's."""

from typing import Any

import pytest
import torch

from kobza.core.errors import NothingMatched, OutOfRange
from kobza.interventions import glitch
from kobza.models.model import Change


def test_kinds_follow_their_definitions(tiny: Any) -> None:
    kinds = glitch.kinds_of(tiny.tokenizer, tiny.vocabulary + 2)
    tokenizer = tiny.tokenizer
    assert {i for i, kind in enumerate(kinds) if kind == "special"} == set(tokenizer.special.values())
    assert kinds[-2:] == ["absent"] * 2
    for i, kind in enumerate(kinds[:-2]):
        if kind in ("ordinary", "unreachable"):
            assert (tokenizer.encode(tokenizer.bytes_of(i)) == [i]) is (kind == "ordinary")
    assert kinds[tokenizer.id_of(b"\xd0")] == "partial"


def test_a_row_like_those_that_cannot_occur_comes_first(tiny: Any) -> None:
    rows = tiny.matrix("embed").clone()
    special = list(tiny.tokenizer.special.values())
    rows[special] = rows[special[0]].clone()
    planted = tiny.tokenizer.encode("k")[0]
    rows[planted] = 1.02 * rows[special[0]]
    found = glitch.run(tiny.replace({"embed": rows}, change=Change("planted")), top=3).tables[0]
    assert found[0]["id"] == planted
    assert found[0]["distance"] < 0.01 < found[1]["distance"]


def test_the_probability_is_the_models_own(tiny: Any) -> None:
    result = glitch.run(tiny, top=3)
    row = result.tables[0][0]
    draw = torch.Generator().manual_seed(0)
    ordinary = [i for i, kind in enumerate(glitch.kinds_of(tiny.tokenizer, tiny.vocabulary)) if kind == "ordinary"]
    glitch._controls(result.tables[0]["id"], ordinary, draw)
    ask = glitch._Question.made(tiny, ordinary, draw)
    ids = torch.tensor([[*ask.before, row["id"], *ask.between]])
    with torch.inference_mode():
        p = tiny.module(input_ids=ids).logits[0, -1].softmax(-1)[row["id"]]
    assert row["prob"] == pytest.approx(float(p), rel=1e-4)


def test_controls_are_other_ordinary_tokens(tiny: Any) -> None:
    ordinary = list(range(10, 60))
    found = glitch._controls([20, 21, 22], ordinary, torch.Generator().manual_seed(0))
    assert len(set(found)) == 3
    assert set(found) <= set(ordinary) - {20, 21, 22}


def test_too_many_candidates_are_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="ordinary tokens"):
        glitch.run(tiny, top=301)


def test_without_a_reference_it_is_refused(tiny: Any) -> None:
    with pytest.raises(NothingMatched, match="no reference"):
        glitch._distances(tiny, ["ordinary"] * tiny.vocabulary, "embed.out")


@pytest.mark.real
def test_on_smollm2_the_nearest_cannot_be_repeated_and_others_can(smollm2: Any) -> None:
    result = glitch.run(smollm2, top=20)
    assert result.reading("verified").value > result.reading("control").value + 0.5
