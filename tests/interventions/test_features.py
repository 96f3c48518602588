"""Sparse features: planted ones come back, a perfect dictionary costs nothing, and numbers are what they are called."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, NothingMatched, OutOfRange
from kobza.interventions import features
from kobza.interventions._autoencoder import Autoencoder, train
from kobza.interventions._collecting import collect, tokens_of
from kobza.interventions._rules import correlations, indicator

SMALL: dict[str, Any] = {"sample": 600, "steps": 30, "batch": 128, "k": 4, "width": 64, "limit": 300, "top": 5}


def planted(count: int, width: int, active: float, samples: int, zipf: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (count, width), and values (samples, width) in which each takes part by chance."""
    draw = torch.Generator().manual_seed(99)  # not the seed of the training: its start would be the answer
    rows = torch.randn(count, width, generator=draw)
    rows = rows / rows.norm(dim=1, keepdim=True)
    share = 1 / torch.arange(1, count + 1).float() ** zipf
    is_on = torch.rand(samples, count, generator=draw) < (share / share.sum() * active).clamp(max=0.5)
    return rows, (is_on * (0.5 + torch.rand(samples, count, generator=draw))) @ rows


def recovered(dictionary: Autoencoder, rows: torch.Tensor) -> torch.Tensor:
    return (rows @ dictionary.decoder.T).max(1).values > 0.9


def test_64_planted_features_are_recovered() -> None:
    rows, values = planted(64, 32, 3, 20_000, 0.0)
    dictionary, _ = train(values, width=128, k=3, steps=800, batch=512, rate=3e-3)
    assert int(recovered(dictionary, rows).sum()) >= 60


@pytest.mark.slow
def test_256_planted_features_of_unequal_frequency_are_recovered() -> None:
    """The rarest is on in 1 of 250 values, the commonest in 1 of 5."""
    rows, values = planted(256, 64, 5, 40_000, 0.7)
    dictionary, _ = train(values, width=512, k=8, steps=1000, batch=512, rate=3e-3)
    found = recovered(dictionary, rows)
    assert int(found.sum()) >= 240
    assert int(found[-64:].sum()) >= 54, "the rare ones too"


def test_the_random_start_recovers_next_to_none() -> None:
    """The recovery test can fail: without training it does."""
    rows, values = planted(64, 32, 3, 2000, 0.0)
    assert int(recovered(train(values, width=64, k=3, steps=1, batch=64)[0], rows).sum()) < 10


def test_k_features_rebuild_and_no_more() -> None:
    values = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    dictionary, _ = train(values, width=40, k=3, steps=5, batch=32)
    strengths, latents = dictionary.encode(values)
    assert strengths.shape == latents.shape == (50, 3)
    assert float(strengths.min()) >= 0
    by_hand = (strengths[..., None] * dictionary.decoder[latents]).sum(1) * dictionary.scale + dictionary.center
    torch.testing.assert_close(dictionary.rebuild(values), by_hand)
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(40))


def perfect(model: Any) -> Autoencoder:
    """Every coordinate up and down: 2 D features of which all D that are up or down rebuild a value exactly."""
    one = torch.eye(model.width)
    rows = torch.cat([one, -one])
    about = {"site": "resid_post.1"}
    return Autoencoder(rows, torch.zeros(len(rows)), rows.clone(), torch.zeros(model.width), 1.0, model.width, about)


def test_a_perfect_dictionary_costs_no_bit(tiny: Any, tmp_path: Path) -> None:
    path = perfect(tiny).save(tmp_path / "perfect.safetensors")
    result = features.run(tiny, **(SMALL | {"keep": str(path), "site": "resid_post.1"}))
    assert result.reading("spliced").value == pytest.approx(result.reading("clean").value, rel=1e-5)
    assert result.reading("recovered").value == pytest.approx(1, abs=1e-4)
    assert result.reading("explained").value == pytest.approx(1, abs=1e-6)


def test_a_kept_dictionary_is_read_instead_of_trained(tiny: Any, tmp_path: Path) -> None:
    options = SMALL | {"keep": str(tmp_path / "d.safetensors")}
    first, again = features.run(tiny, **options), features.run(tiny, **options | {"steps": 1})
    assert first.tables[0]["feature"] == again.tables[0]["feature"]
    with pytest.raises(BadValue, match="is for resid_post.1"):
        features.run(tiny, **options | {"site": "resid_post.0"})


def test_switching_off_takes_the_feature_away_and_keeps_the_error(tiny: Any, tmp_path: Path) -> None:
    """Authority: the bits with the direction subtracted from the trace by hand, last layer, through norm and head."""
    path = perfect(tiny).save(tmp_path / "perfect.safetensors")
    row = features.run(tiny, **(SMALL | {"keep": str(path), "site": "resid_post.1", "sample": 300})).tables[0][0]
    ids = tokens_of(tiny, "topics", 300)[240:]
    fed = torch.cat([torch.tensor([tiny.tokenizer.start_id]), ids])
    stream = tiny.trace(fed, "resid_post.1")["resid_post", 1][1:]
    feature, D = row["feature"], tiny.width
    strength = (stream[:, feature % D] * (1 if feature < D else -1)).relu()
    off = stream - strength[:, None] * perfect(tiny).decoder[feature]
    bits = []
    for state in (stream, off):
        normed = state / (state.square().mean(1, keepdim=True) + tiny.config.rms_norm_eps).sqrt() * tiny.matrix("norm")
        logs = (normed @ tiny.matrix("embed.out").T).log_softmax(-1)
        bits.append(-logs[:-1].gather(1, ids[1:, None])[:, 0] * features.BITS)
    expected = (bits[1] - bits[0])[strength[:-1] > 0].mean()
    assert row["bits lost"] == pytest.approx(float(expected), abs=1e-5)


def test_collected_values_are_those_of_a_trace(tiny: Any) -> None:
    ids = tokens_of(tiny, "topics", 50)
    seen = collect(tiny, ids, ["resid_post.0", "z.1"], window=20)
    last = torch.cat([torch.tensor([tiny.tokenizer.start_id]), ids[40:]])
    trace = tiny.trace(last, ["resid_post.0", "z.1"])
    torch.testing.assert_close(seen.values["resid_post.0"][40:], trace["resid_post.0"][1:])
    torch.testing.assert_close(seen.values["z.1"][40:], trace["z.1"][1:].flatten(1))


def test_a_rule_holds_where_its_match_overlaps_a_token(tiny: Any) -> None:
    text = "am 12 пм 7"
    ids = torch.tensor(tiny.tokenizer.encode(text))
    pieces = [tiny.tokenizer.bytes_of(int(i)) for i in ids]
    found = indicator(tiny, ids, "regex:[0-9]+")
    assert [p for p, hit in zip(pieces, found.tolist(), strict=True) if hit] == [
        p for p in pieces if any(48 <= b < 58 for b in p)
    ]
    assert int(indicator(tiny, ids, "regex:п").sum()) == 2, "both bytes of the letter"
    assert int(indicator(tiny, ids, "tokens:7").sum()) == 1


def test_sensitivity_is_pearsons_correlation(tiny: Any) -> None:
    result = features.run(tiny, **SMALL, rule="regex:[aeiou]")
    rows = result.tables[0]["sensitivity"]
    assert rows == sorted(rows, reverse=True)
    values = torch.randn(100, 3, dtype=torch.float64)
    holds = values[:, 1] > 0
    expected = torch.corrcoef(torch.cat([values, holds.double()[:, None]], 1).T)[3, :3]
    torch.testing.assert_close(correlations(values, holds), expected)


def test_without_controls_it_is_labelled(tiny: Any) -> None:
    assert "uncontrolled" in features.run(tiny, **SMALL, controls=0).title
    assert "uncontrolled" not in features.run(tiny, **SMALL).title


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"site": "resid_post"}, BadValue, "not a whole site"),
        ({"site": "z.1"}, BadValue, "heads of its own"),
        ({"k": 65}, OutOfRange, "k=65"),
        ({"rule": "digits"}, BadValue, "is no rule"),
        ({"rule": "regex:["}, BadValue, "no regular expression"),
        ({"rule": "regex:ЖЖЖ"}, NothingMatched, "holds for none"),
    ],
)
def test_what_cannot_be_learned_is_refused(tiny: Any, options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        features.run(tiny, **SMALL | options)
