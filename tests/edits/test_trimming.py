"""Trimming: the corpus is cut as before, and its bits fall by the mass of what was removed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.core.texts import text
from kobza.edits import trimming
from kobza.models import forward
from kobza.models.forward import token_bits

CORPUS = "topics[:300]"


def test_the_corpus_is_cut_as_before_and_costs_less_by_the_removed_mass(tiny: Any) -> None:
    trimmed = trimming.apply(tiny, corpus=[CORPUS], safety=[])
    data = text(CORPUS).data
    before, after = tiny.tokenizer.encode(data), trimmed.tokenizer.encode(data)
    assert [tiny.tokenizer.bytes_of(id) for id in before] == [trimmed.tokenizer.bytes_of(id) for id in after]
    old = [tiny.tokenizer.id_of(trimmed.tokenizer.bytes_of(id)) for id in range(trimmed.vocabulary)]
    gone = torch.ones(tiny.vocabulary, dtype=torch.bool)
    gone[[id for id in old if id is not None]] = False
    start = tiny.tokenizer.start_id
    logits = forward.logits(tiny, torch.tensor([[start, *before[:-1]]]))[0]
    kept = torch.log1p(-logits.softmax(-1)[:, gone].sum(-1)) / math.log(2)
    difference = token_bits(trimmed, after) - token_bits(tiny, before)
    assert torch.allclose(difference, kept, atol=1e-4)


def test_all_tokens_kept_change_nothing(tiny: Any) -> None:
    trimmed = trimming.apply(tiny, corpus=["topics", "source"])
    assert trimmed.vocabulary <= tiny.vocabulary
    data = text(CORPUS).data
    assert len(trimmed.tokenizer.encode(data)) == len(tiny.tokenizer.encode(data))


def test_other_texts_can_still_be_said(tiny: Any) -> None:
    trimmed = trimming.apply(tiny, corpus=[CORPUS], safety=[])
    data = "Реве та стогне 🌊\r\n\0".encode()
    assert trimmed.tokenizer.decode(trimmed.tokenizer.encode(data)) == data


def test_saved_bytes_are_those_of_the_removed_rows(tiny: Any, tmp_path: Path) -> None:
    trimmed = trimming.apply(tiny, corpus=[CORPUS], safety=[])
    facts = trimmed.changes[-1].facts
    assert facts["saved_bytes"] == (facts["tokens_before"] - facts["tokens"]) * tiny.width * 4
    trimmed.save(tmp_path / "trimmed")


def test_rare_tokens_go_first_and_safe_ones_stay(tiny: Any) -> None:
    all_of, frequent = (
        trimming.apply(tiny, corpus=[CORPUS], safety=[]),
        trimming.apply(tiny, corpus=[CORPUS], safety=[], least=5),
    )
    safe = trimming.apply(tiny, corpus=[CORPUS], least=5, safety=[CORPUS])
    assert frequent.vocabulary < all_of.vocabulary == safe.vocabulary
    with pytest.raises(OutOfRange, match="least is 0"):
        trimming.apply(tiny, corpus=[CORPUS], least=0)
