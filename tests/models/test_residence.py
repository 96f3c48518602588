"""Memory given back to the system: values stay, changed or not, and only what a file holds is given."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import kobza
from kobza.models import residence
from kobza.models.folder import mapped

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise(MADV_PAGEOUT) is Linux's")


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    values = torch.arange(1 << 20, dtype=torch.float32)
    save_file({"a": values, "b": values + 1, "small": torch.ones(3)}, tmp_path / "x.safetensors")
    return mapped([tmp_path / "x.safetensors"])


@linux
def test_a_mapped_tensor_keeps_its_values_and_gives_its_memory(stored: dict[str, torch.Tensor]) -> None:
    before = {name: values.clone() for name, values in stored.items()}
    given = residence.rest(stored.values())
    assert 2 * stored["a"].nbytes - 4 * 4096 <= given <= 2 * stored["a"].nbytes
    assert all(torch.equal(stored[name], values) for name, values in before.items())


def test_what_was_changed_in_memory_is_not_lost(stored: dict[str, torch.Tensor]) -> None:
    stored["a"][1000:300_000].add_(0.5)
    wanted = stored["a"].clone()
    residence.rest(stored.values())
    assert torch.equal(stored["a"], wanted)


def test_memory_without_a_file_is_left_alone() -> None:
    assert residence.rest([torch.zeros(1 << 20), torch.zeros(0), torch.zeros(3)]) == 0


def test_elsewhere_than_on_linux_nothing_happens(
    stored: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert residence.rest(stored.values()) == 0


def test_a_model_computes_the_same_after_its_rest(tmp_path: Path) -> None:
    kobza.open("tiny").save(tmp_path / "tiny")
    model = kobza.open(tmp_path / "tiny")
    ids = torch.tensor([[1, 2, 3]])
    before = model.module(input_ids=ids).logits
    residence.rest(model.module.parameters())
    assert torch.equal(model.module(input_ids=ids).logits, before)
