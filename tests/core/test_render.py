import re

import pytest

from kobza.core.figure import Figure
from kobza.core.render import Html, asset, fragment, heading, html, page
from kobza.core.result import Reading, Result
from kobza.core.table import Table

BLOCKS = [
    heading("A & b"),
    "a <paragraph>",
    Html("<hr>"),
    Reading("bits_per_byte", 1.04, "bit/B", 1.0, 1.1, record={"text": '"x"'}),
    [Reading("a", 1.0), Reading("b", 2.0)],
    Table([{"a": 1}], title="T"),
    Result("R", [Reading("a", 1.0)], made_by={"seed": 0}),
    Figure("map", {"x": [0.0, 1.0], "y": [0.0, 1.0], "labels": ["</script>", "b"]}),
]


def test_a_page_needs_nothing_from_outside():
    text = page("Title <x>", BLOCKS, lead="lead & more")
    without_data = text.replace("data:", "").replace('xmlns="http://www.w3.org/2000/svg"', "")
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!#|,)[^"']+|url\((?!#)[^)]+|@import""", without_data)
    assert not [o for o in outside if "://" in o or o.startswith("@import")]
    assert "default-src 'none'" in text and "<title>Title &lt;x&gt;</title>" in text


def test_text_is_escaped_and_html_is_not():
    assert fragment("a <b>") == "<p>a &lt;b&gt;</p>" and fragment(Html("<hr>")) == "<hr>"
    assert heading("A & b") == '<h2 id="a-b">A &amp; b</h2>'


def test_a_label_cannot_end_the_script():
    assert "</script>" not in re.sub(r"</script>\s*(?=<|$)", "", fragment(BLOCKS[-1])).replace("<\\/script>", "")


@pytest.mark.parametrize("block", BLOCKS[3:], ids=lambda b: type(b).__name__)
def test_a_fragment_carries_its_style(block):
    assert asset("page.css") in html(block)


def test_a_reading_shows_value_unit_and_interval():
    shown = fragment(BLOCKS[3])
    assert "1.040" in shown and "bit/B" in shown and "1 .. 1.100" in shown
