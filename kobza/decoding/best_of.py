"""Best of N: draw several texts at once and keep the likeliest, or the one whose answer most others share.

Sources: best-of-N by the model's own mean log-probability; self-consistency, Wang et al. (2022), arXiv:2203.11171.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak
from kobza.decoding.lockstep import Drawn, draw
from kobza.decoding.shaping import Shape
from kobza.models.model import Model
from kobza.models.prompts import Prompt, stops


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    texts: int = 4,
    by: Literal["logprob", "vote"] = "logprob",
    answer: str = r"-?\d+(?:\.\d+)?",
    temperature: float = 0.8,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Draw several texts from one prompt and say the best.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        texts: texts drawn [count, 1 ..].
        by: keep the text of the greatest mean log-probability, or of the answer that most texts give (among these the
            likeliest).
        answer: regular expression whose last match in a text is its answer.
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        top_p: keep the likeliest tokens that together reach this probability [fraction, 0 < .. 1].
        min_p: keep tokens at least this often as likely as the likeliest [fraction, 0 .. 1].
        stop: texts that end each text drawn; its answer stands before them.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation, whose tokens all come at the end; its first note counts the answers.

    Raises:
        BadValue: `answer` is not a regular expression.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step of `texts` rows per token; the prompt is read once.
    """
    check_ranges(("texts", texts, texts >= 1, "1 or more"))
    shape = Shape(temperature, top_p=top_p, min_p=min_p).checked()
    try:
        pattern = re.compile(answer)
    except re.error as error:
        raise BadValue(f"answer {answer!r} is not a regular expression: {error}.") from None

    words = stops(model, stop or ())[1]

    def strategy(session: Session) -> Iterator[Event]:
        drawn = draw(session, texts, shape, seed, [_Until(model, words) for _ in range(texts)] if words else ())
        chosen, note = _voted(model, drawn, pattern, words) if by == "vote" else (_likeliest(drawn), "")
        if note:
            yield Note(note)
        yield from chosen.steps
        if chosen.is_ended:
            yield "end"

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


class _Until:
    """The rule of a text that ends with one of several words."""

    def __init__(self, model: Model, words: Sequence[str]) -> None:
        self.model, self.words = model, words
        self.ids: list[int] = []

    def __call__(self, logits: Tensor) -> Tensor:
        return logits

    def take(self, token: int) -> bool:
        self.ids.append(token)
        text = self.model.tokenizer.text(self.ids)
        return any(word in text for word in self.words)


def _likeliest(drawn: list[Drawn]) -> Drawn:
    return max(drawn, key=lambda text: text.mean)


def _voted(model: Model, drawn: list[Drawn], pattern: re.Pattern[str], stop: Sequence[str] = ()) -> tuple[Drawn, str]:
    """Return the likeliest text of the most frequent answer before a stop text, and the count of the answers."""
    said = [_before(model.tokenizer.text(text.ids), stop) for text in drawn]
    answers = [found[-1] if (found := pattern.findall(text)) else None for text in said]
    counts = Counter(str(answer) for answer in answers if answer is not None)
    if not counts:
        return _likeliest(drawn), "no text has an answer"
    winner = counts.most_common(1)[0][0]
    chosen = _likeliest([text for text, answer in zip(drawn, answers, strict=True) if str(answer) == winner])
    return chosen, ", ".join(f"{answer}: {n}" for answer, n in counts.most_common())


def _before(text: str, words: Sequence[str]) -> str:
    """Return a text up to the first of some words.

    >>> _before("7\\n8 END", ("END", "\\n"))
    '7'
    """
    return text[: min((place for word in words if (place := text.find(word)) >= 0), default=len(text))]
