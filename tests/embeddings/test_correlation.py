"""Clumps: equal to scipy's connected components, on made tables and on SmolLM2's."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from kobza.core.errors import OutOfRange
from kobza.embeddings import correlation
from kobza.embeddings.base import Vectors, vectors_of


def clumped(seed: int = 0, rows: int = 400, width: int = 24) -> torch.Tensor:
    """Rows about 60 places, so that clumps of many sizes lie at many thresholds."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(60, width, generator=generator)
    spread = torch.rand(rows, 1, generator=generator) ** 3
    which = torch.randint(60, (rows,), generator=generator)
    return places[which] + spread * torch.randn(rows, width, generator=generator) + 0.3


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("block", [64, 4096])
def test_clumps_equal_the_components_of_numpys_correlations(monkeypatch, threshold, block):
    monkeypatch.setattr(correlation, "BLOCK", block)
    W = clumped()
    near = np.corrcoef(W.double().numpy()) > threshold
    count, of = connected_components(near)
    expected = sorted((g.tolist() for g in (np.flatnonzero(of == c) for c in range(count)) if len(g) > 1), key=len)
    found = correlation.clumps(correlation.standardized(W), threshold)
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


def test_the_screen_bounds_every_correlation():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(300, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    units = correlation.standardized(flat + 0.1 * torch.randn(300, 64, generator=generator))
    left, right = correlation._screens(units, 0.95)
    assert left.shape[1] < units.shape[1]
    assert bool((left @ right.T >= units @ units.T - 1e-5).all())


def test_the_largest_clump_comes_first():
    W = torch.cat([clumped(1), torch.randn(1, 24).repeat(9, 1)])
    found = correlation.clumps(correlation.standardized(W), 0.99999)
    assert found[0] == list(range(400, 409))


def test_a_constant_row_correlates_with_nothing():
    W = torch.cat([torch.ones(5, 24), clumped(rows=20)])
    assert all(min(clump) >= 5 for clump in correlation.clumps(correlation.standardized(W), 0.5))


def test_unused_rows_are_told_apart(tiny):
    W = tiny.matrix("embed.in").clone()
    start, never, unused = tiny.tokenizer.id_of(b"<s>"), tiny.tokenizer.id_of(b"\xff"), tiny.tokenizer.id_of(b"q")
    W[[start, never, unused, 30]] = W[40].clone()
    vectors = vectors_of(tiny)
    made = Vectors(W, vectors.labels, name="made", kind="tokens", special=vectors.special, pieces=vectors.pieces)
    found = correlation.table(made)
    assert found["size"] == [5, 295]
    assert "1 control token" in found[0]["what"]
    assert "1 byte never in UTF-8" in found[0]["what"]
    assert found[1]["what"] == "in no clump"
    assert found[0]["ids"].split()[0] == "0"


def test_utf8_texts_hold_none_of_the_bytes_called_impossible():
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000).encode()
    assert set(range(256)) - set(every) == correlation.NEVER_IN_UTF8


def test_the_picture_of_bins_is_the_mean_of_the_correlations(tiny):
    values = correlation.table(tiny, bins=10).figures[0].data["values"]
    C = np.corrcoef(tiny.matrix("embed.in").double().numpy())
    assert np.allclose(values[3][7], C[90:120, 210:240].mean(), atol=1e-5)


def test_the_picture_of_a_range_is_every_correlation(tiny):
    values = correlation.table(tiny, rows="5..9").figures[0].data["values"]
    assert np.allclose(values, np.corrcoef(tiny.matrix("embed.in")[5:10].double().numpy()), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold=1.0; allowed: above 0 and below 1"),
        ({"bins": 0}, r"bins=0; allowed: 1 \.\. 512"),
        ({"rows": "5"}, r"rows='5'; allowed: a range a\.\.b within 0\.\.299"),
        ({"rows": "290..300"}, "at most 2048 rows"),
        ({"least": 1}, r"least=1; allowed: 2 or more"),
    ],
)
def test_options_out_of_range_are_refused(tiny, options, message):
    with pytest.raises(OutOfRange, match=message):
        correlation.table(tiny, **options)


@pytest.mark.real
def test_fifteen_tokens_of_smollm2_were_never_trained(smollm2):
    found = correlation.table(smollm2)
    assert found["size"] == [15, 49137]
    assert found[0]["what"] == "11 control tokens, 4 tokens"
    assert found[0]["members"].startswith("<file_sep> <gh_stars> <issue_start>")
    assert round(found[0]["mean norm"], 3) == 3.294
    wider = correlation.table(smollm2, threshold=0.999)
    assert wider[0]["size"] == 17
