"""A generation streams whole characters, ends where it is told, and counts what it did."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kobza.core.errors import BadValue, EmptyText, NotFinite, OutOfRange, UnknownName
from kobza.decoding import base, greedy
from kobza.decoding.base import Generation, Reason, Step
from kobza.models.prompts import prompt_ids
from kobza.models.tiny import tiny as make_tiny

TINY = make_tiny()


def mark(model: Any, **marks: Any) -> None:
    """Change the marks of this model's tokenizer only: tiny models share one."""
    model.tokenizer = copy.copy(model.tokenizer)
    model.tokenizer.marks = replace(model.tokenizer.marks, **marks)


def saying(data: bytes, stop: tuple[str, ...] = ()) -> Generation:
    """A generation of given bytes, one token per byte."""

    def steps() -> Iterator[Step | Reason]:
        for place, byte in enumerate(data):
            token = TINY.tokenizer.id_of(bytes([byte]))
            assert token is not None
            yield Step(token, -1.0, 0.1 * place)
        yield "length"

    return Generation(TINY, [], steps(), stop)


@given(st.binary(max_size=40))
def test_pieces_add_up_to_the_text_with_bad_bytes_replaced(data: bytes) -> None:
    generation = saying(data)
    assert "".join(generation) == generation.text == data.decode("utf-8", errors="replace")


@given(st.text(max_size=20))
def test_pieces_are_whole_characters(text: str) -> None:
    data = text.encode("utf-8", errors="ignore")
    assert "\ufffd" not in "".join(saying(data)).replace("\ufffd", "", text.count("\ufffd"))
    assert "".join(saying(data)) == data.decode()


def test_a_character_of_several_tokens_comes_as_one_piece() -> None:
    assert list(saying("aд€😀".encode())) == ["a", "д", "€", "😀"]


def test_reading_twice_gives_the_same_without_running_again() -> None:
    generation = saying(b"kobza")
    pieces = iter(generation)
    assert next(pieces) == "k"
    assert generation.text == "kobza"
    assert list(generation) == ["k", "o", "b", "z", "a"]
    assert "".join(pieces) == "obza"


@given(st.text(alphabet="ab", max_size=12), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    generation = saying(text.encode(), tuple(stop))
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(s) for s in stop)]
    seen = text[: ends[0]] if ends else text
    expected = seen[: min(seen.find(s) for s in stop if s in seen)] if ends else text
    assert "".join(generation) == expected
    assert generation.stopped_by == ("stop" if ends else "length")


def test_the_beginning_of_a_stop_text_is_held_back_until_it_is_clear() -> None:
    assert list(saying(b"so the ent", ("the end",))) == ["s", "o", " ", "the en", "t"]


def test_steps_are_counted_with_their_times() -> None:
    generation = saying(b"kobza")
    assert generation.seconds == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert generation.tokens_per_second == pytest.approx(10)
    assert len(generation.ids) == len(generation.logprobs) == 5
    assert saying(b"").tokens_per_second == 0


def test_log_probabilities_are_those_of_the_model(tiny: Any) -> None:
    generation = greedy.generate(tiny, "The kobza", tokens=6)
    ids = torch.tensor([generation.prompt_ids + generation.ids])
    with torch.inference_mode():
        logits = tiny.module(input_ids=ids).logits[0, -7:-1].double().log_softmax(-1)
    expected = logits.gather(-1, torch.tensor(generation.ids)[:, None])[:, 0]
    assert generation.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_nothing_runs_before_it_is_read(tiny: Any) -> None:
    tiny.module.forward = None
    assert "0 tokens" in repr(greedy.generate(tiny, "The kobza"))


def test_the_end_token_ends_the_text_and_is_no_part_of_it(tiny: Any) -> None:
    first = greedy.generate(tiny, "The kobza", tokens=3)
    mark(tiny, end_id=first.ids[0])
    ended = greedy.generate(tiny, "The kobza", tokens=3)
    assert (ended.ids, ended.text, ended.stopped_by) == ([], "", "end")


def test_control_tokens_add_nothing_to_the_text(tiny: Any) -> None:
    assert base._said(tiny, tiny.tokenizer.special["<s>"]) == b""
    assert base._said(tiny, 10**6) == b""


def test_a_plain_prompt_begins_with_the_start_token_where_the_model_uses_one(tiny: Any) -> None:
    assert prompt_ids(tiny, "the") == tiny.tokenizer.encode("the", start=True)
    mark(tiny, adds_start=False)
    assert prompt_ids(tiny, "the") == tiny.tokenizer.encode("the")


def test_an_empty_prompt_is_the_start_token_alone(tiny: Any) -> None:
    assert prompt_ids(tiny, "") == [tiny.tokenizer.start_id]
    mark(tiny, start_id=None)
    with pytest.raises(EmptyText, match="has no start token"):
        greedy.generate(tiny, "")


def test_messages_and_chat_texts_go_through_the_template(tiny: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    mark(tiny, chat_template=template)
    expected = tiny.tokenizer.encode("user: hello\n")
    assert prompt_ids(tiny, "hello", chat=True) == expected
    assert prompt_ids(tiny, b"hello", chat=True) == expected
    assert prompt_ids(tiny, [{"role": "user", "content": "hello"}]) == expected


def test_a_chat_without_a_template_is_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="no chat template"):
        greedy.generate(tiny, "hello", chat=True)


def test_more_than_the_trained_positions_is_refused_with_the_numbers() -> None:
    tiny = make_tiny(context=512)
    with pytest.raises(OutOfRange, match=r"the prompt has 11 tokens and 600 are asked for: 611 in all") as caught:
        greedy.generate(tiny, "0123456789", tokens=600)
    assert "trained for 512" in str(caught.value)
    assert "Ask for 501 tokens at most." in str(caught.value)
    with pytest.raises(OutOfRange, match=r"Shorten the prompt\."):
        greedy.generate(tiny, "0" * 600, tokens=1)
    assert len(greedy.generate(tiny, "0" * 509, tokens=2).ids) == 2


@pytest.mark.parametrize("tokens", [0, -1])
def test_no_tokens_are_refused(tiny: Any, tokens: int) -> None:
    with pytest.raises(OutOfRange, match=f"tokens is {tokens}; allowed is 1 or more"):
        greedy.generate(tiny, "the", tokens=tokens)


def test_an_empty_stop_text_is_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="stop text is empty"):
        greedy.generate(tiny, "the", stop=["end", ""])


def test_a_control_token_that_shall_stop_is_a_token_and_an_unknown_one_is_refused(tiny: Any) -> None:
    said = greedy.generate(tiny, "The kobza", tokens=20)
    assert greedy.generate(tiny, "The kobza", tokens=20, stop=["</s>"]).ids == said.ids
    session_ends = base.speak(tiny, "a", base.one_by_one(lambda logits, _: 0), tokens=5, stop=["<s>"])
    assert session_ends.ids == [] and session_ends.stopped_by == "end"
    with pytest.raises(UnknownName, match="no control token of 'tiny:llama' is named '<|eot_id|>'".replace("|", "\\|")):
        greedy.generate(tiny, "a", stop=["<|eot_id|>"])


def test_logits_that_are_not_finite_stop_with_the_token(tiny: Any) -> None:
    tiny.module.model.norm.weight[0] = math.nan
    with pytest.raises(NotFinite, match="before token 1 of the generation"):
        _ = greedy.generate(tiny, "the").text
