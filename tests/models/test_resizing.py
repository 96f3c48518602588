"""A fork with another vocabulary: what does not fit is refused, and the configs are told."""

from typing import Any

import pytest
import torch

from kobza.core.errors import NotFinite, WrongTensors
from kobza.models.model import Change
from kobza.models.resizing import with_vocabulary
from kobza.tokens.ranks import bytes_vocabulary

CHANGE = Change("transplant", {}, ["embed"], "shape", {})


def test_a_table_of_other_rows_than_the_vocabulary_has_ids_is_refused(tiny: Any) -> None:
    new = bytes_vocabulary()
    with pytest.raises(WrongTensors, match=rf"needs {len(new)} x {tiny.width}.*\(7, {tiny.width}\)"):
        with_vocabulary(tiny, new, {"embed": torch.zeros(7, tiny.width)}, [0] * len(new), change=CHANGE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_is_refused_by_the_name_of_its_token(tiny: Any, bad: float) -> None:
    new = bytes_vocabulary()
    table = torch.zeros(len(new), tiny.width)
    table[65, 3] = bad
    with pytest.raises(NotFinite, match="token 65"):
        with_vocabulary(tiny, new, {"embed": table}, [0] * len(new), change=CHANGE)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_config_gets_the_size_the_tie_and_the_ids_of_control_tokens(tiny: Any, is_tied: bool) -> None:
    new = bytes_vocabulary()
    table = torch.randn(len(new), tiny.width, generator=torch.Generator().manual_seed(0))
    tables = {"embed": table} if is_tied else {"embed.in": table, "embed.out": 2 * table}
    same = [-1] * len(new)
    same[5] = tiny.config.bos_token_id
    fork = with_vocabulary(tiny, new, tables, same, change=CHANGE)
    assert fork.config.vocab_size == fork.vocabulary == len(new)
    assert fork.config.bos_token_id == 5
    assert fork.config.tie_word_embeddings == fork.is_tied == is_tied
    assert torch.equal(fork.matrix("embed.out"), table if is_tied else 2 * table)
    assert tiny.config.vocab_size == tiny.vocabulary != len(new)
