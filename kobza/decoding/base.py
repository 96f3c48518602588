"""What every strategy of decoding stands on: a Session to work with, and a Generation, read while it is written.

A technique of this room gives `generate(model, prompt, *, tokens=64, ..., seed=0) -> Generation`. Its strategy is a
generator of events over a Session; all else (prompt, chat template, cache, stop rules, streaming, log-probabilities,
entropies, time) is here. Which backend runs the model is chosen by `models.stepping.using`, not by the strategy.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import NotFinite, OutOfRange
from kobza.models.model import Model
from kobza.models.prompts import Prompt, end_ids, prompt_ids, stops
from kobza.models.stepping import Steps, chosen_backend, steps

Reason = Literal["length", "end", "stop"]


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        id: the token.
        logprob: natural logarithm of the model's own probability of it, before any rule of the strategy.
        seconds: since the generation began.
        entropy: of the model's distribution at this place [nats].
        varentropy: variance of the surprisal in that distribution [nats^2].
        is_drafted: it was proposed before the model judged it.
        decided: layers behind which this token, read out by the last norm and the head, was the likeliest and
            remained so; 0 where it was not looked for.
    """

    id: int
    logprob: float
    seconds: float
    entropy: float = 0.0
    varentropy: float = 0.0
    is_drafted: bool = False
    decided: int = 0


@dataclass(frozen=True)
class Draft:
    """Tokens proposed by something cheaper than the model, and how many of them the model agreed to.

    Attributes:
        ids: the proposal.
        accepted: its first tokens that were kept; the others were taken back.
    """

    ids: tuple[int, ...]
    accepted: int


@dataclass(frozen=True)
class Note:
    """What a strategy did at the token that follows, in a word: the quadrant of `entropy`, a branch, a redraw."""

    said: str


Event = Step | Draft | Note | Reason


class Session:
    """One text in the making, as a strategy sees it.

    Attributes:
        model: the model that speaks.
        ids: the prompt and all that was said so far.
        tokens: how many may be said.
        ends: tokens that end a text.
        run: the model with its cache; made when first asked for.
    """

    def __init__(self, model: Model, ids: list[int], tokens: int, backend: str) -> None:
        self.model = model
        self.ids = list(ids)
        self.tokens = tokens
        self.prompt_tokens = len(ids)
        self.begin = time.perf_counter()
        self._backend = backend
        self.ends = end_ids(model)
        self._run: Steps | None = None
        self.passes = 0

    @property
    def run(self) -> Steps:
        """The model with its cache, empty at first."""
        if self._run is None:
            self._run = steps(self.model, backend=self._backend)
        return self._run

    @property
    def made(self) -> int:
        """Tokens said so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that may still be said."""
        return self.tokens - self.made

    def begun(self, model: Model) -> Steps:
        """Return an empty run of another model, by the backend of this session."""
        return steps(model, backend=self._backend)

    def feed(self, ids: Sequence[int], *, keep: int = 1) -> Tensor:
        """Read tokens; return checked float32 logits on the CPU: (V,), or (keep, V) for `keep` > 1."""
        self.passes += 1
        return self.checked(self.run.feed([list(ids)], keep=keep)[0].cpu())

    def feed_deep(self, ids: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Read tokens; return logits (V,) and the likeliest token behind each layer, the last included.

        Cost: one more read-out by the head for every layer.
        """
        self.passes += 1
        found = self.run.feed_layers([list(ids)], range(1, self.model.layers))
        likeliest = [int(found[n][0].argmax()) for n in range(1, self.model.layers + 1)]
        return self.checked(found[self.model.layers][0].cpu()), likeliest

    def checked(self, logits: Tensor) -> Tensor:
        """Return logits (..., V) that are numbers.

        Raises:
            NotFinite: they are not; the message names the token.
        """
        if not torch.isfinite(logits.max()):
            raise NotFinite(
                f"the logits of '{self.model.name}' are not finite before token {self.made + 1} of the generation."
            )
        return logits

    def say(self, token: int, logits: Tensor, *, is_drafted: bool = False, decided: int = 0) -> Step | Reason:
        """Put a token behind the text and return its event; "end" for an end token, which is no part of the text.

        Args:
            token: what was chosen.
            logits: the model's own (V,), before any rule.
            is_drafted: it was proposed before.
            decided: see `Step`.
        """
        if token in self.ends:
            return "end"
        self.ids.append(token)
        logprobs = logits.log_softmax(-1)
        entropy, varentropy = spread(logprobs)
        seconds = time.perf_counter() - self.begin
        return Step(token, float(logprobs[token]), seconds, entropy, varentropy, is_drafted, decided)


Strategy = Callable[[Session], Iterator[Event]]
Choose = Callable[[Tensor, Sequence[int]], int]  # logits (V,) and the text so far -> id


def spread(logprobs: Tensor) -> tuple[float, float]:
    """Return entropy [nats] and varentropy [nats^2] of log-probabilities (V,).

    >>> spread(torch.tensor([0.5, 0.5]).log())
    (0.6931471824645996, 0.0)
    """
    logprobs = logprobs.clamp(min=-100)  # exp(-100) is nothing, and 0 x infinity would be no number
    probabilities = logprobs.exp()
    entropy = -(probabilities @ logprobs)
    return float(entropy), max(0.0, float(probabilities @ (logprobs + entropy).square()))


class Generation:
    """A text being written. Iterating yields pieces of it; its attributes run it to the end.

    The pieces are whole characters: a token that ends inside one waits for the rest. Bytes that never become a
    character are given as U+FFFD. Iterating twice gives the same pieces again without running the model.

    Args:
        model: the model that speaks.
        prompt_ids: the tokens it begins behind.
        events: the tokens, as they are made, and what else happened; control tokens that end the text are not
            among them.
        stop: texts that end the generation; they and what follows are not part of the text.
        session: where passes are counted; None counts none.
    """

    def __init__(
        self,
        model: Model,
        prompt_ids: list[int],
        events: Iterator[Event],
        stop: Sequence[str],
        session: Session | None = None,
    ) -> None:
        self.model = model
        self.prompt_ids = prompt_ids
        self._made: list[Step] = []
        self._events: list[Event] = []
        self._pieces: list[str] = []
        self._reason: Reason | None = None
        self._session = session
        self._source = _streamed(model, self._recorded(events), tuple(stop))

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

    def _recorded(self, events: Iterator[Event]) -> Iterator[Step]:
        for event in events:
            if isinstance(event, str):
                self._reason = event
                return
            self._events.append(event)
            if isinstance(event, Step):
                self._made.append(event)
                yield event

    def _finished(self) -> Generation:
        for _ in self:
            pass
        return self

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self._finished()._pieces)

    @property
    def steps(self) -> list[Step]:
        """The generated tokens with all that is known of each, those of a stop text included."""
        return list(self._finished()._made)

    @property
    def events(self) -> list[Event]:
        """All that happened: tokens, drafts with their fate, notes."""
        return list(self._finished()._events)

    @property
    def ids(self) -> list[int]:
        """The generated tokens, those of a stop text included."""
        return [step.id for step in self._finished()._made]

    @property
    def logprobs(self) -> list[float]:
        """Natural logarithm of the model's probability of every token, before any rule of the strategy."""
        return [step.logprob for step in self._finished()._made]

    @property
    def entropies(self) -> list[float]:
        """Entropy of the model's distribution at every token [nats]."""
        return [step.entropy for step in self._finished()._made]

    @property
    def seconds(self) -> list[float]:
        """Seconds from the beginning to every token; the first includes reading the prompt."""
        return [step.seconds for step in self._finished()._made]

    @property
    def drafts(self) -> list[Draft]:
        """Every proposal and how much of it was kept."""
        return [event for event in self._finished()._events if isinstance(event, Draft)]

    @property
    def acceptance(self) -> float:
        """Share of the proposed tokens that were kept; 0 where none was proposed."""
        proposed = sum(len(draft.ids) for draft in self.drafts)
        return sum(draft.accepted for draft in self.drafts) / proposed if proposed else 0.0

    @property
    def passes(self) -> int:
        """How often the model was run, the reading of the prompt included; fewer than tokens where drafts were kept."""
        self._finished()
        return self._session.passes if self._session else 0

    @property
    def stopped_by(self) -> Reason:
        """Why it ended: "length" (as many tokens as asked for), "end" (the model's end token), "stop" (a stop text)."""
        self._finished()
        return self._reason or "stop"

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 when there is only one."""
        times = self.seconds
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation of {len(self._made)} tokens by {self.model.name}>"


def speak(
    model: Model,
    prompt: Prompt,
    strategy: Strategy,
    *,
    tokens: int,
    stop: Sequence[str] = (),
    chat: bool = False,
    context: int = 0,
    ahead: int = 0,
) -> Generation:
    """Let a model go on with a prompt by a strategy; nothing is computed before the Generation is read.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        strategy: yields events over a Session; where it simply ends, the reason is "length".
        tokens: tokens at most [tokens, 1 ..].
        stop: texts that end the generation, and names of control tokens that do.
        chat: put a text into the model's chat template as the user's message.
        context: positions that can be read; 0 takes the trained ones [positions, 0 ..].
        ahead: positions that the strategy uses besides [positions, 0 ..].

    Raises:
        OutOfRange: `tokens` below one, or prompt and tokens exceed the trained positions; the message has the numbers.
        EmptyText: an empty prompt, and the vocabulary has no start token.
        BadValue: an empty stop text, or a chat without a chat template. UnknownName: no such control token.
    """
    if tokens < 1:
        raise OutOfRange(f"tokens is {tokens}; allowed is 1 or more.")
    ends, texts = stops(model, stop)
    ids = prompt_ids(model, prompt, chat=chat)
    reach = context or model.context
    if reach and len(ids) + ahead + tokens > reach:
        room = reach - len(ids) - ahead
        can = f"can read {reach} this way" if context else f"was trained for {reach}"
        raise OutOfRange(
            f"the prompt has {len(ids)} tokens and {tokens + ahead} are asked for: {len(ids) + tokens + ahead} in "
            f"all, but '{model.name}' {can}.",
            f"Ask for {room} tokens at most." if room > 0 else "Shorten the prompt.",
        )
    session = Session(model, ids, tokens, chosen_backend())
    session.ends |= ends
    return Generation(model, ids, _told(session, strategy), texts, session)


def _told(session: Session, strategy: Strategy) -> Iterator[Event]:
    session.begin = time.perf_counter()
    yield from strategy(session)
    yield "length"


def one_by_one(choose: Choose, *, is_deep: bool = False) -> Strategy:
    """Return the plain strategy: choose a token from the logits behind the last one, and read it.

    Args:
        choose: from logits to a token.
        is_deep: look for the layer that decided each token.
    """

    def strategy(session: Session) -> Iterator[Event]:
        new: Sequence[int] = session.ids
        while session.left:
            logits, layers = session.feed_deep(new) if is_deep else (session.feed(new), [])
            token = choose(logits, session.ids)
            event = session.say(token, logits, decided=decided(layers, token))
            yield event
            if isinstance(event, str):
                return
            new = session.ids[-1:]

    return strategy


def decided(layers: Sequence[int], token: int) -> int:
    """Return how many layers a token needed to be the likeliest for good, the likeliest behind each being given.

    One more than there are where it was not the likeliest in the end; 0 where nothing is given.

    >>> decided([5, 7, 5, 7, 7], 7), decided([5, 7, 7], 5), decided([], 5)
    (4, 4, 0)
    """
    last = max((n for n, likeliest in enumerate(layers, 1) if likeliest != token), default=0)
    return last + 1 if layers else 0


def check_ranges(*facts: tuple[str, float, bool, str]) -> None:
    """Raise OutOfRange for the first of (name, value, is allowed, what is allowed) that is not allowed."""
    for name, value, is_allowed, allowed in facts:
        if not is_allowed:
            raise OutOfRange(f"{name} is {value}; allowed is {allowed}.")


def _streamed(model: Model, made: Iterable[Step], stop: tuple[str, ...]) -> Iterator[str]:
    """Yield whole characters, and never the beginning of what may become a stop text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for step in made:
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
