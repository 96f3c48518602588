"""Running a recipe: the same numbers as by hand, the unedited beside the edited, nothing imported in vain."""

import subprocess
import sys
from typing import Any

import pytest

import kobza
from kobza.core.errors import BadValue, EmptyText, MissingFile, NotComparable, OutOfRange
from kobza.core.progress import Task, listen
from kobza.edits import noise, scaling
from kobza.measures import bits_per_byte
from kobza.recipes.recipe import Recipe, chain
from kobza.recipes.running import execute, run

TEXT = "topics[:600]"


def recipe(edits: str, measures: str = "bits_per_byte", **fields: Any) -> Recipe:
    return Recipe(open="tiny", steps=chain(edits), measures=chain(measures), text=(TEXT,), **fields)


def test_a_run_gives_the_numbers_that_one_gets_by_hand(tiny: Any) -> None:
    result = run(recipe("noise:strength=0.5 + scaling:factor=2", seed=3))
    by_hand = scaling.apply(noise.apply(tiny, strength=0.5, seed=3), factor=2.0)
    assert result.reading("bits_per_byte").value == bits_per_byte.measure(by_hand, TEXT).value
    assert result.reading("bits_per_byte, unedited").value == bits_per_byte.measure(tiny, TEXT).value


def test_the_table_has_the_factor_and_the_paired_interval(tiny: Any) -> None:
    row = run(recipe("scaling:factor=2")).tables[0][0]
    a, b = bits_per_byte.measure(tiny, TEXT), bits_per_byte.measure(scaling.apply(tiny, factor=2.0), TEXT)
    gap = a.compare(b)
    assert (row["unedited"], row["edited"], row["difference"]) == (a.value, b.value, gap.value)
    assert (row["low"], row["high"], row["factor"]) == (gap.low, gap.high, gap.record["factor"])


def test_a_model_compared_with_itself_has_no_divergence() -> None:
    result = run(recipe("scaling:factor=1", "divergence"))
    assert result.reading("divergence").value == 0
    assert "divergence, unedited" not in [r.name for r in result.readings]


def test_without_edits_there_is_one_set_of_readings() -> None:
    result = run(recipe("", "bits_per_byte + stored_bytes"))
    assert [r.name for r in result.readings] == ["bits_per_byte", "stored_bytes"]
    assert not result.tables


def test_several_texts_are_told_apart() -> None:
    result = run(Recipe(open="tiny", measures=chain("bits_per_byte"), text=("topics[:300]", "source[:300]")))
    assert [r.name for r in result.readings] == ["bits_per_byte, topics[0:300]", "bits_per_byte, source[0:300]"]


def test_two_options_of_one_measure_are_two_readings() -> None:
    result = run(recipe("", "bits_per_byte:window=64,overlap=16 + bits_per_byte:window=128,overlap=16"))
    names = [r.name for r in result.readings]
    assert names == ["bits_per_byte:window=64,overlap=16", "bits_per_byte:window=128,overlap=16"]


def test_the_result_says_how_to_make_it_again() -> None:
    made = run(recipe("noise:strength=0.5", seed=3)).made_by
    again = run(made["recipe"])
    assert again.made_by == made
    assert made["changes"][0]["technique"] == "noise"
    assert made["texts"][0]["sha256"] == kobza.text(TEXT).sha256


def test_a_run_starts_from_a_model_that_is_open(tiny: Any) -> None:
    result, edited = execute(recipe("scaling:factor=2", "stored_bytes"), model=tiny)
    assert edited.changes[-1].technique == "scaling"
    assert not tiny.changes
    assert result.made_by["model"]["fingerprint"] == tiny.fingerprint


def test_progress_counts_every_measure() -> None:
    heard: list[tuple[str, int, int | None]] = []

    def hear(work: Task) -> None:
        heard.append((work.label, work.done, work.total))

    with listen(hear):
        run(recipe("scaling:factor=2", "bits_per_byte + stored_bytes"))
    assert ("measure", 4, 4) in heard


def test_a_sweep_is_not_run_as_one_point() -> None:
    with pytest.raises(BadValue, match="it is a sweep"):
        run(recipe("scaling:factor=1|2"))


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"text": ("nowhere.txt",)}, MissingFile),
        ({"text": (b"",)}, EmptyText),
        ({"steps": chain("lowrank:rank=1000")}, OutOfRange),
    ],
)
def test_what_cannot_be_done_is_refused(wrong: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run(Recipe(**{"open": "tiny", **wrong}))


def test_a_text_that_an_edit_is_told_to_read_is_refused_before_the_model_is_opened() -> None:
    steps = chain("noise:strength=0.1 + lowrank:rank=8,weights=frequency,calibration=topics[:900]")
    with pytest.raises(NotComparable, match="calibrated on 'topics"):
        run(Recipe(open="no/where", steps=steps, text=("topics[:1000]",)))
    limited = chain("bits_per_byte:limit=400")
    with pytest.raises(MissingFile):  # what is read of the text, 400 bytes, is none of the calibration
        run(
            Recipe(
                open="no/where.gguf",
                steps=chain("lowrank:calibration=topics[500:900]"),
                text=("topics[:1000]",),
                measures=limited,
            )
        )


def test_only_the_modules_named_are_imported() -> None:
    code = (
        "import sys, kobza; kobza.run({'open': 'tiny', 'steps': ['scaling:factor=2'], 'measures': ['stored_bytes'],"
        " 'text': ['topics[:100]']});"
        "print(*sorted(m for m in sys.modules if m.startswith(('kobza.edits.', 'kobza.measures.'))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(shown) <= {
        "kobza.edits.base", "kobza.edits.scaling", "kobza.measures.base", "kobza.measures.stored_bytes",
        *(name for name in shown if ".base_" in name or "._" in name),
    }  # fmt: skip
