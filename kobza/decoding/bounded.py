"""A cache that stays small: keys and values packed into 8 or 4 bits, old positions dropped by a rule.

Source: packing after KIVI (Liu et al. 2024, arXiv:2402.02750); sinks and recent positions (Xiao et al. 2023,
arXiv:2309.17453); heavy hitters (Zhang et al. 2023, arXiv:2306.14048). Positions that stay keep their place in the
text, unlike Xiao's, which are counted anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.models.bare import BareStepper, misfit
from kobza.models.caching import PackedStepper, cache_bytes, evict
from kobza.models.model import Model
from kobza.models.prompts import Prompt

WINDOW = 16  # last tokens of a prompt whose attention weighs the others (SnapKV: 16 to 64)


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    store: Literal["float32", "int8", "int4"] = "int8",
    keys: Literal["token", "channel"] = "token",
    drop: Literal["full", "recent", "sinks", "heavy"] = "full",
    budget: int = 256,
    sinks: int = 4,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt with a cache of fewer bytes.

    Args:
        model: one that the bare step runs.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        store: how a key or value is stored.
        keys: what shares a step where they are packed: a position of a head, or a channel over 32 positions; the
            latter goes only with `drop=full`.
        drop: which positions stay once there are more than `budget`: all, the last, the first `sinks` and the last,
            or the last half and of the others those that the last layer attended to most.
        budget: positions that stay; the whole prompt is read before any goes [count, 2 ..].
        sinks: first positions kept by `drop=sinks` [count, 0 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation; its last note gives the bytes stored and those of a full float32 cache.

    Raises:
        BadValue: a model that the bare step cannot run, or keys per channel with positions dropped.
        OutOfRange: an option outside its range; `sinks` not below `budget`.

    Cost: one step with cache per token, and the unpacking of the cache.
    """
    check_ranges(
        ("budget", budget, budget >= 2, "2 or more"),
        ("sinks", sinks, sinks >= 0 and (sinks < budget or drop != "sinks"), f"0 .. {budget - 1}"),
    )
    shape = Shape(temperature=temperature).checked()
    if keys == "channel" and store != "float32" and drop != "full":
        raise BadValue("keys packed per channel cannot drop single positions.", "Give keys=token, or drop=full.")
    if reason := misfit(model):
        raise BadValue(f"'{model.name}' does not fit the bare step: {reason}.", "Use another technique of decoding.")

    def strategy(session: Session) -> Iterator[Event]:
        bits = {"float32": 32, "int8": 8, "int4": 4}[store]
        run = BareStepper(model) if bits == 32 else PackedStepper(model, bits=bits, keys=keys)
        generator = torch.Generator().manual_seed(seed)
        weight, new = torch.zeros(0), session.ids
        said: Event = "length"
        while session.left and said != "end":
            session.passes += 1
            logits, weight = _read(run, new, weight if drop == "heavy" else None)
            logits = session.checked(logits)
            stored = run.length - run.dropped
            if drop != "full" and stored > budget:
                kept = evict(drop, stored, budget, sinks, weight)
                run.keep(kept)
                weight = weight[kept] if drop == "heavy" else weight
            said = session.say(shape.pick(shape(logits, session.ids, session.prompt_tokens), generator), logits)
            if said != "end":
                yield said
            new = session.ids[-1:]
        stored = run.length - run.dropped
        found = cache_bytes(model, stored, bits=bits, keys=keys)
        yield Note(f"{found} bytes for {stored} positions, {cache_bytes(model, run.length)} for all in float32")
        if said == "end":
            yield "end"

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def _read(run: BareStepper, new: list[int], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read tokens; return logits (V,) and the attention each stored position got, heads of the last layer summed."""
    if weight is None:
        return run.feed([new])[0], torch.zeros(0)
    if len(new) > WINDOW:
        run.feed([new[:-WINDOW]])
        weight = torch.zeros(len(new) - WINDOW)
    for token in new[-WINDOW:]:  # one by one: scores are those of the last token fed
        logits, scores = run.feed_scores([[token]])
        weight = torch.cat([weight, torch.zeros(1)]) + scores[0].softmax(-1).sum(0)
    return logits[0], weight
