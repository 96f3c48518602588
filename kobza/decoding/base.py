"""The one loop of decoding, and what it gives: a Generation, read while it is written.

A technique of this room gives `generate(model, prompt, *, tokens=64, ..., seed=0) -> Generation`. It chooses; all else
(prompt, chat template, cache, stop rules, streaming, log-probabilities, time) is here.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, NotFinite, OutOfRange
from kobza.models.model import Model
from kobza.models.prompts import Prompt, end_ids, prompt_ids
from kobza.models.stepping import Stepper

Choose = Callable[[Tensor], int]  # logits (V,) float32 on the CPU -> id
Reason = Literal["length", "end", "stop"]


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        id: the token.
        logprob: natural logarithm of the model's own probability of it, before any rule of the strategy.
        seconds: since the generation began.
    """

    id: int
    logprob: float
    seconds: float


class Generation:
    """A text being written. Iterating yields pieces of it; its attributes run it to the end.

    The pieces are whole characters: a token that ends inside one waits for the rest. Bytes that never become a
    character are given as U+FFFD. Iterating twice gives the same pieces again without running the model.

    Args:
        model: the model that speaks.
        prompt_ids: the tokens it begins behind.
        steps: the tokens, as they are made; control tokens that end the text are not among them.
        stop: texts that end the generation; they and what follows are not part of the text.
    """

    def __init__(
        self, model: Model, prompt_ids: list[int], steps: Iterator[Step | Reason], stop: Sequence[str]
    ) -> None:
        self.model = model
        self.prompt_ids = prompt_ids
        self._made: list[Step] = []
        self._pieces: list[str] = []
        self._reason: Reason | None = None
        self._source = _streamed(model, self._recorded(steps), tuple(stop))

    def __iter__(self) -> Iterator[str]:
        at = 0
        while True:
            while at < len(self._pieces):
                yield self._pieces[at]
                at += 1
            piece = next(self._source, None)
            if piece is None:
                return
            self._pieces.append(piece)

    def _recorded(self, steps: Iterator[Step | Reason]) -> Iterator[Step]:
        for step in steps:
            if isinstance(step, str):
                self._reason = step
                return
            self._made.append(step)
            yield step

    def _finished(self) -> Generation:
        for _ in self:
            pass
        return self

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self._finished()._pieces)

    @property
    def ids(self) -> list[int]:
        """The generated tokens, those of a stop text included."""
        return [step.id for step in self._finished()._made]

    @property
    def logprobs(self) -> list[float]:
        """Natural logarithm of the model's probability of every token, before any rule of the strategy."""
        return [step.logprob for step in self._finished()._made]

    @property
    def seconds(self) -> list[float]:
        """Seconds from the beginning to every token; the first includes reading the prompt."""
        return [step.seconds for step in self._finished()._made]

    @property
    def stopped_by(self) -> Reason:
        """Why it ended: "length" (as many tokens as asked for), "end" (the model's end token), "stop" (a stop text)."""
        self._finished()
        return self._reason or "stop"

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 when there is only one."""
        times = self.seconds
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation of {len(self._made)} tokens by {self.model.name}>"


def run(
    model: Model, prompt: Prompt, choose: Choose, *, tokens: int, stop: Sequence[str] = (), chat: bool = False
) -> Generation:
    """Let a model go on with a prompt; nothing is computed before the Generation is read.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        choose: picks the next token from logits (V,).
        tokens: tokens at most [tokens, 1 ..].
        stop: texts that end the generation.
        chat: put a text into the model's chat template as the user's message.

    Raises:
        OutOfRange: `tokens` below one, or prompt and tokens exceed the trained positions; the message has the numbers.
        EmptyText: an empty prompt, and the vocabulary has no start token.
        BadValue: an empty stop text, or a chat without a chat template.
    """
    if tokens < 1:
        raise OutOfRange(f"tokens is {tokens}; allowed is 1 or more.")
    if any(not text for text in stop):
        raise BadValue("a stop text is empty: it would end every generation at once.", "Leave it out.")
    ids = prompt_ids(model, prompt, chat=chat)
    if model.context and len(ids) + tokens > model.context:
        room = model.context - len(ids)
        raise OutOfRange(
            f"the prompt has {len(ids)} tokens and {tokens} are asked for: {len(ids) + tokens} in all, but "
            f"'{model.name}' was trained for {model.context}.",
            f"Ask for {room} tokens at most." if room > 0 else "Shorten the prompt.",
        )
    return Generation(model, ids, _steps(model, ids, choose, tokens), stop)


def _steps(model: Model, ids: list[int], choose: Choose, tokens: int) -> Iterator[Step | Reason]:
    begin = time.perf_counter()
    ends = end_ids(model)
    stepper = Stepper(model)
    logits = stepper.feed([ids])[0].float().cpu()  # (V,)
    for made in range(1, tokens + 1):
        if not torch.isfinite(logits.max()):
            raise NotFinite(f"the logits of '{model.name}' are not finite before token {made} of the generation.")
        token = choose(logits)
        if token in ends:
            yield "end"
            return
        yield Step(token, float(logits.double().log_softmax(-1)[token]), time.perf_counter() - begin)
        if made < tokens:
            logits = stepper.feed([[token]])[0].float().cpu()
    yield "length"


def _streamed(model: Model, steps: Iterator[Step], stop: tuple[str, ...]) -> Iterator[str]:
    """Yield whole characters, and never the beginning of what may become a stop text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for step in steps:
        held += decoder.decode(_said(model, step.id))
        found = [place for text in stop if (place := held.find(text)) >= 0]
        if found:
            if held[: min(found)]:
                yield held[: min(found)]
            return
        safe = len(held) - _beginning_of(held, stop)
        if safe:
            yield held[:safe]
            held = held[safe:]
    held += decoder.decode(b"", final=True)
    if held:
        yield held


def _said(model: Model, token: int) -> bytes:
    """Return what a token adds to the text: control tokens add nothing."""
    tokenizer = model.tokenizer
    return b"" if token in tokenizer.special.values() or token >= len(tokenizer) else tokenizer.bytes_of(token)


def _beginning_of(text: str, stop: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that is the beginning of a stop text.

    >>> _beginning_of("so the", ("the end",))
    3
    """
    longest = min(len(text), max((len(word) - 1 for word in stop), default=0))
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in stop)), 0)


# rules: pure functions from logits (V,) to logits (V,); what is left out becomes -inf. Strategies apply them in the
# order of transformers: temperature, top-k, top-p, min-p.


def temper(logits: Tensor, value: float) -> Tensor:
    """Divide by the temperature: under 1 sharpens the distribution, over 1 flattens it."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and all that are exactly as likely as the k-th (Fan et al. 2018, arXiv:1805.04833).

    >>> top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
    tensor([-inf, 3., 2.])
    """
    k = min(k, logits.shape[-1])
    least = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, share: float) -> Tensor:
    """Keep the smallest set of likeliest tokens that together reach `share` (Holtzman et al. 2019, arXiv:1904.09751).

    >>> top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp()
    tensor([0.5000, 0.3000, 0.0000])
    """
    rising, order = torch.sort(logits)
    # subtle: summed from the unlikely end, as transformers does, so that ties and rounding fall the same way
    is_tail = rising.softmax(-1).cumsum(-1) <= 1 - share
    is_tail[-1] = False  # the likeliest always stays
    return logits.masked_fill(torch.zeros_like(is_tail).scatter(-1, order, is_tail), -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep the tokens at least `share` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).

    >>> min_p(torch.tensor([0.6, 0.3, 0.1]).log(), 0.4).exp()
    tensor([0.6000, 0.3000, 0.0000])
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < share * probabilities.max(), -torch.inf)
