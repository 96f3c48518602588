"""Nearest tokens: equal to scikit-learn's, by text, by sum, and with helpful errors."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from kobza.core.errors import OutOfRange, UnknownName
from kobza.embeddings import neighbors
from kobza.embeddings.base import Vectors, resolve, vectors_of
from kobza.models import nearest
from kobza.models.nearest import nearest_rows


def table(rows: int = 500, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def named(rows: int = 60) -> Vectors:
    return Vectors(table(rows), [f"w{i}" for i in range(rows)], name="made")


@pytest.mark.parametrize(("metric", "theirs"), [("cosine", "cosine"), ("euclid", "euclidean")])
@pytest.mark.parametrize("center", [False, True])
def test_neighbors_equal_scikit_learns(metric, theirs, center):
    X = table()
    off = X.double().mean(0) if center else None
    values, rows = nearest_rows(X, X[:40], 7, metric=metric, center=off)
    Y = X.double().numpy() - (0 if off is None else off.numpy())
    distances, expected = NearestNeighbors(n_neighbors=7, metric=theirs).fit(Y).kneighbors(Y[:40])
    assert np.array_equal(rows, expected)
    assert np.allclose(values, 1 - distances if metric == "cosine" else distances, atol=1e-6)


def test_dot_products_equal_numpys():
    X = table().double().numpy()
    values, rows = nearest_rows(table(), table()[:10], 5, metric="dot")
    expected = np.argsort(-(X[:10] @ X.T), axis=1)[:, :5]
    assert np.array_equal(rows, expected)
    assert np.allclose(values, np.take_along_axis(X[:10] @ X.T, expected, 1))


def test_many_queries_equal_the_same_one_by_one():
    X = table(3000, 24)
    together = nearest_rows(X, X[::5], 9)
    for query in (0, 250, 599):
        alone = nearest_rows(X, X[5 * query : 5 * query + 1], 9)
        assert torch.equal(alone[1][0], together[1][query])
        assert torch.allclose(alone[0][0], together[0][query])


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_rough_candidates_change_no_answer(monkeypatch, metric, spread):
    """Also where rows lie so close that bfloat16 cannot tell them apart: then float32 is asked again."""
    X = 1 + spread * table(2000, 24)
    monkeypatch.setattr(nearest, "has_bfloat16", lambda: False)
    plain = nearest_rows(X, X[:200], 9, metric=metric)
    monkeypatch.setattr(nearest, "has_bfloat16", lambda: True)
    rough = nearest_rows(X, X[:200], 9, metric=metric)
    assert torch.equal(rough[1], plain[1])
    assert torch.equal(rough[0], plain[0])


def test_a_rough_answer_called_certain_is_right():
    X = table(3000, 24)
    queries = X[:300].double() / X[:300].double().norm(dim=1, keepdim=True)
    _, rows, is_certain = nearest._in_bfloat16(X, queries, 5, "cosine", None)
    assert int(is_certain.sum()) > 0
    assert torch.equal(rows[is_certain], nearest._in_float32(X, queries[is_certain], 5, "cosine", None)[1])


def test_equal_rows_come_in_the_order_of_their_numbers():
    X = table(50).repeat(3, 1)
    assert nearest_rows(X, X[:1], 3)[1].tolist() == [[0, 50, 100]]


def test_a_row_is_its_own_nearest():
    assert nearest_rows(table(), table(), 1)[1][:, 0].tolist() == list(range(500))


def test_k_outside_the_table_is_refused():
    with pytest.raises(OutOfRange, match=r"k=501 neighbors of 500 rows; allowed: 1 \.\. 500"):
        nearest_rows(table(), table(), 501)
    with pytest.raises(OutOfRange, match=r"allowed: 1 \.\. 59"):
        named().near("w0", k=60)


def test_the_query_itself_is_left_out():
    assert "w7" not in named().near("w7", k=20)["neighbor"]
    assert not {"w1", "w2", "w3"} & set(named().near("w1 - w2 + w3", k=20)["neighbor"])


def test_a_sum_of_terms_is_the_sum_of_vectors():
    vectors = named()
    query = resolve(vectors, '"w1" - "w2" + "w3"')
    W = vectors.matrix.double()
    assert query.rows == (1, 2, 3)
    assert torch.allclose(query.vector, W[1] - W[2] + W[3])
    assert torch.equal(resolve(vectors, "w1 - w2 + w3").vector, query.vector)
    assert vectors.analogy("w1", "-w2", "w3").rows == vectors.near("w1 - w2 + w3", k=5).rows


def test_combine_takes_sum_and_mean_of_the_pieces(tiny):
    vectors = vectors_of(tiny)
    ids = tiny.tokenizer.encode("the zq")
    W = vectors.matrix[ids].double()
    assert torch.allclose(resolve(vectors, "the zq", "sum").vector, W.sum(0))
    assert torch.allclose(resolve(vectors, "the zq", "mean").vector, W.mean(0))


def test_an_unknown_token_shows_its_pieces(tiny):
    with pytest.raises(UnknownName) as caught:
        neighbors.table(tiny, token=" theqx")
    assert "' theqx' is no single token of 'tiny:llama embed.in'. It splits into '▁the' 'q' 'x'." in str(caught.value)
    assert "combine=sum" in str(caught.value)


def test_an_unknown_word_names_the_nearest():
    words = Vectors(table(3), ["ocean", "oceans", "sea"], name="seas")
    with pytest.raises(UnknownName, match="'ocaen' is no single word of 'seas'.\nNearest: 'ocean'"):
        words.near("ocaen")


def test_both_ends_of_an_untied_model_can_be_asked(tiny):
    import kobza

    untied = kobza.open("tiny:llama?tied=false")
    assert vectors_of(untied, "out").matrix.data_ptr() != vectors_of(untied, "in").matrix.data_ptr()
    assert torch.equal(vectors_of(tiny, "out").matrix, vectors_of(tiny, "in").matrix)


def test_a_row_outside_the_table_is_refused(tiny):
    with pytest.raises(OutOfRange, match=r"has no row 300; its rows are 0 \.\. 299"):
        neighbors.table(tiny, ids=[300])


def test_all_components_find_all_euclidean_neighbors():
    vectors = Vectors(table(400, 8), [str(i) for i in range(400)], name="made")
    assert neighbors.true_share(vectors, range(20), components=8, metric="euclid") == 1
    assert neighbors.true_share(vectors, range(20), components=2, metric="euclid") < 0.5


def test_the_tree_finds_what_comparing_all_finds():
    vectors = Vectors(table(400, 8), [str(i) for i in range(400)], name="made")
    queries = vectors.matrix[:30]
    plain = neighbors.search_reduced(vectors, queries, 6, components=3)
    assert torch.equal(neighbors.search_reduced(vectors, queries, 6, components=3, tree=True), plain)


def test_the_reduced_search_is_reported_beside_the_exact_one(tiny):
    found = neighbors.table(tiny, token=" t", k=5, metric="euclid", reduced=32)
    assert found["neighbor"] == found["reduced"]
    assert all(found["found"])
    assert "finds 100.0% of the true neighbors" in found.note


def test_without_a_query_rows_all_over_the_table_are_asked(tiny):
    assert len(set(neighbors.table(tiny, k=2)["query"])) == 5


@pytest.mark.real
def test_lava_is_near_magma_and_pca_hides_it(smollm2):
    found = neighbors.table(smollm2, token=" lava", k=6, reduced=10)
    near = [" magma", " basalt", " volcan", " igneous", " eruptions", " Volcano"]
    assert found["neighbor"] == [word.replace(" ", "▁") for word in near]
    assert found["reduced"][:3] == ["▁Protest", "▁jets", "▁casing"]
    assert not any(found["found"])


@pytest.mark.real
def test_king_less_man_plus_woman_is_queen(smollm2):
    assert neighbors.table(smollm2, token='" king" - " man" + " woman"')["neighbor"][0] == "▁queen"
