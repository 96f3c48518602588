import pytest

from kobza.core.cards import FIELDS, card, read
from kobza.core.errors import Corrupt, MissingFile, UnknownName

HEADER = "".join(f'{f} = "{f} of it"\n' for f in FIELDS)


def write(tmp_path, text):
    (tmp_path / "edits").mkdir(exist_ok=True)
    path = tmp_path / "edits" / "svd.md"
    path.write_text(text)
    return path


def test_header_and_body_are_read_and_the_path_names_it(tmp_path):
    found = read(write(tmp_path, f"+++\n{HEADER}+++\n\nBody.\n"))
    assert (found.room, found.name, found.claim, found.body) == ("edits", "svd", "claim of it", "Body.")


@pytest.mark.parametrize(
    "text",
    ["", "no header", f"+++\n{HEADER}", "+++\nx = \n+++\n", f'+++\n{HEADER}more = "1"\n+++\n', "+++\ntitle = 1\n+++\n"],
)
def test_faulty_headers_are_refused(tmp_path, text):
    with pytest.raises(Corrupt):
        read(write(tmp_path, text))


def test_missing_cards_are_named(tmp_path):
    with pytest.raises(MissingFile):
        read(tmp_path / "no.md")
    with pytest.raises(UnknownName, match="no card is named 'edits/lowrnk'"):
        card("edits", "lowrnk")
