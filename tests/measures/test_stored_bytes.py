"""Stored bytes count every tensor once, as saving writes them."""

from pathlib import Path
from typing import Any

import pytest

from kobza.measures import stored_bytes
from kobza.models.tiny import tiny as make_tiny


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_bytes_that_saving_writes(tmp_path: Path, tied: bool) -> None:
    model = make_tiny(tied=tied)
    model.save(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.safetensors")).read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    assert stored_bytes.measure(model).value == len(file) - header


def test_a_tied_table_counts_once(tiny: Any) -> None:
    untied = make_tiny(tied=False)
    assert stored_bytes.measure(untied).value - stored_bytes.measure(tiny).value == 300 * 32 * 4


def test_the_note_names_numbers_and_bits(tiny: Any) -> None:
    assert stored_bytes.measure(tiny, "topics").note == f"{tiny.parameters:,} numbers of 32.00 bits"
