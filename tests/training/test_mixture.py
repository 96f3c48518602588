"""Shares of domains: each rule's formula, and none of them spends its steps on noise."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, EmptyText, OutOfRange
from kobza.models.tiny import byte_tokenizer
from kobza.training import mixture

SONG = "the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. "
HOW: dict[str, Any] = {"size": 1, "width": 32, "heads": 2, "context": 32, "batch": 6, "steps": 40, "rate": 1e-2}


def domains() -> dict[str, bytes]:
    draw = random.Random(0)
    noise = "".join(chr(draw.randrange(33, 127)) for _ in range(6000))
    sums = "".join(f"{a}+{b}={a + b};" for a, b in ((draw.randrange(10), draw.randrange(10)) for _ in range(1000)))
    return {"noise": noise.encode(), "song": SONG.encode() * 80, "sums": sums.encode()}


def test_one_step_of_the_group_weights_is_that_of_the_paper() -> None:
    weights, excess = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, 0.0, 0.5])
    moved = weights * (2.0 * excess).exp()
    right = (1 - 1e-3) * moved / moved.sum() + 1e-3 / 3
    assert torch.allclose(mixture.group_step(weights, excess, 2.0), right)


@pytest.mark.slow
def test_what_helps_no_other_domain_gets_less_than_its_share() -> None:
    run = mixture.train(byte_tokenizer(), domains(), by="skillit", evaluate=5, **HOW)
    weights = run.facts["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["noise"] < 0.8 / 3, "training on noise helps nobody"
    rows = list(run.history)
    assert rows[-1]["held"] == pytest.approx(sum(rows[-1][f"held {n}"] for n in weights) / 3)
    assert rows[-1]["held song"] < rows[0]["held song"]


def test_the_weights_of_doremi_stay_a_distribution_over_all_domains() -> None:
    run = mixture.train(byte_tokenizer(), domains(), by="doremi", **HOW | {"steps": 3})
    weights = run.facts["weights"]
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 1e-3 / 3
    assert max(weights.values()) > 0.34, "they have moved"


def test_windows_that_can_be_learned_are_chosen() -> None:
    mix = mixture._Mix([None] * 8, None, None, None, 1.0, print)  # type: ignore[arg-type]
    read = torch.arange(8)[:, None].expand(8, 4)
    gains = torch.tensor([0.0, 3, 1, 0, 2, 0, 0, 0])
    seen = {}

    def losses(module: Any, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return gains[rows[:, 0]] if module == "ours" else torch.zeros(len(rows))

    def kept(module: Any, rows: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen["rows"] = sorted(rows[:, 0].tolist())
        return rows.float().sum(), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "_window_losses", losses)
        patch.setattr(mixture, "mean_loss", kept)
        mix.loss("ours", (read, read, read[:, 0]), "reference")
    assert seen["rows"] == [1, 4]
    assert mix.chosen.nonzero()[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize("by", ["doremi", "skillit", "learnable"])
def test_a_mixture_cut_off_anywhere_goes_on_to_the_same_bits(by: Any, tmp_path: Path) -> None:
    how = HOW | {"steps": 6, "by": by}
    whole = mixture.train(byte_tokenizer(), domains(), folder=str(tmp_path / "whole"), **how)
    left, plain = 0, mixture.mean_loss

    def breaking(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return plain(*given)

    cuts = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "mean_loss", breaking)
        while True:
            left = 7 + 5 * cuts
            try:
                again = mixture.train(byte_tokenizer(), domains(), folder=str(tmp_path / "cut"), **how)
            except KeyboardInterrupt:
                cuts += 1
            else:
                break
    assert cuts > 1
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in run.history] for run in (whole, again)]
    assert rows[0] == rows[1]
    ours, others = (run.model.module.state_dict() for run in (whole, again))
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_rows_are_sorted_into_their_domains_and_a_mapping_is_taken_as_it_is() -> None:
    assert mixture.named({"a": "x"}) == {"a": "x"}
    assert mixture.named("some text") == {"text": "some text"}
    assert mixture.named(["a", "b"]) == {"text": ["a", "b"]}
    assert mixture.named("a/x.txt;b/x.txt") == {"a/x.txt": "a/x.txt", "b/x.txt": "b/x.txt"}


def test_bad_input() -> None:
    with pytest.raises(OutOfRange, match="strength"):
        mixture.train(byte_tokenizer(), domains(), strength=0)
    with pytest.raises(BadValue, match="no domain"):
        mixture.train(byte_tokenizer(), {})
    with pytest.raises(EmptyText):
        mixture.train(byte_tokenizer(), {"a": b"the sea " * 40, "b": [" "]})
    assert math.isclose(float(mixture._by_domain(torch.tensor([1.0, 3, 5]), torch.tensor([0, 0, 1]), 3).sum()), 7)
