"""Heat maps as text."""

from kobza.core.figure import Figure
from kobza.core.heat import WIDEST, heat_map


def image(values: list[list[float | None]], **rest: object) -> Figure:
    return Figure("image", {"values": values, **rest}, title="Change", x="head", y="layer")


def test_shade_sign_and_cross_are_those_of_the_cell() -> None:
    text = heat_map(image([[1.0, -1.0], [0.0, None]], marks=[[True, False], [False, False]], rows=["0", "1"]))
    title, first, second, legend = text.splitlines()
    assert title == "Change"
    assert first == "0 x@-@"
    assert second.rstrip() == "1"
    assert "layer down, head across; full = 1;" in legend
    assert "x: another top token" in legend


def test_wide_pictures_keep_the_strongest_cell_of_a_group() -> None:
    row: list[float | None] = [0.0] * (3 * WIDEST)
    row[1] = -5.0
    line = heat_map(image([row])).splitlines()[1]
    assert line == "0 -@"


def test_colors_are_red_above_and_blue_below_0() -> None:
    text = heat_map(image([[2.0, -2.0, 0.0]]), colored=True)
    assert "\x1b[48;2;178;24;43m" in text
    assert "\x1b[48;2;33;102;172m" in text
    assert "\x1b[48;2;255;255;255m" in text


def test_a_picture_of_zeros_is_blank() -> None:
    assert heat_map(image([[0.0, 0.0]])).splitlines()[1].strip() == "0"
