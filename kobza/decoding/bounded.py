"""A cache that stays small: keys and values packed into 8 or 4 bits, old positions dropped by a rule.

Source: packing after KIVI (Liu et al. 2024, arXiv:2402.02750); sinks and recent positions (Xiao et al. 2023,
arXiv:2309.17453); heavy hitters (Zhang et al. 2023, arXiv:2306.14048); pivotal tokens (Liu et al. 2023,
arXiv:2305.17118); nearest keys only (Gupta et al. 2021, arXiv:2106.06899). Positions that stay keep their place in the
text, unlike Xiao's, which are counted anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from kobza.core.errors import BadValue
from kobza.decoding.base import Event, Generation, Note, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.models.bare import BareStepper, misfit
from kobza.models.caching import PackedStepper, cache_bytes
from kobza.models.evicting import Evictor, Keep
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    store: Literal["float32", "int8", "int4"] = "int8",
    keys: Literal["token", "channel"] = "token",
    drop: Keep = "full",
    budget: int = 256,
    sinks: int = 4,
    window: int = 64,
    nearest: int = 0,
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
        drop: which positions stay once there are more than `budget`: all; the last; the first `sinks` and the last; or
            the last half and of the others any ("random"), those that got most attention ("heavy"), those that most
            often got more than the mean within the last `window` tokens ("pivotal"), for each head its own.
        budget: positions stored; the whole prompt is read before any goes [count, 2 ..].
        sinks: first positions kept by `drop=sinks` [count, 0 ..].
        window: last tokens whose attention counts for `drop=pivotal` [tokens, 1 ..].
        nearest: keys of the highest scores that a head reads; 0 reads all, and what it reads is no less [keys, 0 ..].
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
        ("window", window, window >= 1, "1 or more"),
        ("nearest", nearest, nearest >= 0, "0 (all) or more"),
    )
    shape = Shape(temperature=temperature).checked()
    if keys == "channel" and store != "float32" and drop != "full":
        raise BadValue("keys packed per channel cannot drop single positions.", "Give keys=token, or drop=full.")
    if reason := misfit(model):
        raise BadValue(f"'{model.name}' does not fit the bare step: {reason}.", "Use another technique of decoding.")

    def strategy(session: Session) -> Iterator[Event]:
        bits = {"float32": 32, "int8": 8, "int4": 4}[store]
        run = (
            BareStepper(model, nearest=nearest)
            if bits == 32
            else PackedStepper(model, bits=bits, keys=keys, nearest=nearest)
        )
        evictor = Evictor(run, drop, budget, sinks=min(sinks, budget - 1), window=window, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        new = session.ids
        said: Event = "length"
        while session.left and said != "end":
            session.passes += 1
            logits = session.checked(run.feed([new])[0])
            evictor.heard(len(new))
            said = session.say(shape.pick(shape(logits, session.ids, session.prompt_tokens), generator), logits)
            if said != "end":
                yield said
            new = session.ids[-1:]
            if session.left:
                evictor.make_room(1)
        stored = run.length - run.dropped
        found = cache_bytes(model, stored, bits=bits, keys=keys)
        yield Note(f"{found} bytes for {stored} positions, {cache_bytes(model, run.length)} for all in float32")
        if said == "end":
            yield "end"

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)
