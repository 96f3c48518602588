"""Distillation: TRL's divergence, and a student that comes back to its teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import OutOfRange, WrongVocabulary
from kobza.edits import noise
from kobza.training import distil

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_equals_that_of_trl(beta: float, goldens: Any) -> None:
    given = goldens["distil"]
    student, teacher = torch.tensor(given["student"]), torch.tensor(given["teacher"])
    found = distil.divergence(student, teacher, beta=beta, temperature=1.7)
    assert torch.allclose(found, torch.tensor(given[str(beta)]), atol=1e-5)


def test_the_divergence_from_itself_is_nothing_and_never_negative() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 0.5, 1.0):
        assert distil.divergence(logits, logits, beta=beta).abs().max() < 1e-6
        assert (distil.divergence(logits, -logits, beta=beta) > 0).all()


def test_a_damaged_student_comes_back_to_its_teacher(tiny: Any) -> None:
    damaged = noise.apply(tiny, strength=0.3, where="blocks.*")
    run = distil.train(damaged, TEXT, teacher="tiny", adapter="none", steps=30, rate=3e-3, context=16, evaluate=5)
    moved = [row["divergence"] for row in run.history if "divergence" in row]
    assert moved[-1] < 0.6 * moved[0]
    assert run.model.changes[-1].technique == "distil"


def test_a_teacher_of_another_vocabulary_and_values_out_of_range_are_refused(tiny: Any, tmp_path: Path) -> None:
    kobza.open("tiny:llama?vocabulary=280").save(tmp_path / "other")
    with pytest.raises(WrongVocabulary, match="280"):
        distil.train(tiny, TEXT, teacher=str(tmp_path / "other"), steps=1)
    with pytest.raises(OutOfRange, match="temperature 0"):
        distil.train(tiny, TEXT, temperature=0.0)
