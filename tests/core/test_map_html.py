"""The map as HTML: what goes in comes out, nothing of it is ever markup, and it asks nobody for anything."""

import base64
import json
import re

import numpy as np
import pytest

from kobza.core.errors import BadValue
from kobza.core.figure import Figure
from kobza.core.map_html import CODES, assets, map_html, payload


def figure(count: int = 50, **more) -> Figure:
    places = np.random.default_rng(0).normal(size=(2, count))
    data = {"x": places[0], "y": places[1], "labels": [f"token {i}" for i in range(count)], **more}
    return Figure("map", data, title="Made", x="component 1", y="component 2")


def block(fragment: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', fragment, re.DOTALL)[1])


def numbers(channel: dict) -> np.ndarray:
    """What the script reads: code 65535 is no value."""
    codes = np.frombuffer(base64.b64decode(channel["codes"]), "<u2").astype(float)
    values = channel["low"] + codes * (channel["high"] - channel["low"]) / CODES
    return np.where(codes == CODES + 1, np.nan, values)


def test_positions_come_back_within_a_step():
    made = figure()
    found = block(map_html(made))
    for key in ("x", "y"):
        step = (made.data[key].max() - made.data[key].min()) / CODES
        assert np.allclose(numbers(found[key]), made.data[key], atol=0.51 * step, rtol=0)
    assert found["labels"] == made.data["labels"]


def test_equal_positions_come_back_exactly():
    same = Figure("map", {"x": [2.5, 2.5], "y": [0, 1]})
    assert numbers(block(map_html(same))["x"]).tolist() == [2.5, 2.5]


def test_a_missing_color_is_no_value():
    found = numbers(block(map_html(figure(3, color=[1.0, np.nan, 3.0])))["colors"][0])
    assert np.isnan(found[1])
    assert found[[0, 2]].tolist() == [1, 3]


def test_several_channels_can_be_chosen():
    found = block(map_html(figure(3, color=[1, 2, 3], color_name="norm", colors={"id": [0, 1, 2]})))
    assert [channel["name"] for channel in found["colors"]] == ["norm", "id"]


def test_the_color_scale_leaves_single_outliers_out():
    channel = block(map_html(figure(1000, color=[*range(999), 1e9])))["colors"][0]
    assert channel["to"] < 1000
    assert channel["high"] == 1e9


EVIL = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\u2028\u0000\x1b[31m", "&lt;", "<!--"]


def test_no_label_can_leave_its_place():
    made = Figure(
        "map",
        {
            "x": range(5),
            "y": range(5),
            "labels": EVIL,
            "color": range(5),
            "color_name": EVIL[0],
            "named": [{"label": EVIL[0], "index": 0}],
            "row": EVIL[0],
        },
        title=EVIL[0],
        x=EVIL[0],
        y=EVIL[1],
    )
    fragment = map_html(made, script=False)
    assert fragment.count("<script") == 1
    assert fragment.count("</script") == 1
    assert "<img" not in fragment
    assert "<!--" not in fragment
    assert block(fragment)["labels"] == EVIL


def test_the_map_needs_neither_network_nor_eval():
    style, code = assets()
    for text in (style, code):
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert not re.search(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write|setTimeout\(['\"]", code)


def test_the_script_is_left_out_where_the_page_has_it():
    assert "<style>" not in map_html(figure(), script=False)
    assert "<style>" in map_html(figure())


def test_ids_are_kept_where_they_are_not_consecutive():
    assert block(map_html(figure(3, ids=[5, 9, 2])))["ids"] == [5, 9, 2]
    found = block(map_html(figure(3, ids=[7, 8, 9])))
    assert "ids" not in found
    assert found["first"] == 7


def test_groups_and_their_names_are_kept():
    found = payload(figure(3, groups=[0, 1, 1], group_names=["control", "word"]))["groups"]
    assert found["names"] == ["control", "word"]
    assert np.frombuffer(base64.b64decode(found["codes"]), "<u2").tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": [], "y": []}, "a map needs at least one point"),
        ({"x": [1, 2], "y": [1]}, "a map of 2 points got 1 values of 'y'"),
        ({"x": [1, np.inf], "y": [1, 2]}, r"position x\[1\] is inf; positions on a map are finite"),
        ({"x": [1], "y": [1], "labels": ["a", "b"]}, "1 points got 2 values of 'labels'"),
        ({"x": [1], "y": [1], "color": [1, 2]}, "1 points got 2 values of 'value'"),
        ({"x": [1], "y": [1], "groups": [1], "group_names": ["a"]}, "groups reach from 1 to 1, but group_names has 1"),
        ({"x": [1], "y": [1], "named": [{"label": "a", "index": 1}]}, r"index 1; the map has points 0 \.\. 0"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, message):
    with pytest.raises(BadValue, match=message):
        map_html(Figure("map", data))


def test_a_page_of_49152_points_takes_about_a_megabyte():
    count = 49152
    rng = np.random.default_rng(1)
    made = Figure(
        "map", {"x": rng.normal(size=count), "y": rng.normal(size=count), "labels": [f" word{i}" for i in range(count)]}
    )
    assert len(map_html(made)) < 1_200_000
