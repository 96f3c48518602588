"""Columns and pictures of a sweep's table."""

import lzma
import zlib
from typing import Any

import pytest

from kobza.core.result import Reading
from kobza.core.texts import Text
from kobza.core.texts import text as read_text
from kobza.recipes.recipe import Point, Recipe, chain
from kobza.recipes.tabling import Measured, packed_bits, sweep_figures, sweep_table, swept_options

TEXT = Text("t", b"lava flows over lava " * 40)


def measured(spec: str, value: float, name: str = "bits_per_byte", **record: Any) -> Measured:
    parts = [(value * 10, 10.0), (value * 12, 10.0)]
    reading = Reading.from_parts(name, parts, "bit/B", record={"how": {"window": 64}, **record})
    changes = [{"facts": {"relative_error": 0.5, "stored_bytes": 100, "per_matrix": {"a": 1}}}] if spec else []
    return Measured(Point(chain(spec), 0), TEXT, [reading], changes)


def test_an_option_named_like_a_column_carries_its_step() -> None:
    table = sweep_table(Recipe(), [measured("", 1), measured("scaling:factor=2", 2)])
    assert table.columns[:5] == ["edit", "scaling.factor", "text", "bits_per_byte", "low"]
    assert table["factor"] == [1, 2]
    assert table["scaling.factor"] == [None, "2"]


def test_an_option_of_two_steps_is_told_apart() -> None:
    table = sweep_table(Recipe(), [measured("", 1), measured("noise:seed=1 + lowrank:seed=2 + noise:seed=3", 2)])
    assert table.columns[1:4] == ["noise.seed", "lowrank.seed", "noise.seed.3"]
    assert table[1]["edit"] == "noise + lowrank + noise"


def test_facts_that_are_single_numbers_become_columns() -> None:
    row = sweep_table(Recipe(), [measured("", 1), measured("noise:x=1", 2)])[1]
    assert (row["relative_error"], row["stored_bytes"]) == (0.5, 100)
    assert "per_matrix" not in row


def test_the_factor_is_paired_over_chunks() -> None:
    row = sweep_table(Recipe(), [measured("", 1), measured("noise:x=1", 2)])[1]
    # both chunks doubled: whichever chunks are drawn, the ratio is 2
    assert row["factor"] == row["factor low"] == row["factor high"] == 2


def test_figures_of_other_conditions_have_no_factor() -> None:
    row = sweep_table(Recipe(), [measured("", 1), measured("noise:x=1", 2, how={"window": 128})])[1]
    assert row.get("factor") is None
    assert row["bits_per_byte"] == pytest.approx(2.2)


def test_a_failed_point_keeps_its_row_and_its_reason() -> None:
    broken = Measured(Point(chain("noise:x=2"), 0), TEXT, [], [], "its worker was killed")
    table = sweep_table(Recipe(), [measured("", 1), broken])
    assert table[1]["failed"] == "its worker was killed"
    assert table[1]["bits_per_byte"] is None


def test_only_numbers_that_move_within_a_method_are_swept() -> None:
    points = [("a", {"rank": 1, "on": True}), ("a", {"rank": 2, "on": False}), ("b", {"rank": 2, "k": 3, "seed": 1}),
              ("b", {"rank": 2, "k": 3, "seed": 2})]  # fmt: skip
    chains = [tuple(Recipe.from_dict({"steps": [{name: options}]}).steps) for name, options in points]
    assert swept_options(chains) == ["rank"]


def test_a_sweep_without_numbers_has_no_picture() -> None:
    assert sweep_figures(Recipe(), [measured("", 1), measured("noise:where=a", 2), measured("noise:where=b", 2)]) == []


def test_the_marks_are_what_gzip_and_xz_make_of_the_text() -> None:
    text = read_text("topics[:3000]")
    bits = dict(packed_bits(text))
    assert bits["xz -9e"] == 8 * len(lzma.compress(text.data, preset=9 | lzma.PRESET_EXTREME)) / 3000
    # a gzip file is a deflate stream with a header of 10 bytes and a trailer of 8 (RFC 1952)
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = len(deflated.compress(text.data) + deflated.flush()) + 18
    assert bits["gzip -9"] == 8 * size / len(text)
