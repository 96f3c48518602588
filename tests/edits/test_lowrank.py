"""Low rank: Eckart and Young's theorem, its weighted form, and what is stored."""

from typing import Any

import numpy as np
import pytest
import torch

from kobza.core.errors import BadValue, NotComparable, NothingMatched, OutOfRange
from kobza.edits import base, lowrank
from kobza.models import forward
from kobza.models.model import Factors
from kobza.models.tiny import tiny as make_tiny

IDS = torch.arange(40, 100)[None]
TALL, WIDE = "blocks.0.mlp.up", "blocks.1.mlp.down"  # 96 x 32 and 32 x 96
READ: dict[str, Any] = {"calibration": ["topics[400000:401500]"], "calibration_tokens": 256}


def logits(model: Any) -> torch.Tensor:
    return forward.logits(model, IDS)


def error(W: torch.Tensor, new: torch.Tensor, rows: torch.Tensor, metric: torch.Tensor) -> float:
    """|D^1/2 (W - W') M^1/2|^2, by its definition."""
    d = (W - new).double()
    return float((rows[:, None] * (d @ metric) * d).sum())


def weighing(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    rows = torch.rand(shape[0], generator=draw, dtype=torch.float64) + 0.01
    X = torch.randn(shape[1], 2 * shape[1], generator=draw, dtype=torch.float64)
    return rows, X @ X.T / X.shape[1]


@pytest.mark.parametrize("name", ["embed", TALL, WIDE])
def test_full_rank_changes_nothing(tiny: Any, name: str) -> None:
    edited = lowrank.apply(tiny, where=name, rank=32)
    assert torch.equal(edited.matrix(name), tiny.matrix(name))
    assert torch.equal(logits(edited), logits(tiny))


@pytest.mark.parametrize("options", [{}, {"center": True}, {"weights": "zipf"}])
def test_full_rank_in_factors_is_the_matrix(tiny: Any, options: dict[str, Any]) -> None:
    edited = lowrank.apply(tiny, rank=32, store="factors", **options)
    assert torch.allclose(edited.matrix("embed"), tiny.matrix("embed"), atol=1e-5)


@pytest.mark.parametrize("name", ["embed", TALL, WIDE])
@pytest.mark.parametrize("rank", [1, 7, 31])
def test_the_plain_method_equals_the_truncated_svd_of_numpy(tiny: Any, name: str, rank: int) -> None:
    U, S, Vt = np.linalg.svd(tiny.matrix(name).double().numpy(), full_matrices=False)
    expected = (U[:, :rank] * S[:rank]) @ Vt[:rank]
    edited = lowrank.apply(tiny, where=name, rank=rank)
    assert np.allclose(edited.matrix(name).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["embed", WIDE])
def test_the_squared_error_is_the_energy_of_the_tail(tiny: Any, name: str) -> None:
    S = np.linalg.svd(tiny.matrix(name).double().numpy(), compute_uv=False)
    facts = lowrank.apply(tiny, where=name, rank=9).changes[-1].facts
    assert facts["relative_error"] ** 2 == pytest.approx((S[9:] ** 2).sum() / (S**2).sum(), rel=1e-5)
    assert facts["energy_kept"] == pytest.approx((S[:9] ** 2).sum() / (S**2).sum(), rel=1e-5)


def test_centering_equals_pca(tiny: Any) -> None:
    W = tiny.matrix("embed").double().numpy()
    mean = W.mean(0)
    U, S, Vt = np.linalg.svd(W - mean, full_matrices=False)
    edited = lowrank.apply(tiny, rank=5, center=True)
    assert np.allclose(edited.matrix("embed").numpy(), mean + (U[:, :5] * S[:5]) @ Vt[:5], atol=1e-5)


@pytest.mark.parametrize("name", [TALL, WIDE])
@pytest.mark.parametrize("rank", [1, 8, 20])
def test_the_weighted_method_equals_the_svd_of_the_weighted_matrix(tiny: Any, name: str, rank: int) -> None:
    W = tiny.matrix(name)
    rows, metric = weighing((W.shape[0], W.shape[1]))
    found = lowrank.directions(tiny, name, lowrank.Weighing(rows, metric, f"test {name}"))
    A, B = found.factors(W, rank)
    values, vectors = np.linalg.eigh(metric.numpy())
    root = vectors * np.sqrt(values) @ vectors.T
    S = np.linalg.svd(np.sqrt(rows.numpy())[:, None] * W.double().numpy() @ root, compute_uv=False)
    assert error(W, A @ B, rows, metric) == pytest.approx((S[rank:] ** 2).sum(), rel=1e-4)
    assert torch.linalg.matrix_rank((A @ B).double(), rtol=1e-5) == rank


def test_no_other_matrix_of_the_rank_is_nearer_under_the_weights(tiny: Any) -> None:
    W = tiny.matrix(TALL)
    rows, metric = weighing((96, 32))
    A, B = lowrank.directions(tiny, TALL, lowrank.Weighing(rows, metric, "nearest")).factors(W, 6)
    best = error(W, A @ B, rows, metric)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        near = (A + 0.01 * torch.randn(A.shape, generator=draw)) @ (B + 0.01 * torch.randn(B.shape, generator=draw))
        assert error(W, near, rows, metric) > best
    plain = lowrank.apply(tiny, where=TALL, rank=6).matrix(TALL)
    assert error(W, plain, rows, metric) > best


def test_equal_weights_are_the_plain_method(tiny: Any) -> None:
    W = tiny.matrix("embed")
    flat = lowrank.Weighing(torch.ones(300).double(), torch.eye(32).double(), "flat")
    A, B = lowrank.directions(tiny, "embed", flat).factors(W, 6)
    assert torch.allclose(A @ B, lowrank.apply(tiny, rank=6).matrix("embed"), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"where": "embed"},
        {"where": "embed.in"},
        {"where": "embed.out", "center": True},
        {"where": "embed", "weights": "fisher", "metric": "moments", **READ},
        {"where": "blocks.*", "metric": "moments", **READ},
    ],
)
def test_factors_and_their_product_give_equal_logits(tiny: Any, options: dict[str, Any]) -> None:
    dense = lowrank.apply(tiny, rank=12, **options)
    factors = lowrank.apply(tiny, rank=12, store="factors", **options)
    assert torch.allclose(logits(dense), logits(factors), atol=1e-4)
    assert (dense.changes[-1].kind, factors.changes[-1].kind) == ("values", "factor")
    assert dense.changes[-1].facts["relative_error"] == pytest.approx(factors.changes[-1].facts["relative_error"])


def test_factors_take_the_bytes_of_two_thin_matrices(tiny: Any) -> None:
    facts = lowrank.apply(tiny, rank=12, store="factors").changes[-1].facts
    assert facts["matrices"]["embed"]["stored_bytes"] == 4 * (300 * 12 + 12 * 32)
    assert facts["stored_bytes_before"] - facts["stored_bytes"] == 4 * (300 * 32 - 300 * 12 - 12 * 32)
    dense = lowrank.apply(tiny, rank=12).changes[-1].facts
    assert dense["stored_bytes"] == dense["stored_bytes_before"], "a product of the old shape saves nothing"


@pytest.mark.parametrize(("rows", "columns"), [(300, 32), (49152, 576), (96, 32), (32, 32)])
def test_factors_save_bytes_up_to_the_break_even_rank(rows: int, columns: int) -> None:
    rank = lowrank.break_even(rows, columns)
    assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_both_ends_stay_tied_and_one_end_unties(tiny: Any) -> None:
    assert lowrank.apply(tiny, rank=12).is_tied
    assert lowrank.apply(tiny, rank=12, store="factors").is_tied
    one = lowrank.apply(tiny, where="embed.in", rank=12)
    assert not one.is_tied
    assert torch.equal(one.matrix("embed.out"), tiny.matrix("embed.out"))
    assert torch.linalg.matrix_rank(one.matrix("embed.in"), rtol=1e-5) == 12


def test_an_untied_model_has_each_end_weighed_for_itself() -> None:
    model = make_tiny(tied=False)
    options: dict[str, Any] = {"rank": 9, "weights": "fisher", "metric": "moments", **READ}
    both = lowrank.apply(model, **options)
    for end in ("embed.in", "embed.out"):
        alone = lowrank.apply(model, where=end, **options)
        assert torch.equal(alone.matrix(end), both.matrix(end))


@pytest.mark.parametrize("weights", ["zipf", "frequency", "fisher"])
def test_row_weights_lower_the_error_of_the_rows_they_favor(tiny: Any, weights: str) -> None:
    options = {} if weights == "zipf" else READ
    W = tiny.matrix("embed")
    rule = lowrank.Rule(weights, "none", tuple(base.calibration_texts(READ["calibration"])), 256, 0.1, 0.01)
    rows = rule.weighings(tiny, ["embed"])["embed"].rows
    unit = torch.eye(32).double()
    edited = lowrank.apply(tiny, rank=6, weights=weights, **options)
    plain = lowrank.apply(tiny, rank=6)
    assert error(W, edited.matrix("embed"), rows, unit) < error(W, plain.matrix("embed"), rows, unit)
    assert edited.changes[-1].facts["relative_error"] > plain.changes[-1].facts["relative_error"]


def test_the_metric_lowers_the_error_of_what_a_layer_gives(tiny: Any) -> None:
    texts = base.calibration_texts(READ["calibration"])
    metric = base.input_moments(tiny, [WIDE], texts, 256)[WIDE]
    W, rows = tiny.matrix(WIDE), torch.ones(32).double()
    options = {"where": WIDE, "rank": 6, "damping": 1e-6}
    edited = lowrank.apply(tiny, metric="moments", **options, **READ)
    plain = lowrank.apply(tiny, **options)
    assert error(W, edited.matrix(WIDE), rows, metric) < error(W, plain.matrix(WIDE), rows, metric)


def test_counting_tokens_needs_no_pass_of_the_model(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "moments", lambda *_: pytest.fail("the model was run"))
    lowrank.apply(tiny, rank=6, weights="frequency", **READ)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "opt", "phi", "phi3"])
def test_every_family_can_be_weighed_at_its_ends_and_layers(family: str) -> None:
    model = make_tiny(family)
    ends = lowrank.apply(model, rank=8, weights="fisher", metric="moments", **READ)
    both = lowrank.apply(ends, where="blocks.*.mlp", rank=8, metric="moments", store="factors", **READ)
    assert torch.isfinite(logits(both)).all()
    assert both.changes[-1].kind == "factor"


def test_a_sweep_over_ranks_factorizes_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"weights": "zipf", "metric": "moments", **READ}
    first = lowrank.apply(tiny, rank=6, **options)
    monkeypatch.setattr(lowrank, "_factorize", lambda *_: pytest.fail("factorized again"))
    monkeypatch.setattr(base, "_measured", lambda *_: pytest.fail("calibrated again"))
    lowrank.apply(tiny, rank=20, **options)
    assert torch.equal(lowrank.apply(tiny.fork(), rank=6, **options).matrix("embed"), first.matrix("embed"))


def test_an_edit_of_an_edited_model_starts_from_its_own_numbers(tiny: Any) -> None:
    once = lowrank.apply(tiny, rank=12, weights="zipf", store="factors")
    twice = lowrank.apply(once, rank=5, weights="zipf")
    assert torch.linalg.matrix_rank(twice.matrix("embed"), rtol=1e-5) == 5
    direct = lowrank.apply(tiny, rank=5, weights="zipf")
    assert torch.allclose(twice.matrix("embed"), direct.matrix("embed"), atol=1e-4), "the best 5 are among the best 12"
    assert [change.technique for change in twice.changes] == ["lowrank", "lowrank"]


def test_the_change_names_the_calibration_by_hash_only_where_it_was_used(tiny: Any) -> None:
    used = lowrank.apply(tiny, rank=6, weights="frequency", **READ).changes[-1]
    (named,) = used.facts["calibration"]["texts"]
    assert named["sha256"] == base.calibration_texts(READ["calibration"])[0].sha256
    assert used.options["calibration"] == READ["calibration"]
    assert "calibration" not in lowrank.apply(tiny, rank=6, weights="zipf").changes[-1].facts


def test_a_rank_beyond_the_matrix_is_refused(tiny: Any) -> None:
    with pytest.raises(OutOfRange, match="rank=33 does not fit 'embed' of shape 300 x 32; allowed: 1 .. 32"):
        lowrank.apply(tiny, rank=33)


def test_row_weights_for_a_linear_layer_are_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="weights='frequency' weighs tokens, and the rows of 'blocks.0.mlp.up' are none"):
        lowrank.apply(tiny, where=TALL, rank=4, weights="frequency")


def test_a_pattern_without_a_match_is_refused(tiny: Any) -> None:
    with pytest.raises(NothingMatched, match="no matrix of 'tiny:llama' matches 'embd'"):
        lowrank.apply(tiny, where="embd", rank=4)


def test_factors_read_back_are_the_stored_ones(tiny: Any) -> None:
    edited = lowrank.apply(tiny, rank=6, store="factors")
    A, B = lowrank.directions(tiny, "embed", lowrank.Weighing()).factors(tiny.matrix("embed"), 6)
    assert torch.equal(edited.matrix("embed"), Factors(A, B).dense())
    assert edited.matrices["embed.in"].rank == 6


def test_a_recipe_that_measures_on_its_calibration_text_is_refused() -> None:
    from kobza.recipes import running
    from kobza.recipes.recipe import Recipe, chain

    steps = chain("lowrank:rank=8,weights=frequency,calibration=topics[1000:3000]")
    with pytest.raises(NotComparable, match="calibrated on 'topics\\[1000:3000\\]', which holds 48% of the test text"):
        running.run(Recipe(open="tiny", steps=steps, text=("topics[:2000]",)))
    assert running.run(Recipe(open="tiny", steps=steps, text=("topics[3000:4000]",))).readings


@pytest.mark.real
def test_two_thirds_of_the_directions_hold_both_ends_of_smollm2(smollm2: Any) -> None:
    from kobza.core.texts import text

    sample = text("topics[:1000]")
    ids = smollm2.tokenizer.encode(sample.data)
    options: dict[str, Any] = {"rank": 386, "weights": "fisher", "metric": "moments", "calibration_tokens": 512}
    edited = lowrank.apply(smollm2, **options)
    base.refuse_calibration(edited.changes, sample)
    before, after = (float(forward.token_bits(m, ids, window=512).double().sum()) for m in (smollm2, edited))
    assert after < 1.2 * before, "plain SVD costs a factor above 3 here"


def test_in_a_linear_layer_the_error_is_the_tail_of_the_whitened_matrix(tiny: Any) -> None:
    texts = base.calibration_texts(("topics[320000:330000]",))
    name, rank = "blocks.1.mlp.up", 10
    edited = lowrank.apply(tiny, where=name, rank=rank, metric="moments", calibration=("topics[320000:330000]",))
    metric = lowrank._damped(base.input_moments(tiny, [name], texts)[name], 0.01)
    L = torch.linalg.cholesky(metric)
    W = tiny.matrix(name).double()
    tail = torch.linalg.svdvals(W @ L)[rank:].square().sum().sqrt()
    assert float(((edited.matrix(name) - W) @ L).norm()) == pytest.approx(float(tail), rel=1e-4)


def test_ranks_are_rounded_to_a_multiple(tiny: Any) -> None:
    for asked, got in ((3, 8), (12, 16), (21, 24)):
        edited = lowrank.apply(tiny, rank=asked, multiple=8, store="factors")
        assert edited.matrices["embed.in"].rank == got
    with pytest.raises(OutOfRange, match="rank=40 does not fit"):
        lowrank.apply(tiny, rank=37, multiple=8)
