"""Decoding SmolLM2: speed of the backends, of speculation, and what constrained output costs; ratios within one run.

    .venv/bin/python bench/decoding.py [speed] [prompt] [speculation] [exits] [schema] [cache]

CPU seconds of one thread. The limit of the memory is what summing all weights takes (a pure read).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import kobza
from kobza.core import techniques
from kobza.models.caching import cache_bytes
from kobza.models.stepping import steps, using

TOKENS = 48
PASSAGE = kobza.text("topics[:500]").string
COPY = f"Repeat the passage word for word.\n{PASSAGE}\n\nThe passage again:\n{PASSAGE}\n\nThe passage again:\n"
FREE = "Once upon a time, in a village by the river, there lived an old man who"
SCHEMA = {
    "type": "object", "required": ["name", "strings", "is_plucked"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,10}$"},
                   "strings": {"type": "integer", "minimum": 1, "maximum": 99}, "is_plucked": {"type": "boolean"}},
}  # fmt: skip


def timed(function: Callable[[], Any], repeats: int = 2) -> tuple[float, Any]:
    """Return the least CPU seconds of some runs, and what the last one gave."""
    best, found = float("inf"), None
    for _ in range(repeats):
        begin = time.process_time()
        found = function()
        best = min(best, time.process_time() - begin)
    return best, found


def speed(model: Any) -> None:
    """Generation by transformers' generate, by each backend, and the limit of the memory."""
    ids = torch.tensor([model.tokenizer.encode(FREE)])
    more = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}

    def theirs(count: int) -> list[int]:
        made = model.module.generate(ids, max_new_tokens=count, min_new_tokens=count, **more)
        return [int(t) for t in made[0, ids.shape[1] :]]

    def ours(backend: str, count: int) -> list[int]:
        run = steps(model, backend=backend)
        logits = run.feed(ids)
        made = [int(logits.argmax())]
        while len(made) < count:
            made.append(int(run.feed([[made[-1]]]).argmax()))
        return made

    def rate(function: Callable[[int], Any]) -> float:
        short, long = timed(lambda: function(8))[0], timed(lambda: function(TOKENS))[0]
        return (TOKENS - 8) / (long - short)

    weights = [p for p in model.module.parameters() if p.ndim > 1]
    limit = 1 / timed(lambda: [w.sum() for w in weights], 5)[0]
    base, right = rate(theirs), theirs(TOKENS)
    print(f"limit of the memory {limit:6.1f} token/s")
    print(f"transformers' generate {base:6.1f}, {base / limit:.2f} of the limit")
    for backend in ("transformers", "bare", "llama"):
        with contextlib.suppress(kobza.KobzaError):
            found = rate(lambda n, b=backend: ours(b, n))
            same = sum(a == b for a, b in zip(ours(backend, TOKENS), right, strict=True))
            print(f"{backend:13} {found:6.1f}, {found / base:.2f} x generate, {found / limit:.2f} of the limit, "
                  f"{same} of {TOKENS} tokens equal")  # fmt: skip
    with contextlib.suppress(ImportError):
        print(f"llama.cpp by its own loop {rate(lambda n: own_llama(model, ids[0].tolist(), n)):6.1f}")


def own_llama(model: Any, ids: list[int], count: int) -> None:
    """Generate by llama-cpp-python's own class."""
    import llama_cpp

    global _LLAMA  # loading is no part of the comparison
    if _LLAMA is None:
        _LLAMA = llama_cpp.Llama(model.origin.path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    _LLAMA.reset()
    for made, _ in enumerate(_LLAMA.generate(ids, temp=0.0, reset=True), 1):
        if made == count:
            return


_LLAMA: Any = None


def prompt(model: Any) -> None:
    """The first token behind a prompt of 2,000 tokens."""
    ids = torch.tensor([model.tokenizer.encode(kobza.text("topics[:20000]").string)[:2000]])
    seconds = {}
    for backend in ("transformers", "bare"):
        seconds[backend] = timed(lambda b=backend: steps(model, backend=b).feed(ids), 2)[0]
    print(f"2,000 tokens: transformers {seconds['transformers']:.2f} s, bare {seconds['bare']:.2f} s, "
          f"ratio {seconds['bare'] / seconds['transformers']:.2f}")  # fmt: skip


def speculation(model: Any) -> None:
    """Passes saved and time, against greedy in the same run."""
    ways = {
        "lookup": {}, "ngram": {},
        "assisted": {"assistant": "gguf", "draft": 3}, "early_exit": {"layer": 27, "draft": 1},
    }  # fmt: skip
    for backend in ("bare", "transformers"):
        for name, text in (("copy", COPY), ("free", FREE)):
            with using(backend):
                plain, right = _run("greedy", model, text, {})
                for way, options in ways.items():
                    if backend == "transformers" and way in ("assisted", "early_exit"):
                        continue
                    with contextlib.suppress(kobza.KobzaError):
                        found, said = _run(way, model, text, options)
                        accepted = sum(d.accepted for d in said.drafts)
                        print(f"{backend:13}{name:5}{way:11} ratio {plain / found:5.2f}, passes {said.passes:3} of "
                              f"{right.passes}, accepted {said.acceptance:.2f} ({accepted}), "
                              f"equal: {said.ids == right.ids}", flush=True)  # fmt: skip


def _run(name: str, model: Any, text: str, options: dict[str, Any]) -> tuple[float, Any]:
    """Return the least CPU seconds of two runs behind the first token (the prompt is the same work for all)."""
    best = float("inf")
    for _ in range(2):
        said = techniques.verb("decoding", name)(model, text, tokens=TOKENS, **options)
        pieces = iter(said)
        next(pieces)
        begin = time.process_time()
        _ = said.ids
        best = min(best, time.process_time() - begin)
    return best, said


def exits(model: Any) -> None:
    """How often a token of the model's own greedy text is decided at a layer, and what a draft there could gain."""
    from kobza.decoding import greedy

    said = greedy.generate(model, FREE, tokens=64)
    run = steps(model)
    run.feed([said.prompt_ids[:-1]])
    layers = [10, 15, 20, 23, 25, 27, 28, 29]
    hits = dict.fromkeys(layers, 0)
    for new, right in zip([said.prompt_ids[-1], *said.ids], said.ids, strict=False):
        found = run.feed_layers([[new]], layers)
        for n in layers:
            hits[n] += int(found[n].argmax()) == right
    for n in layers:
        share = hits[n] / len(said.ids)
        # read for two tokens: the blocks once, those below the exit once more, and the head (a fifth) twice
        best = (1 + share) / (0.79 * (1 + n / model.layers) + 2 * 0.21)
        print(f"layer {n}: {share:.2f} accepted; one draft, cache shared: at most {best:.2f} x")


def schema(model: Any, count: int = 1000) -> None:
    """JSON by a schema, drawn at temperature 1: how many of the texts a parser takes."""
    from kobza.decoding import constrained

    valid = made = 0
    begin = time.process_time()
    for first in range(0, count, 16):
        rows = min(16, count - first)
        texts = constrained.many(model, "A musical instrument as JSON: ", rows, tokens=48, schema=json.dumps(SCHEMA),
                                 seed=first)  # fmt: skip
        made += len(texts)
        valid += sum(is_complete and fits(text) for text, is_complete in texts)
    print(f"{valid} of {made} valid, {time.process_time() - begin:.0f} s CPU; the last: {texts[-1][0]}")


def fits(text: str) -> bool:
    """Say whether a text is JSON of the schema, checked by hand."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    name, strings, plucked = (found.get(key) for key in ("name", "strings", "is_plucked"))
    return (
        set(found) == {"name", "strings", "is_plucked"}
        and isinstance(name, str) and name.isascii() and name.isalpha() and name.islower() and len(name) <= 10
        and type(strings) is int and 1 <= strings <= 99 and isinstance(plucked, bool)
    )  # fmt: skip


def cache(model: Any, count: int = 768, scored: int = 384) -> None:
    """Bits per byte of a text against what the cache may hold; every kept position stays in its place."""
    ids = [model.tokenizer.start_id, *model.tokenizer.encode(kobza.text("topics[40000:46000]").string)][: count + 1]
    size = len(model.tokenizer.decode(ids[scored + 1 :]))
    for budget in (0, 64, 192):
        for policy in ("full",) if not budget else ("recent", "sinks", "random", "heavy"):
            bits = _kept_bits(model, ids, scored, budget, policy)
            print(f"cache {budget or count:4} {policy:7} {bits / size:.4f} bit/B", flush=True)


def _kept_bits(model: Any, ids: list[int], scored: int, budget: int, policy: str) -> float:
    """Return the bits of the tokens from `scored` on, read one by one with a bounded cache."""
    run = steps(model, backend="bare")
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(0)  # attention that stored positions got in the last layer
    total = 0.0
    for place, (new, right) in enumerate(itertools.pairwise(ids)):
        logits, scores = run.feed_scores([[new]])
        weight = torch.cat([weight, torch.zeros(1)]) + scores[0].softmax(-1).sum(0)
        if place >= scored:
            total -= float(logits[0].double().log_softmax(-1)[right]) / math.log(2)
        stored = run.length - run.dropped
        if budget and stored >= budget + 8:  # eight at a time
            kept = _kept(policy, stored, budget, weight, generator)
            run.keep(kept)
            weight = weight[kept]
    return total


def _kept(policy: str, stored: int, budget: int, weight: torch.Tensor, generator: torch.Generator) -> list[int]:
    """Return the places a policy keeps, rising."""
    if policy == "recent":
        return list(range(stored - budget, stored))
    if policy == "sinks":
        return [*range(4), *range(stored - budget + 4, stored)]
    half = budget // 2  # the recent half is kept by both of the others
    old = stored - half
    if policy == "random":
        chosen = torch.randperm(old, generator=generator)[: budget - half]
    else:
        chosen = weight[:old].topk(budget - half).indices
    return [*sorted(chosen.tolist()), *range(old, stored)]


def packed(model: Any, count: int = 256) -> None:
    """Bits per byte of a text read token by token with a packed cache, and its bytes."""
    from kobza.models.bare import BareStepper
    from kobza.models.caching import PackedStepper

    ids = [model.tokenizer.start_id, *model.tokenizer.encode(kobza.text("topics[40000:42000]").string)][: count + 1]
    size = len(model.tokenizer.decode(ids[1:]))
    whole = 0
    for bits, keys in ((32, "token"), (8, "token"), (8, "channel"), (4, "token"), (4, "channel")):
        run = BareStepper(model) if bits == 32 else PackedStepper(model, bits=bits, keys=keys)  # type: ignore[arg-type]
        total, begin = 0.0, time.process_time()
        for new, right in itertools.pairwise(ids):
            total -= float(run.feed([[new]])[0].double().log_softmax(-1)[right]) / math.log(2)
        seconds = time.process_time() - begin
        stored = cache_bytes(model, count, bits=bits, keys=keys)  # type: ignore[arg-type]
        whole = whole or stored
        print(f"{bits:2} bits by {keys:7} {total / size:.4f} bit/B, {stored / whole:.3f} of the bytes, {seconds:.1f} s")


PARTS: dict[str, Callable[[Any], None]] = {
    "speed": speed, "prompt": prompt, "speculation": speculation, "exits": exits, "schema": schema, "cache": cache,
    "packed": packed,
}  # fmt: skip


def main() -> None:
    """Run the parts named on the command line, or all."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = kobza.open("smollm2")
    for name in sys.argv[1:] or PARTS:
        print(f"--- {name}", flush=True)
        PARTS[name](model)


if __name__ == "__main__":
    main()
