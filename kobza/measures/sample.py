"""Sample: what the model writes, and how much it repeats itself.

A figure cannot say that a text has become nonsense; a reader can. So the text itself is in the reading's record, under
"sample", and `texts` puts several models side by side for one prompt and seed.

Source: the counts are of tokens: the share of repeated n-grams (1 - distinct-n; Li et al. 2016, arXiv:1510.03055) and
the longest loop, the typical ways in which greedy text degenerates (Holtzman et al. 2019, arXiv:1904.09751).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kobza.core.figure import Figure
from kobza.core.progress import progress
from kobza.core.result import Reading
from kobza.core.table import Table
from kobza.core.texts import text as open_text
from kobza.measures.base import Given, record
from kobza.models.model import Model
from kobza.models.prompts import end_ids, prompt_ids
from kobza.models.stepping import generate

GRAM = 4  # a repeated run of 4 tokens is seldom chance


def measure(
    model: Model,
    text: Given,
    *,
    prompt: str = "",
    tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    chat: bool | None = None,
    lead: int = 200,
    seed: int = 0,
) -> Reading:
    """Let a model write, and count its repetitions.

    Args:
        model: the model.
        text: its beginning is what the model goes on with when no prompt is given.
        prompt: what the model is asked.
        tokens: tokens at most [tokens, 1 ..].
        temperature: of the draws; 0 takes the likeliest token [ratio, 0 ..].
        top_k: draw among the likeliest only; 0 draws among all [count, 0 ..].
        top_p: draw among the likeliest that together reach this probability [fraction, 0 < .. 1].
        chat: put the prompt into the chat template; none means: where there is a prompt and the model has a template.
        lead: bytes of the text taken as the prompt when none is given [bytes, 1 ..].
        seed: of the draws [number, 0 ..].

    Returns:
        A Reading whose value is the share of runs of 4 tokens that were there before, 0 (never) to nearly 1 (a loop).
        `record["sample"]` holds the prompt, the text, its tokens with their log2-probabilities, distinct-1, distinct-2,
        and the longest loop in tokens.

    Raises:
        BadValue: `chat`, and the model has no chat template.

    Cost: one step with cache per token.
    """
    asked = prompt or open_text(text, limit=lead).string
    is_chat = chat if chat is not None else bool(prompt) and model.tokenizer.chat_template is not None
    ids = prompt_ids(model, asked, chat=is_chat)
    made = list(
        generate(
            model, ids, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=end_ids(model)
        )
    )
    how = {"prompt": asked, "chat": is_chat, "tokens": tokens, "temperature": temperature, "top_k": top_k}
    found = {"prompt": asked, **facts(model, made)}
    note = f"longest loop {found['longest_loop']} of {len(found['ids'])} tokens; {_short(found['text'])}"
    taken = record(model, None, **how, top_p=top_p, seed=seed) | {"sample": found}
    return Reading("sample", repeated(found["ids"], GRAM), "repeated share", record=taken, note=note)


def facts(model: Model, made: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return text and repetition counts of generated (id, log2-probability) pairs."""
    ends = end_ids(model)
    kept = [(token, bits) for token, bits in made if token not in ends]
    ids = [token for token, _ in kept]
    return {
        "text": model.tokenizer.text(ids),
        "ended": len(kept) < len(made),
        "ids": ids,
        "log2_probabilities": [round(bits, 4) for _, bits in kept],
        "distinct_1": 1 - repeated(ids, 1),
        "distinct_2": 1 - repeated(ids, 2),
        "longest_loop": longest_loop(ids),
    }


def repeated(ids: Sequence[int], n: int) -> float:
    """Return the share of n-grams that were there before: 1 - distinct / all; 0 where there is none.

    >>> repeated([1, 2, 1, 2, 1], 2)
    0.5
    """
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_loop(ids: Sequence[int]) -> int:
    """Return the tokens in the longest stretch that says one unit (of any length) at least twice in a row.

    >>> longest_loop([9, 1, 2, 1, 2, 1, 7])
    5
    """
    longest = 0
    for period in range(1, len(ids) // 2 + 1):
        same = 0
        for at in range(period, len(ids)):
            same = same + 1 if ids[at] == ids[at - period] else 0
            if same >= period:
                longest = max(longest, same + period)
    return longest


def texts(models: Iterable[Model], text: Given, **options: Any) -> Table:
    """Let several models write from one prompt and seed, side by side.

    Args:
        models: the models.
        text: as in `measure`.
        options: those of `measure`.

    Returns:
        A Table (model, changes, repeated, longest_loop, bits, prompt, text), one row per model, whose figures show
        each text with its tokens colored by how unexpected they were to the model itself.
    """
    rows, figures = [], []
    for model in progress(list(models), "writing"):
        reading = measure(model, text, **options)
        found = reading.record["sample"]
        bits = [-b for b in found["log2_probabilities"]]
        changes = " | ".join(map(str, model.changes))
        rows.append(
            {
                "model": model.name,
                "changes": changes,
                "repeated": reading.value,
                "longest_loop": found["longest_loop"],
                "bits": sum(bits) / max(1, len(bits)),
                "prompt": found["prompt"],
                "text": found["text"],
            }
        )
        figures.append(figure(model, found, title=f"{model.name} {changes}".strip()))
    units = {"longest_loop": "tokens", "bits": "bit/token"}
    table = Table(rows, units=units, title="One prompt, one seed", note="repeated: share of 4-grams said before")
    table.figures = figures
    return table


def figure(model: Model, found: dict[str, Any], title: str = "") -> Figure:
    """Return a written text as colored tokens: the bits that each cost the model itself."""
    pieces = [
        {"text": piece, "value": -bits, "title": f"{-bits:.2f} bit"}
        for piece, bits in zip(_pieces(model, found["ids"]), found["log2_probabilities"], strict=True)
    ]
    return Figure(
        "tokens", {"pieces": pieces}, title=title, caption="Color: bits of each token under the model itself."
    )


def _pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text: characters cut by tokens go to the token that completes them."""
    whole = [model.tokenizer.text(ids[: n + 1]).rstrip("\ufffd") for n in range(len(ids))]
    return [after[len(before) :] for before, after in zip(["", *whole], whole, strict=False)]


def _short(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[: length + 1])
    return f"'{line[:length]}{'...' if len(line) > length else ''}'"
