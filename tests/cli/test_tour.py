"""The tour's page is whole and needs no network; its sentences follow from its figures."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kobza.cli import tour, tour_sweep
from kobza.cli.tour_sweep import BEST, PLAIN, RANDOM, Point
from kobza.core.errors import CannotWrite

WIDTH, RANK, TEXT = 576, 386, "topics[0:6000]"


def point(method: str, end: str, factor: float, **given: object) -> Point:
    made = Point(method, end, RANK, TEXT, factor, factor, factor, factor, factor, factor, 0.5, 500e6)
    return replace(made, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("tour") / "tour.html"
    return tour.write(out, model="tiny", quick=True).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_has_every_chapter_once(page: str) -> None:
    names = re.findall(r'<section id="([^"]+)">', page)
    assert names == ["anatomy", "tokens", "spectrum", "map", "neighbors", "clumps", "edits", "error-and-bits",
                     "samples", "learned"]  # fmt: skip
    assert all(f'href="#{name}"' in page for name in names)


@pytest.mark.slow
def test_the_page_loads_nothing_from_outside(page: str) -> None:
    assert "Content-Security-Policy" in page
    assert not re.search(r'(?:src|href|xlink:href)="(?:https?:)?//', page)
    assert not re.search(r"@import|url\((?!#|data:)", page)


@pytest.mark.slow
def test_ids_on_the_page_are_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_sweep_names_every_method_at_every_share_on_both_ends() -> None:
    points = tour_sweep.tour_recipe("smollm2", WIDTH).check().points()
    ranks = {round(share * WIDTH) for share in tour_sweep.SHARES}
    svd = {(s.options["where"], s.options["rank"]) for p in points for s in p.chain if s.name == "lowrank"}
    assert svd == {(end, rank) for end in tour_sweep.ENDS for rank in ranks}
    assert len(points) < 70  # what two cores measure in six minutes


def test_the_lesson_about_the_error_follows_the_figures() -> None:
    harmful = [point(PLAIN, "embed.in", 1.9, error=0.3), point(RANDOM, "embed.in", 1.3, error=0.56)]
    harmless = [point(PLAIN, "embed.in", 1.1, error=0.3), point(RANDOM, "embed.in", 1.3, error=0.56)]
    said = [tour_sweep._lesson_error(found, TEXT, RANK, WIDTH, 0) for found in (harmful, harmless)]
    assert "and yet" in said[0]
    assert "and yet" not in said[1]
    assert "1.90" in said[0]
    assert "0.56" in said[0]


def test_the_lesson_about_the_ends_follows_the_figures() -> None:
    found = [point(BEST, "embed", 1.2), point(BEST, "embed.in", 1.05)]
    assert "costs more than" in tour_sweep._lesson_ends(found, TEXT, RANK, WIDTH, 0)
    turned = [point(BEST, "embed", 1.05), point(BEST, "embed.in", 1.2)]
    assert "costs no more than" in tour_sweep._lesson_ends(turned, TEXT, RANK, WIDTH, 0)


def test_without_figures_no_lesson_is_drawn() -> None:
    lessons = (
        tour_sweep._lesson_error, tour_sweep._lesson_best, tour_sweep._lesson_ends, tour_sweep._lesson_bytes,
        tour_sweep._lesson_noise, tour_sweep._lesson_scale,
    )  # fmt: skip
    assert [lesson([], TEXT, RANK, WIDTH, 0) for lesson in lessons] == [""] * 6


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour, "_made", lambda *_, **__: "page")
    with pytest.raises(CannotWrite, match="a folder is in its place"):
        tour.write(tmp_path)
