"""The project's own checks find what they are for."""

from pathlib import Path

import pytest

from checks import generate_docs, run


@pytest.mark.parametrize("path", ["home/ann/kobza", "root/x", "tmp/out.txt", "mnt/data"])
def test_a_path_of_one_machine_is_found(path: str) -> None:
    assert run.MACHINE_PATH.search(f"open('/{path}')")


@pytest.mark.parametrize("text", ["https://example.org/home/page", "$HOME/tmp/x", "docs/tmp/", "a/root/b", "/tmp"])
def test_a_path_that_any_machine_has_is_not(text: str) -> None:
    assert not run.MACHINE_PATH.search(text)


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("[there](page.md) [gone](gone.md) [outside](https://example.org) [below](#part)")
    monkeypatch.setattr(run, "tracked", lambda: [page])
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.links_lead_somewhere() == ["page.md links to gone.md, which is not there"]


def test_an_error_without_a_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "errors").mkdir(parents=True)
    (tmp_path / "docs" / "errors" / "Nonsense.md").write_text("# Nonsense\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    found = run.every_error_has_a_page()
    assert "docs/errors/OutOfRange.md is missing" in found
    assert "docs/errors/Nonsense.md describes no error" in found


def test_the_reference_of_a_room_names_every_public_function() -> None:
    page = generate_docs.reference("vault")
    assert "### `shelf(room: str | None=None) -> Table`" in page
    assert "_table" not in page.replace("`shelf", "")


def test_the_page_of_techniques_names_every_card() -> None:
    page = generate_docs.technique_page()
    assert "[lowrank](../kobza/vault/cards/edits/lowrank.md)" in page
    assert "[bits_per_byte](../kobza/vault/cards/measures/bits_per_byte.md)" in page
