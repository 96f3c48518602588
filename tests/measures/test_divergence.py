"""The divergence of a model from itself is exactly nothing, and from another what scipy says."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from kobza.core.errors import NotFinite, WrongVocabulary
from kobza.measures import divergence
from kobza.models.tiny import tiny as make_tiny

TEXT = b"Some have eight strings, others twelve or thirty, and the shape changed in every village. " * 3


def test_a_model_does_not_diverge_from_itself(tiny: Any) -> None:
    reading = divergence.measure(tiny, TEXT, original=tiny.fork(), window=100, overlap=20)
    assert reading.value == 0
    assert (reading.low, reading.high) == (0, 0)
    assert divergence.measure(tiny, TEXT, original=tiny, of="agreement").value == 1


def test_equals_the_relative_entropy_of_scipy(tiny: Any) -> None:
    other = make_tiny(seed=1)
    ids = torch.tensor([tiny.tokenizer.encode(TEXT, start=True)[:-1]])
    with torch.inference_mode():
        p, q = (m.module(input_ids=ids).logits[0].double().softmax(-1).numpy() for m in (tiny, other))
    expected = rel_entr(p, q).sum(-1).mean() / np.log(2)
    assert divergence.measure(other, TEXT, original=tiny).value == pytest.approx(expected, rel=1e-5)
    agreement = divergence.measure(other, TEXT, original=tiny, of="agreement").value
    assert agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())


def test_each_figure_names_the_other_in_its_note(tiny: Any) -> None:
    other = make_tiny(seed=1)
    assert "agree on the first token" in divergence.measure(other, TEXT, original=tiny).note
    assert "KL " in divergence.measure(other, TEXT, original=tiny, of="agreement").note


def test_it_is_not_symmetric_and_not_negative(tiny: Any) -> None:
    other = make_tiny(seed=1)
    there, back = (divergence.measure(a, TEXT, original=b).value for a, b in ((other, tiny), (tiny, other)))
    assert there > 0
    assert back > 0
    assert there != back


def test_probabilities_of_zero_count_as_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log2()
    q = torch.tensor([[0.25, 0.25, 0.5]]).log2()
    assert divergence.divergence(p, q).tolist() == [1.0]
    assert divergence.divergence(p, p).tolist() == [0.0]


def test_other_vocabularies_are_refused(tiny: Any) -> None:
    with pytest.raises(WrongVocabulary, match=r"258 ids, 258 logits.*300 ids, 300 logits"):
        divergence.measure(make_tiny(vocabulary=258), TEXT, original=tiny)


def test_weights_that_are_not_numbers_stop_with_the_place(tiny: Any) -> None:
    broken = make_tiny()
    broken.module.model.norm.weight[0] = torch.nan
    with pytest.raises(NotFinite, match="divergence from the original of 'tiny:llama' are not finite"):
        divergence.measure(broken, TEXT, original=tiny)
