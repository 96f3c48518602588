"""Glitch tokens: vectors that training hardly touched, found without a list made for the model.

A token that never occurred in training keeps a vector like those of tokens that cannot occur: reserved control tokens,
rows behind the vocabulary, and tokens that no text is ever split into. Their common direction is the reference; the
nearest ordinary tokens are candidates. Each is verified by asking the model to repeat it, beside as many random tokens
of like rank in the vocabulary, which it should repeat.

Source: Land & Bartolo (2024), arXiv:2405.05417 (indicator, verification by repetition); the reference from the
tokenizer itself instead of a list per model is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.core.errors import NothingMatched, OutOfRange
from kobza.core.figure import Figure
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions.base import generator, record
from kobza.models.model import Model
from kobza.tokens.base import Tokenizer

SHOWN = 4  # examples of repetition in front of the question
UNSAID = 0.01  # probability of the repetition below which a token counts as one the model cannot say (section 3.2)
NEIGHBORHOOD = 500  # ids around a candidate among which its control is drawn: like rank, like frequency


def run(model: Model, *, top: int = 50, table: str = "embed.out", batch: int = 32, seed: int = 0) -> Result:
    """Find tokens whose vectors are like those of tokens that cannot occur, and ask the model to repeat them.

    Args:
        model: the model; it is not changed.
        top: candidates verified, and as many controls [count, 1 ..].
        table: whose rows are compared: embed.out or embed.in.
        batch: prompts run together [count, 1 ..].
        seed: of examples and controls [integer, 0 ..].

    Returns:
        A Result: a table of candidates (nearest to the reference first) with distance [1 - cosine, of centered rows]
        and probability of the repetition; a picture of all distances; and readings `references` (tokens in the
        reference), `verified` (share of candidates repeated with a probability below 0.01) and `control` (the same of
        random tokens).

    Raises:
        NothingMatched: every token can occur, so there is no reference.
        OutOfRange: fewer ordinary tokens than asked for.

    Cost: splitting every token's text once, and 2 top prompts of about 40 tokens.
    """
    given = locals()
    kinds = kinds_of(model.tokenizer, model.vocabulary)
    ordinary = torch.tensor([i for i, kind in enumerate(kinds) if kind == "ordinary"])
    if not 1 <= top <= len(ordinary):
        raise OutOfRange(f"top={top}: 1 .. {len(ordinary)} ordinary tokens.")
    distance, reference = _distances(model, kinds, table)
    nearest = ordinary[distance[ordinary].argsort(stable=True)[:top]].tolist()
    draw = generator(seed)
    controls = _controls(nearest, ordinary.tolist(), draw)
    ask = _Question.made(model, ordinary.tolist(), draw)
    said = ask.repeated(model, [*nearest, *controls], batch)
    made = record(model, "glitch", given)
    counted = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    note = f"{counted}; reference: {len(reference)} of them; {table}, {model.name}."
    rows = [
        {"id": i, "token": model.tokenizer.show(i), "distance": float(distance[i]), "prob": p, "is_glitch": p < UNSAID}
        for i, p in zip(nearest, said[:top], strict=True)
    ]
    found = Table(
        rows, units={"prob": "share"}, title="Glitch tokens", note=note, figures=[_picture(distance, ordinary, note)]
    )
    return Result(f"Glitch tokens of {model.name}", _readings(said, top, len(reference), made), [found], made_by=made)


def kinds_of(tokenizer: Tokenizer, rows: int) -> list[str]:
    """Return for every row of a table what its token is: special, absent, partial, unreachable or ordinary.

    special: a control token; absent: behind the vocabulary, or without bytes; partial: no whole characters, so it
    stands only beside others; unreachable: its own text is split in another way.
    """
    control = set(tokenizer.special.values())
    return ["absent" if i >= len(tokenizer) else _kind(tokenizer, i, control) for i in range(rows)]


def _kind(tokenizer: Tokenizer, id: int, control: set[int]) -> str:
    data = tokenizer.bytes_of(id)
    if id in control or not data:
        return "special" if id in control else "absent"
    try:
        data.decode()
    except UnicodeDecodeError:
        return "partial"
    return "ordinary" if tokenizer.encode(data) == [id] else "unreachable"


def _distances(model: Model, kinds: Sequence[str], table: str) -> tuple[Tensor, list[int]]:
    """1 - cosine (V,) of every row, less the mean row, with the reference; and the ids of the reference."""
    rows = model.matrix(table).float()
    rows = rows - rows.double().mean(0).float()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    known = [i for i, kind in enumerate(kinds) if kind in ("special", "absent", "unreachable")]
    if not known:
        raise NothingMatched(f"every token of {model.name!r} can occur: there is no reference.")
    # some control tokens are used in training: the half that agrees most with the rest is kept
    chosen = torch.tensor(known)
    center = unit[chosen].median(0).values
    kept = chosen[(unit[chosen] @ center).argsort(descending=True, stable=True)[: (len(chosen) + 1) // 2]]
    mean = unit[kept].double().mean(0)
    return (1 - unit.double() @ (mean / mean.norm())), kept.tolist()


def _controls(candidates: Sequence[int], ordinary: Sequence[int], draw: torch.Generator) -> list[int]:
    """A random ordinary token near each candidate in the vocabulary, none of them a candidate or drawn twice."""
    taken, found = set(candidates), []
    for one in candidates:
        free = [i for i in ordinary if i not in taken]
        near = [i for i in free if abs(i - one) <= NEIGHBORHOOD] or free
        if not near:
            break
        found.append(near[int(torch.randint(len(near), (1,), generator=draw))])
        taken.add(found[-1])
    return found


@dataclass(frozen=True)
class _Question:
    """A prompt that asks for a token again: examples, the token, and the place where it should follow."""

    before: list[int]
    between: list[int]

    @classmethod
    def made(cls, model: Model, ordinary: Sequence[int], draw: torch.Generator) -> _Question:
        encode = model.tokenizer.encode
        opening, between, ending = encode('Repeat "'), encode('": "'), encode('"\n')
        before = model.tokenizer.encode("", start=True)
        for at in torch.randint(len(ordinary), (SHOWN,), generator=draw).tolist():
            before += [*opening, ordinary[at], *between, ordinary[at], *ending]
        return cls(before + opening, between)

    @torch.inference_mode()
    def repeated(self, model: Model, tokens: Sequence[int], batch: int) -> list[float]:
        """Probability that each token follows where it should."""
        found: list[float] = []
        with task("tokens asked for", len(tokens)) as shown:
            for part in torch.tensor(tokens).split(batch):
                ids = torch.tensor([[*self.before, int(token), *self.between] for token in part], device=model.device)
                logits = model.module(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
                found += (logits.gather(1, part[:, None].to(logits.device))[:, 0] - logits.logsumexp(-1)).exp().tolist()
                shown.step(len(part))
        return found


def _readings(said: Sequence[float], top: int, references: int, made: dict[str, object]) -> list[Reading]:
    def share(part: Sequence[float]) -> float:
        return sum(p < UNSAID for p in part) / max(1, len(part))

    note = "share of candidates repeated with a probability below 0.01"
    other = "share of random tokens of like rank that are not repeated either"
    return [
        Reading("references", references, "count", record=made),
        Reading("verified", share(said[:top]), "share", record=made, note=note),
        Reading("control", share(said[top:]), "share", record=made, note=f"{other}, {len(said) - top} of them"),
    ]


def _picture(distance: Tensor, ordinary: Tensor, caption: str) -> Figure:
    ordered = distance[ordinary].sort().values
    at = torch.linspace(0, len(ordered) - 1, min(len(ordered), 400)).long()
    series = [{"name": "distance", "x": (at + 1).tolist(), "y": ordered[at].tolist()}]
    words = f"Distance of ordinary tokens to the reference, nearest first. {caption}"
    return Figure(
        "lines",
        {"series": series, "logx": True},
        title="Distance to what cannot occur",
        caption=words,
        x="rank",
        y="1 - cosine",
    )
