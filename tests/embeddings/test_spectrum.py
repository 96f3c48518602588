"""Spectra equal numpy's and the closed formulas."""

import math

import numpy as np
import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched
from kobza.embeddings import spectrum
from kobza.embeddings.base import Vectors, vectors_of


def table(rows: int = 400, columns: int = 20) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.2, 2, columns) + 1


@pytest.mark.parametrize("shape", [(400, 20), (20, 400)])
def test_values_equal_numpy_centered_or_not(shape):
    W = table(*shape)
    X = W.double().numpy()
    assert np.allclose(spectrum.values(W), np.linalg.svd(X, compute_uv=False), rtol=1e-6)
    centered = np.linalg.svd(X - X.mean(0), compute_uv=False)
    assert np.allclose(spectrum.values(W, center=True), centered, rtol=1e-4, atol=1e-4)


def test_random_values_lie_between_the_marchenko_pastur_edges():
    W = torch.zeros(6000, 60)
    W[::2] = 0.14  # standard deviation 0.07, whatever the entries are
    values = spectrum.random_values(W, seed=1)
    low, high = spectrum.marchenko_pastur(W.shape, 0.07)
    assert low == pytest.approx(0.07 * (math.sqrt(6000) - math.sqrt(60)))
    assert values[-1] == pytest.approx(low, rel=0.02)
    assert values[0] == pytest.approx(high, rel=0.02)


def test_the_edges_do_not_depend_on_orientation():
    assert spectrum.marchenko_pastur((50, 700), 2.0) == spectrum.marchenko_pastur((700, 50), 2.0)


def test_equal_values_have_full_effective_rank():
    even = torch.full((12,), 3.0, dtype=torch.float64)
    assert spectrum.participation(even) == pytest.approx(12)
    assert spectrum.entropy_rank(even) == pytest.approx(12)


def test_one_value_has_effective_rank_one():
    single = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    assert spectrum.participation(single) == pytest.approx(1)
    assert spectrum.entropy_rank(single) == pytest.approx(1)
    assert spectrum.ranks(single) == [1] * 5


def test_effective_ranks_of_two_values_follow_their_formulas():
    s = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert spectrum.participation(s) == pytest.approx((9 + 1) ** 2 / (81 + 1))
    assert spectrum.entropy_rank(s) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_ranks_count_the_directions_that_keep_a_share_of_the_energy():
    s = torch.tensor([math.sqrt(60), math.sqrt(30), math.sqrt(6), math.sqrt(4)], dtype=torch.float64)
    assert spectrum.ranks(s, (0.5, 0.61, 0.9001, 0.961)) == [1, 2, 3, 4]


def test_zeros_have_no_effective_rank():
    assert spectrum.participation(torch.zeros(4)) == spectrum.entropy_rank(torch.zeros(4)) == 0


def test_centering_takes_one_direction_out_of_a_shifted_table():
    rows = {row["way"]: row for row in spectrum.table(Vectors(table() + 9, [str(i) for i in range(400)], name="made"))}
    assert rows["as it is"]["participation"] < 1.2
    assert rows["centered"]["participation"] > 5


def test_any_matrix_is_found_by_name(tiny):
    found = spectrum.table(tiny, where="blocks.*.mlp.down", center="no", random=False)
    assert found["matrix"] == ["blocks.0.mlp.down", "blocks.1.mlp.down"]
    expected = torch.linalg.svdvals(tiny.matrix("blocks.1.mlp.down").double())
    assert found[1]["largest"] == pytest.approx(float(expected[0]))
    assert found[1]["smallest"] == pytest.approx(float(expected[-1]))


def test_equal_seeds_give_equal_random_spectra(tiny):
    W = tiny.matrix("embed.in")
    assert torch.equal(spectrum.random_values(W, seed=3), spectrum.random_values(W, seed=3))
    assert not torch.equal(spectrum.random_values(W, seed=3), spectrum.random_values(W, seed=4))


def test_the_energy_curve_ends_at_one(tiny):
    energy = spectrum.table(tiny).figures[1]
    assert all(series["y"][-1] == pytest.approx(1) for series in energy.data["series"])


def test_a_name_that_is_no_matrix_is_refused(tiny):
    with pytest.raises(NothingMatched):
        spectrum.table(tiny, where="layers.*.ffn")
    with pytest.raises(BadValue, match=r"'norm' is a vector, not a matrix"):
        spectrum.table(tiny, where="norm")


def test_word_vectors_have_a_spectrum(tiny):
    mine = spectrum.table(vectors_of(tiny), random=False)
    assert mine["largest"] == spectrum.table(tiny, random=False)["largest"]


@pytest.mark.real
def test_smollm2_spectrum_is_the_measured_one(smollm2):
    rows = {row["way"]: row for row in spectrum.table(smollm2)}
    raw, centered, drawn = rows["as it is"], rows["centered"], rows["random"]
    assert [round(raw[key], 1) for key in ("largest", "smallest")] == [509.9, 5.6]
    assert [raw[f"rank {share}%"] for share in (50, 80, 90, 95, 99)] == [2, 242, 373, 454, 537]
    assert round(centered["largest"], 1) == 176.8
    assert (round(raw["participation"]), round(centered["participation"])) == (4, 70)
    assert round(raw["lower edge"], 2), round(raw["upper edge"], 2) == (26.80, 33.31)
    assert drawn["above random"] == 0
    assert raw["above random"] == 10
