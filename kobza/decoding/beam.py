"""Beam search, plain or in groups that are kept from saying the same.

Source: transformers' `generate(num_beams=...)`, whose tokens it equals for one group; diverse groups after Vijayakumar
et al. (2016), arXiv:1610.02424 (Hamming diversity): a token costs `diversity` for each time an earlier group chose it
at the same place. Likelier text is not better text: Holtzman et al. (2019), arXiv:1904.09751.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kobza.decoding.base import Event, Generation, Note, Session, Step, check_ranges, speak
from kobza.models.model import Model
from kobza.models.prompts import Prompt, prompt_ids
from kobza.models.stepping import chosen_backend


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    beams: int = 4,
    groups: int = 1,
    diversity: float = 0.5,
    length: float = 1.0,
    stop: list[str] | None = None,
    chat: bool = False,
) -> Generation:
    """Go on with a prompt by the likeliest text that a search of bounded width finds.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        beams: texts kept at every place [count, 1 ..].
        groups: groups of beams searched one after the other; a divisor of beams [count, 1 .. beams].
        diversity: what a token chosen by an earlier group costs, in log-probability [nats, 0 ..].
        length: exponent of the length by which log-probabilities are divided when texts are compared [number].
        stop: texts that end the generation; they cut the text found and do not guide the search.
        chat: put the text into the model's chat template as the user's message.

    Returns:
        A Generation, whose tokens all come at the end of the search.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step of `beams` rows per token.
    """
    _check(beams, groups, diversity)

    def strategy(session: Session) -> Iterator[Event]:
        worth, best = _found(session, beams // groups, groups, diversity, length)[0]
        yield Note(f"mean log-probability {worth:.4f}")
        seconds = time.perf_counter() - session.begin
        for token, logprob in zip(best.ids, best.logprobs, strict=True):
            if token in session.ends:
                yield "end"
                return
            yield Step(token, logprob, seconds)

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def many(
    model: Model, prompt: Prompt, *, tokens: int = 64, beams: int = 4, groups: int = 1, diversity: float = 0.5,
    length: float = 1.0, chat: bool = False,
) -> list[tuple[str, float]]:  # fmt: skip
    """Return all texts that a search finds, not only the best.

    Args:
        model, prompt, tokens, beams, groups, diversity, length, chat: as in `generate`.

    Returns:
        (text, its log-probability by the model alone [nats]) of `beams` texts at most, in the order of the search's
        worth, which for a later group counts what `diversity` cost it.

    Raises:
        OutOfRange: an option outside its range.
    """
    _check(beams, groups, diversity)
    check_ranges(("tokens", tokens, tokens >= 1, "1 or more"))
    session = Session(model, prompt_ids(model, prompt, chat=chat), tokens, chosen_backend())
    found = _found(session, beams // groups, groups, diversity, length)
    said = [[token for token in path.ids if token not in session.ends] for _, path in found]
    return [(model.tokenizer.text(ids), sum(path.logprobs)) for ids, (_, path) in zip(said, found, strict=True)]


def _check(beams: int, groups: int, diversity: float) -> None:
    check_ranges(
        ("beams", beams, beams >= 1, "1 or more"),
        ("groups", groups, 1 <= groups <= beams and beams % groups == 0, f"a divisor of beams ({beams})"),
        ("diversity", diversity, diversity >= 0, "0 or more"),
    )


@dataclass(frozen=True)
class _Path:
    """A text of the search: its tokens, their log-probabilities, the row of the run that holds it."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    row: int = 0


@dataclass
class _Group:
    """Beams that are searched together.

    Attributes:
        running: texts that go on, best first.
        ended: (worth, text) of the best that ended, best first.
        is_open: whether one that runs may still become better than those that ended.
    """

    running: list[_Path] = field(default_factory=lambda: [_Path()])
    ended: list[tuple[float, _Path]] = field(default_factory=list)
    is_open: bool = True


def _found(session: Session, width: int, count: int, diversity: float, length: float) -> list[tuple[float, _Path]]:
    """Search; return (worth, text) of what ended in all groups, best first."""
    groups = [_Group() for _ in range(count)]
    logits = session.feed(session.ids)[None]
    for made in range(1, session.tokens + 1):
        said: Counter[int] = Counter()
        for group in groups:
            if group.is_open:
                _advance(session, group, logits, width, said if diversity else Counter(), diversity, made, length)
                said.update(path.ids[-1] for path in group.running)
        rows = [path for group in groups if group.is_open for path in group.running]
        if not rows:
            break
        session.run.select([path.row for path in rows])
        _renumber(groups)
        session.passes += 1
        logits = session.checked(session.run.feed([[path.ids[-1]] for path in rows]).cpu())
    return sorted((pair for group in groups for pair in group.ended), key=lambda pair: -pair[0])


def _advance(
    session: Session, group: _Group, logits: Tensor, width: int, said: Counter[int], diversity: float, made: int,
    length: float,
) -> None:  # fmt: skip
    """Let every running text of a group go on by its best tokens, and sort out which ended."""
    own = logits.log_softmax(-1)[[path.row for path in group.running]]  # (beams, V)
    scored = own + torch.tensor([path.total for path in group.running])[:, None]
    for token, times in said.items():
        scored[:, token] -= diversity * times
    kept = min(max(2, 1 + len(session.ends)) * width, scored.numel())
    best, places = scored.flatten().topk(kept)
    group_next: list[_Path] = []
    for rank, (total, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
        beam, token = divmod(place, own.shape[1])
        path = group.running[beam]
        new = _Path((*path.ids, token), (*path.logprobs, float(own[beam, token])), total, path.row)
        if token in session.ends or made == session.tokens:
            if rank < width:
                group.ended.append((total / made**length, new))
        elif len(group_next) < width:
            group_next.append(new)
    group.ended = sorted(group.ended, key=lambda pair: -pair[0])[:width]
    group.running = group_next
    full = len(group.ended) == width
    group.is_open = bool(group_next) and not (full and group_next[0].total / made**length <= group.ended[-1][0])


def _renumber(groups: list[_Group]) -> None:
    """Number the rows in the order in which the run now holds them."""
    row = 0
    for group in groups:
        if group.is_open:
            renumbered = []
            for path in group.running:
                renumbered.append(_Path(path.ids, path.logprobs, path.total, row))
                row += 1
            group.running = renumbered
