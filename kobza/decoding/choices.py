"""One of several given texts, by its exact probability; and the expected value of a rating.

The choices are scored over a tree of their tokens, each token read once. A choice that begins another one ("1" and
"10") has the probability of the texts that begin with it and not with the longer one, so the events are disjoint.

Source: scoring of given answers as in lm-evaluation-harness; expected ratings after Liu et al. (2023), G-Eval,
arXiv:2303.16634, section 2 (probability-weighted scores).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak
from kobza.models.model import Model
from kobza.models.prompts import Prompt, prompt_ids
from kobza.models.stepping import chosen_backend


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    choices: list[str] | None = None,
    per: Literal["choice", "token", "byte"] = "choice",
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt by one of several texts.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most; a longer choice is refused [tokens, 1 ..].
        choices: the texts, with the spaces they begin with; none takes the ten digits.
        per: compare log-probabilities of whole choices, or their means per token or byte, which favors no short ones.
        temperature: divides them before one is drawn; 0 takes the likeliest [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draw [number, 0 ..].

    Returns:
        A Generation of the chosen text; its first note gives the share of every choice.

    Raises:
        BadValue: fewer than two choices, an empty one, or two alike.
        OutOfRange: an option outside its range, or a choice of more than `tokens` tokens.

    Cost: the prompt once, and one step per token of the tree.
    """
    check_ranges(("temperature", temperature, temperature >= 0, "0 or more"))
    given = list(choices) if choices else [f" {n}" for n in range(10)]
    coded = _coded(model, given)
    longest = max(map(len, coded))
    check_ranges(("tokens", tokens, tokens >= longest, f"{longest} or more: the longest choice has so many"))

    def strategy(session: Session) -> Iterator[Event]:
        found = _measured(session, coded)
        lengths = {"choice": [1] * len(given), "token": list(map(len, coded)), "byte": [len(c.encode()) for c in given]}
        weights = torch.tensor([value / n for value, n in zip(found, lengths[per], strict=True)], dtype=torch.float64)
        shares = (weights / temperature if temperature else weights).softmax(-1)
        generator = torch.Generator().manual_seed(seed)
        chosen = int(torch.multinomial(shares, 1, generator=generator)) if temperature else int(weights.argmax())
        yield Note(", ".join(f"{c!r}: {p:.4f}" for c, p in zip(given, shares.tolist(), strict=True)))
        session.run.rollback(session.run.length - session.prompt_tokens + 1)
        new = session.ids[-1:]
        for token in coded[chosen]:
            logits = session.feed(new)
            yield session.say(token, logits)
            new = [token]
        yield "end"

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def logprobs(model: Model, prompt: Prompt, choices: Sequence[str], *, chat: bool = False) -> list[float]:
    """Return the log-probability of each choice behind a prompt [nats], exact.

    Raises:
        BadValue: fewer than two choices, an empty one, or two alike.
    """
    coded = _coded(model, list(choices))
    return _measured(Session(model, prompt_ids(model, prompt, chat=chat), 1, chosen_backend()), coded)


def rating(model: Model, prompt: Prompt, values: Sequence[float], *, lead: str = " ", chat: bool = False) -> float:
    """Return the expected value of a rating: the values weighed by the probabilities of their numerals.

    Args:
        model: the model.
        prompt: what is rated, ending where the number is due.
        values: the possible numbers.
        lead: what stands before a number.
        chat: put the prompt into the chat template.
    """
    found = logprobs(model, prompt, [f"{lead}{value:g}" for value in values], chat=chat)
    weights = torch.tensor(found, dtype=torch.float64).softmax(-1)
    return float(weights @ torch.tensor(list(values), dtype=torch.float64))


@dataclass
class _Node:
    """A token of the tree: what may follow it, and the choices that end at it."""

    after: dict[int, _Node] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)


def _coded(model: Model, choices: list[str]) -> list[list[int]]:
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
        raise BadValue(f"the choices {choices!r}: give two or more, none empty, none twice.")
    return [model.tokenizer.encode(choice) for choice in choices]


def _measured(session: Session, coded: list[list[int]]) -> list[float]:
    """Return the log-probability of every choice behind the text of a session, which stays as it was."""
    root = _Node()
    for place, ids in enumerate(coded):
        node = root
        for token in ids:
            node = node.after.setdefault(token, _Node())
        node.ended.append(place)
    found = [0.0] * len(coded)
    _walk(session, root, session.ids, 0.0, found)
    return found


def _walk(session: Session, node: _Node, new: Sequence[int], total: float, found: list[float]) -> None:
    """Visit what may follow a node; texts that go on count for the longer choice, not for the shorter."""
    follow = session.feed(new).double().log_softmax(-1)
    for token, child in node.after.items():
        here = total + float(follow[token])
        rest = 1.0
        if child.after:
            before = session.run.length
            _walk(session, child, [token], here, found)
            session.run.rollback(session.run.length - before)
            if child.ended:
                longer = sum(math.exp(found[place] - here) for place in _below(child))
                rest = max(1.0 - longer, 1e-300)
        for place in child.ended:
            found[place] = here + math.log(rest)


def _below(node: _Node) -> list[int]:
    """Return the choices that end below a node."""
    return [place for child in node.after.values() for place in (*child.ended, *_below(child))]
