"""Tiny models: every family builds, equal seeds give equal bits, unequal ones differ, the tokenizer is exact."""

import pytest
import torch

from kobza.core.errors import OutOfRange, UnknownName
from kobza.models.tiny import FAMILIES, byte_tokenizer, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds_with_finite_logits_that_depend_on_the_input(family: str) -> None:
    model = tiny(family)
    logits = model.module(torch.tensor([[0, 5, 9], [0, 6, 9]])).logits
    assert logits.shape == (2, 3, 300) and bool(torch.isfinite(logits).all())
    assert float((logits[0, 1] - logits[1, 1]).abs().max()) > 0.1
    assert 0.1 < float(logits.std()) < 10


def test_equal_seeds_give_equal_bits_and_unequal_seeds_differ() -> None:
    assert tiny(seed=3).fingerprint == tiny(seed=3).fingerprint
    assert tiny(seed=3).fingerprint != tiny(seed=4).fingerprint


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    tiny()
    assert torch.equal(before, torch.random.get_rng_state())


def test_sizes_are_those_asked_for() -> None:
    model = tiny(layers=3, width=48, heads=6, kv_heads=3, vocabulary=400, tied=False, context=64)
    assert (model.layers, model.width, model.vocabulary, model.context) == (3, 48, 400, 64)
    assert not model.is_tied
    assert model.matrices["blocks.0.attn.k"].shape == (24, 48)


@pytest.mark.parametrize("text", ["The kobza is a lute.", "\x00\xff", "струни <s></s>", ""])
def test_the_byte_tokenizer_returns_every_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()
    assert 0 not in tokenizer.encode(text)


def test_merges_shorten_and_do_not_depend_on_the_size_of_the_vocabulary() -> None:
    assert len(byte_tokenizer(300).encode("the instrument")) < len("the instrument")
    small, large = (dict(byte_tokenizer(size).special) for size in (300, 320))
    assert small == large
    assert byte_tokenizer(320).bytes_of(299) == byte_tokenizer(300).bytes_of(299)


def test_bad_sizes_are_refused_with_the_value_seen() -> None:
    with pytest.raises(UnknownName, match="llama"):
        tiny("lama")
    with pytest.raises(OutOfRange, match="vocabulary 100"):
        tiny(vocabulary=100)
    with pytest.raises(OutOfRange, match="width 30"):
        tiny(width=30)
    with pytest.raises(OutOfRange, match="at least 1"):
        tiny(layers=0)
