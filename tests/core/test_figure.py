import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from kobza.core.errors import BadValue
from kobza.core.figure import KINDS, Figure

SERIES = [
    {"name": "<a>", "x": [1, 2], "y": [1.0, None], "low": [0.5, None], "high": [1.5, None]},
    {"name": "b", "x": [1], "y": [3]},
]
DATA = {
    "lines": {"series": SERIES, "hlines": [{"y": 2, "label": "xz"}], "vlines": [{"x": 1, "label": "v"}], "logy": True},
    "bars": {"labels": ["a", "b"], "values": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]},
    "image": {
        "values": np.array([[1.0, -1.0], [np.nan, 0.0]]),
        "rows": ["a", "b"],
        "columns": [1, 2],
        "marks": np.eye(2),
    },
    "points": {
        "x": [1.0, 2.0],
        "y": [3.0, 4.0],
        "labels": ["a", "b"],
        "color": [1, 2],
        "named": [{"label": "a", "x": 1, "y": 3}],
    },
    "map": {"x": [1.0, 2.0], "y": [3.0, 4.0], "labels": ["<script>", "b"], "color": [1.0, 2.0]},
    "tokens": {"pieces": [{"text": "<b>", "value": 1.0, "title": '"q"'}, {"text": " a\n"}]},
}


@pytest.fixture(params=KINDS)
def figure(request):
    return Figure(request.param, DATA[request.param], title="<T>", caption="C & c", x="x [m]", y="y")


def test_every_kind_is_drawn_as_png_svg_and_html(figure, tmp_path):
    assert figure.save(tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.fromstring(figure.save(tmp_path / "f.svg").read_text())
    page = figure.save(tmp_path / "f.html").read_text()
    assert "C &amp; c" in page and "<script>" not in page.replace("<script>\n", "").split("<figure>")[0]


def test_every_kind_round_trips_through_json(figure):
    back = Figure.from_json(json.loads(json.dumps(figure.to_json(), allow_nan=False)))
    assert back.to_json() == figure.to_json() and back.png() == figure.png()


def test_the_same_data_gives_the_same_svg(figure):
    assert figure.svg() == figure.svg()


def test_an_svg_refers_only_to_its_own_ids(figure):
    svg = figure.svg()
    ids = set(re.findall(r'id="([^"]+)"', svg))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg)) <= ids


def test_an_svg_in_a_page_takes_the_page_s_text_color():
    svg = Figure("bars", DATA["bars"]).svg()
    assert "currentColor" in svg and "#010203" not in svg


def test_a_diverging_image_is_centered_at_zero():
    image = Figure("image", DATA["image"]).axes().images[0]
    assert image.get_clim() == (-1.0, 1.0)


def test_unknown_kinds_and_suffixes_are_refused(tmp_path):
    with pytest.raises(BadValue, match="not 'pie'"):
        Figure("pie", {})
    with pytest.raises(BadValue, match="suffixes"):
        Figure("bars", DATA["bars"]).save(tmp_path / "f.gif")
