"""A sample is what transformers would write, with its repetitions counted."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue
from kobza.measures import sample
from kobza.models.tiny import tiny as make_tiny


def test_greedy_text_is_that_of_transformers(tiny: Any) -> None:
    found = sample.measure(tiny, b"unused", prompt="The kobza", tokens=20).record["sample"]
    ids = torch.tensor([tiny.tokenizer.encode("The kobza", start=True)])
    expected = tiny.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert found["ids"] == expected[0, ids.shape[1] :].tolist()[: len(found["ids"])]


def test_equal_seeds_write_equal_texts_and_unequal_ones_differ(tiny: Any) -> None:
    a, b, c = (
        sample.measure(tiny, "topics", temperature=1.0, seed=seed).record["sample"]["text"] for seed in (1, 1, 2)
    )
    assert a == b != c


def test_the_beginning_of_the_text_is_the_prompt_when_none_is_given(tiny: Any) -> None:
    assert (
        sample.measure(tiny, "topics", lead=30, tokens=3).record["how"]["prompt"] == 'The "assert" statement\n*******'
    )


def test_a_chat_without_a_template_is_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="no chat template"):
        sample.measure(tiny, "topics", prompt="hello", chat=True)


@pytest.mark.parametrize(
    ("ids", "n", "share"), [([], 1, 0.0), ([1, 2, 3], 1, 0.0), ([1, 1, 1, 1], 1, 0.75), ([1, 2, 1, 2, 1], 2, 0.5)]
)
def test_repeated_grams_are_counted(ids: list[int], n: int, share: float) -> None:
    assert sample.repeated(ids, n) == share


@pytest.mark.parametrize(
    ("ids", "length"),
    [([], 0), ([1], 0), ([1, 2, 3], 0), ([1, 1], 2), ([9, 1, 2, 1, 2, 1, 7], 5), ([1, 2, 3, 1, 2], 0), ([4] * 9, 9)],
)
def test_the_longest_loop_is_found(ids: list[int], length: int) -> None:
    assert sample.longest_loop(ids) == length


@given(st.lists(st.integers(0, 3), max_size=12))
def test_the_longest_loop_is_that_of_a_plain_search(ids: list[int]) -> None:
    def loops(run: list[int]) -> bool:
        return any(run[p:] == run[:-p] for p in range(1, len(run) // 2 + 1))

    runs = (ids[a:b] for a in range(len(ids)) for b in range(a + 2, len(ids) + 1))
    assert sample.longest_loop(ids) == max((len(run) for run in runs if loops(run)), default=0)


def test_texts_stand_side_by_side_with_a_picture_each(tiny: Any) -> None:
    table = sample.texts([tiny, make_tiny(seed=1)], "topics", tokens=12, temperature=1.0)
    assert len(table) == 2
    assert len(set(table["prompt"])) == 1
    for figure, text in zip(table.figures, table["text"], strict=True):
        assert "".join(piece["text"] for piece in figure.data["pieces"]) == text.rstrip("\ufffd")


def test_the_note_prints_control_characters_escaped(tiny: Any) -> None:
    note = sample.measure(tiny, "topics", tokens=40, temperature=3.0, seed=5).note
    assert note.isprintable()


@pytest.mark.real
def test_smollm2_answers_in_its_chat_template(smollm2: Any) -> None:
    reading = sample.measure(smollm2, "topics", prompt="What is the capital of France?", tokens=12)
    assert reading.record["how"]["chat"] is True
    assert "Paris" in reading.record["sample"]["text"]
