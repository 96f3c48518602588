"""Best of N says the text it should, and its texts are those of plain sampling in distribution."""

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from kobza.core.errors import BadValue, OutOfRange
from kobza.decoding import best_of, greedy
from kobza.decoding.base import Note, Session, Step
from kobza.decoding.lockstep import Drawn, draw
from kobza.decoding.shaping import Shape
from kobza.models.tiny import tiny as make_tiny


def test_the_likeliest_of_the_texts_is_said(tiny: Any) -> None:
    ids = tiny.tokenizer.encode("The kobza", start=True)
    drawn = draw(Session(tiny, ids, 12, "auto"), 6, Shape(0.8), 3)
    found = best_of.generate(tiny, "The kobza", tokens=12, texts=6, seed=3)
    assert found.ids in [text.ids for text in drawn]
    assert sum(found.logprobs) / 12 == pytest.approx(max(text.mean for text in drawn))


def test_one_text_at_no_temperature_is_greedy(tiny: Any) -> None:
    found = best_of.generate(tiny, "The kobza", tokens=15, texts=3, temperature=0.0)
    assert found.ids == greedy.generate(tiny, "The kobza", tokens=15).ids


def test_rows_are_drawn_as_single_texts_are() -> None:
    model = make_tiny()
    ids = model.tokenizer.encode("ab", start=True)
    drawn = draw(Session(model, ids, 1, "auto"), 2000, Shape(1.0, top_k=4), 0)
    with torch.inference_mode():
        kept = Shape(1.0, top_k=4)(model.module(torch.tensor([ids])).logits[0, -1]).softmax(-1)
    counts = Counter(text.ids[0] for text in drawn if text.ids)
    tokens = [t for t in kept.nonzero()[:, 0].tolist() if t != model.tokenizer.end_id]
    expected = torch.tensor([float(kept[t]) for t in tokens])
    observed = [counts[t] for t in tokens]
    assert chisquare(observed, expected / expected.sum() * sum(observed), sum_check=False).pvalue > 0.001


def test_the_answer_of_most_wins(tiny: Any) -> None:
    import re

    def said(text: str, logprob: float) -> Drawn:
        return Drawn([Step(token, logprob, 0.0) for token in tiny.tokenizer.encode(text)])

    drawn = [said("so it is 7", -0.1), said("maybe 4 or 12", -0.5), said("12.", -0.4), said("none", 0.0)]
    chosen, note = best_of._voted(tiny, drawn, re.compile(r"\d+"))
    assert tiny.tokenizer.text(chosen.ids) == "12."
    assert note == "12: 2, 7: 1"
    assert best_of._voted(tiny, [drawn[3]], re.compile(r"\d+"))[1] == "no text has an answer"


def test_votes_are_noted(tiny: Any) -> None:
    found = best_of.generate(tiny, "1 2 3", tokens=8, texts=4, by="vote", answer=".")
    assert isinstance(found.events[0], Note)


def test_what_follows_a_stop_text_has_no_vote(tiny: Any) -> None:
    import re

    drawn = [Drawn([Step(token, -0.1, 0.0) for token in tiny.tokenizer.encode(text)]) for text in ("7\n8", "7", "8\n9")]
    assert best_of._voted(tiny, drawn, re.compile(r"\d+"), ["\n"])[1] == "7: 2, 8: 1"


@pytest.mark.parametrize("by", ["logprob", "vote"])
def test_texts_end_at_a_stop_text(tiny: Any, by: Any) -> None:
    free = best_of.generate(tiny, "1 2 3", tokens=12, texts=1, by=by, seed=1)
    stop = free.text[3:5]
    found = best_of.generate(tiny, "1 2 3", tokens=12, texts=1, by=by, seed=1, stop=[stop])
    assert found.text == free.text[: free.text.find(stop)]
    assert found.stopped_by == "stop"
    assert found.passes < free.passes


def test_bad_options_are_refused(tiny: Any) -> None:
    with pytest.raises(BadValue, match="not a regular expression"):
        best_of.generate(tiny, "a", answer="(")
    with pytest.raises(OutOfRange, match="texts is 0"):
        best_of.generate(tiny, "a", texts=0)
