"""The map equals scikit-learn's PCA up to signs, which are settled."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from kobza.core.errors import OutOfRange, UnknownName
from kobza.embeddings import projection
from kobza.embeddings.base import Vectors, vectors_of
from kobza.models.linear_algebra import principal


def made(rows: int = 300, width: int = 12, seed: int = 2) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, width, generator=generator) * torch.linspace(3, 0.3, width) + 5
    return Vectors(matrix, [f"w{i}" for i in range(rows)], name="made")


def test_components_equal_scikit_learns_up_to_signs():
    vectors = made()
    theirs = PCA(3, svd_solver="full").fit(vectors.matrix.double().numpy())
    parts = principal(vectors.matrix)
    assert np.allclose(parts.share[:3], theirs.explained_variance_ratio_)
    mine = parts.places(vectors.matrix.double(), 3).numpy()
    expected = theirs.transform(vectors.matrix.double().numpy())
    assert np.allclose(np.abs(mine), np.abs(expected))


def test_the_largest_entry_of_every_direction_is_positive():
    basis = principal(made().matrix).basis
    assert bool((basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all())


def test_a_table_of_equal_rows_has_no_directions():
    assert principal(torch.ones(5, 3)).share.tolist() == [0, 0, 0]


def test_the_map_shows_every_row_and_names_the_asked(tiny):
    figure = projection.table(tiny, words=[" the", " t"], ids="10..11;40").figures[0]
    assert figure.kind == "map"
    assert len(figure.data["x"]) == len(figure.data["labels"]) == 300
    ids = tiny.tokenizer.id_of(b" the"), tiny.tokenizer.id_of(b" t"), 10, 11, 40
    assert tuple(name["index"] for name in figure.data["named"]) == ids
    assert figure.data["named"][0]["x"] == pytest.approx(float(figure.data["x"][ids[0]]))


def test_three_components_turn(tiny):
    figure = projection.table(tiny, components=3).figures[0]
    assert len(figure.data["z"]) == 300
    assert "Shift" in figure.html()


def test_only_the_named_rows_are_drawn_along_their_own_components():
    vectors = made()
    found = projection.table(vectors, words=["w1", "w5", "w9", "w2"], only=True)
    assert found.figures[0].kind == "points"
    theirs = PCA(2).fit_transform(vectors.matrix[[1, 5, 9, 2]].double().numpy())
    assert np.allclose(np.abs(found["component 1"]), np.abs(theirs[:, 0]), atol=1e-4)
    assert found["label"] == ["w1", "w5", "w9", "w2"]


def test_coordinates_in_the_table_are_those_of_the_map(tiny):
    found = projection.table(tiny, ids="5..7")
    figure = found.figures[0]
    assert found["component 2"] == pytest.approx([float(figure.data["y"][id]) for id in (5, 6, 7)])


def test_shares_grow_to_one(tiny):
    shares = projection.table(tiny)["share of all"]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


@pytest.mark.parametrize("ids", ["300", "7..300", "9..3", "a", "-1", "1..b"])
def test_rows_outside_the_table_are_refused(tiny, ids):
    with pytest.raises(OutOfRange, match=r"names no rows of this table; allowed: 0 \.\. 299"):
        projection.table(tiny, ids=ids)


def test_other_numbers_of_components_are_refused(tiny):
    with pytest.raises(OutOfRange, match=r"components=4 of vectors of width 32; allowed: 2, or 3"):
        projection.table(tiny, components=4)


def test_an_unknown_word_is_refused(tiny):
    with pytest.raises(UnknownName, match="is no single token"):
        projection.table(tiny, words=["zqzqzq"])


def test_equal_tables_give_equal_maps(tiny):
    first, second = (projection.table(vectors_of(tiny)).figures[0].data["x"] for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.real
def test_smollm2_explains_little_in_two_directions(smollm2):
    shares = {row["components"]: row["share of all"] for row in projection.table(smollm2)}
    assert [round(100 * shares[n], 1) for n in (1, 3, 10, 100)] == [10.9, 14.7, 18.6, 39.4]
