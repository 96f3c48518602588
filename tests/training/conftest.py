"""Data that the tests of objectives share: what TRL computed (see `goldens.py`), and pairs of answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    """What the peers computed, with what they were given."""
    return json.loads((Path(__file__).resolve().parent / "goldens.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def pairs() -> list[dict[str, str]]:
    """Eight prompts; the preferred answer has no digit."""
    return [
        {"prompt": f"{n} strings of a kobza", "chosen": " sing of the wide sea", "rejected": f" cost {n} coins"}
        for n in range(8)
    ]


@pytest.fixture
def sums(goldens: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """From logits of the goldens' batch to log p of its answers, (2, B)."""
    given = goldens["preferences"]
    targets, mask = torch.tensor(given["ids"])[:, 1:], torch.tensor(given["mask"])

    def summed(logits: torch.Tensor) -> torch.Tensor:
        found = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return (found * mask).sum(-1).reshape(2, -1)

    return summed


@pytest.fixture
def counts(goldens: dict[str, Any]) -> torch.Tensor:
    """Tokens of the answers of the goldens' batch, (2, B)."""
    return torch.tensor(goldens["preferences"]["mask"]).sum(-1).reshape(2, -1)
