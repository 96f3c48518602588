"""Parameter counts equal torch's own."""

import math

import pytest

import kobza
from kobza.embeddings import sizes
from kobza.embeddings.base import vectors_of


def test_counts_sum_to_the_parameters_of_the_module(tiny):
    for by in ("kind", "layer", "matrix"):
        found = sizes.table(tiny, by=by)
        assert sum(found["parameters"]) == sum(p.numel() for p in tiny.module.parameters())
        assert math.isclose(sum(found["share"]), 1)
        assert sum(found["bytes"]) == tiny.stored_bytes


def test_a_tied_end_counts_once(tiny):
    found = sizes.table(tiny)
    rows = {row["part"]: row for row in found}
    assert rows["embed.out"]["parameters"] == 0
    assert rows["embed.out"]["shape"] == "300 x 32 (= embed.in)"
    assert "untying would add 9,600" in found.note


def test_an_untied_model_says_so():
    found = sizes.table(kobza.open("tiny:llama?tied=false"))
    assert "(untied)" in found.note
    assert {row["part"]: row for row in found}["embed.out"]["parameters"] == 9600


def test_layers_are_rows_of_their_own(tiny):
    assert sizes.table(tiny, by="layer")["part"] == ["embed.in", "embed.out", "blocks.0", "blocks.1", "norm"]


def test_word_vectors_are_one_part(tiny):
    assert sizes.table(vectors_of(tiny))["parameters"] == [9600]


def test_the_bars_hold_every_part_with_parameters(tiny):
    found = sizes.table(tiny)
    assert found.figures[0].data["labels"] == [row["part"] for row in found if row["parameters"]]


@pytest.mark.real
def test_smollm2_has_21_percent_in_its_embeddings(smollm2):
    found = sizes.table(smollm2)
    assert "134,515,008 parameters, 21.05% of them in embeddings" in found.note
    assert "untying would add 28,311,552" in found.note
