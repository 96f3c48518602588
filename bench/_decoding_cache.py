"""Parts of bench/decoding.py about the cache, positions and latent steps: rows of figures, no printing."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import kobza
from kobza.decoding.latent import matched
from kobza.edits import positions as stretching
from kobza.models.bare import BareStepper
from kobza.models.caching import PackedStepper, cache_bytes
from kobza.models.evicting import Evictor
from kobza.models.extending import ExtendedStepper
from kobza.models.paging import PagedStepper, paged_bytes

Rows = list[dict[str, Any]]
Cell = tuple[dict[str, Any], Callable[[], dict[str, Any]]]  # what is measured, and how
RULES = ("recent", "sinks", "random", "heavy", "pivotal")
BUDGETS = (64, 128, 256, 512, 1024)
NEEDLE = " The secret number is {}. Remember it."


def text_ids(model: Any, text: str, count: int) -> list[int]:
    """Return the start token and the first tokens of a text."""
    found = model.tokenizer.encode(kobza.text(text).string[: 8 * count])
    return [model.tokenizer.start_id, *found][: count + 1]


def bits(
    run: Any, ids: list[int], begin: int, block: int, before: Callable[[int], None], after: Callable[[int], None]
) -> float:
    """Return the bits of the tokens behind place `begin`, fed `block` at a time."""
    total = 0.0
    for at in range(0, len(ids) - 1, block):
        fed = ids[at : min(at + block, len(ids) - 1)]
        before(len(fed))
        logits = run.feed([fed], keep=len(fed)).reshape(len(fed), -1)
        after(len(fed))
        for place, row in enumerate(logits, at):
            if place >= begin:
                total -= float(row.double().log_softmax(-1)[ids[place + 1]]) / math.log(2)
    return total


def nothing(_: int) -> None:
    """Do nothing."""


def kept_bits(model: Any, ids: list[int], begin: int, rule: str, budget: int, block: int) -> float:
    """Return the bits with a cache that holds `budget` positions by a rule."""
    run = BareStepper(model)
    evictor = Evictor(run, rule, budget)  # type: ignore[arg-type]
    return bits(run, ids, begin, block, evictor.make_room, evictor.heard)


def cache(model: Any, text: str) -> Iterator[Cell]:
    """Bits per byte against what the cache may hold."""
    ids = text_ids(model, text, 2048)
    begin = 1024
    size = len(model.tokenizer.decode(ids[begin + 1 :]))
    rows: Rows = [{"rule": "full", "budget": 2048, "block": 16}]
    rows += [
        {"rule": rule, "budget": budget, "block": 8 if budget < 256 else 16} for budget in BUDGETS for rule in RULES
    ]
    rows += [{"rule": rule, "budget": 256, "block": 1} for rule in ("recent", "sinks")]
    for row in rows:

        def measure(rule: str = row["rule"], budget: int = row["budget"], block: int = row["block"]) -> dict[str, Any]:
            return {"bits_per_byte": kept_bits(model, ids, begin, rule, budget, block) / size}

        yield row, measure


def yield_row(row: dict[str, Any]) -> None:
    """Show a row as it is made."""
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def needle(model: Any, text: str) -> Iterator[Cell]:
    """Bits of a number of five digits that stood 600 tokens before, with 256 positions kept."""
    words = kobza.text(text).string
    for number, at in ((48213, 100), (90657, 1200), (31784, 2400)):
        prompt = words[:at] + NEEDLE.format(number) + words[at : at + 2400] + " The secret number is"
        head = [model.tokenizer.start_id, *model.tokenizer.encode(prompt)]
        ids = head + model.tokenizer.encode(f" {number}")
        for rule in ("full", *RULES):

            def measure(rule: str = rule, ids: list[int] = ids, begin: int = len(head) - 1) -> dict[str, Any]:
                return {"bits": kept_bits(model, ids, begin, rule, 256, 8)}

            yield {"rule": rule, "number": number}, measure


def packed(model: Any, text: str, count: int = 512) -> Rows:
    """Bits per byte and bytes of packed caches; bytes are compared with the formula."""
    ids = text_ids(model, text, count)
    size = len(model.tokenizer.decode(ids[1:]))
    rows: Rows = []
    for wide, keys in ((32, "token"), (8, "token"), (8, "channel"), (4, "token"), (4, "channel")):
        run: Any = BareStepper(model) if wide == 32 else PackedStepper(model, bits=wide, keys=keys)  # type: ignore[arg-type]
        found = bits(run, ids, 0, 8, nothing, nothing) / size
        formula = cache_bytes(model, count, bits=wide, keys=keys)  # type: ignore[arg-type]
        stored = formula if wide == 32 else run.nbytes
        row = {"bits": wide, "keys": keys, "bits_per_byte": found, "bytes": stored, "is_formula": stored == formula}
        rows.append(row)
        yield_row(row)
    return rows


def pages(model: Any, text: str) -> Rows:
    """Bytes of eight rows that began with the same 500 tokens, and the time of a step in pages."""
    ids = text_ids(model, text, 499)
    rows: Rows = []
    seconds = {}
    for name, kind in (("one piece", BareStepper), ("pages of 16", PagedStepper)):
        run: Any = kind(model)
        run.feed([ids])
        begin = time.process_time()
        for token in ids[:48]:
            run.feed([[token]])
        seconds[name] = time.process_time() - begin
        run.rollback(48)
        run.select([0] * 8)
        run.feed([[token] * 33 for token in ids[:8]])
        stored = run.pool.nbytes if isinstance(run, PagedStepper) else cache_bytes(model, 533, batch=8)
        formula = paged_bytes(model, 533, rows=8, shared=500) if isinstance(run, PagedStepper) else stored
        row = {"cache": name, "bytes": stored, "is_formula": stored == formula, "seconds": seconds[name]}
        rows.append(row)
        yield_row(row)
        del run
        gc.collect()
    return rows


def nearest(model: Any, text: str, count: int = 1024) -> Iterator[Cell]:
    """Bits per byte where every head reads only its nearest keys; time of the loops beside it."""
    ids = text_ids(model, text, count)
    begin = count // 2
    size = len(model.tokenizer.decode(ids[begin + 1 :]))
    for wanted in (0, 1, 4, 16, 64, 256, count):

        def measure(wanted: int = wanted) -> dict[str, Any]:
            start = time.process_time()
            found = bits(BareStepper(model, nearest=wanted), ids, begin, 16, nothing, nothing) / size
            return {"bits_per_byte": found, "seconds": time.process_time() - start}

        yield {"nearest": wanted}, measure


WAYS = ("last", "none", "linear", "ntk", "yarn", "self-extend 6", "self-extend 8")


def stretched(model: Any, text: str, ways: tuple[str, ...] = WAYS, windows: int = 24) -> Rows:
    """Bits per byte by position up to four times the trained length, for every way to count positions.

    Ways: the last tokens only, so many as were trained; rotary positions as they are or scaled; positions in groups;
    "as trained": the module's own forward pass over the whole, for models whose positions have no limit.
    """
    trained = model.context
    ids = model.tokenizer.encode(kobza.text(text).string)
    ids = ids[len(ids) * 9 // 10 :]
    length = 4 * trained
    rows: Rows = []
    begins = torch.linspace(0, max(0, len(ids) - length - 1), windows).long().tolist()

    def logits_of(way: str, fed: list[int]) -> torch.Tensor:
        if way == "as trained":
            found: torch.Tensor = model.module(input_ids=torch.tensor([fed])).logits[0]
            return found
        if way == "last":
            run = BareStepper(model)
            run.context = length
            evictor, parts = Evictor(run, "recent", trained), []
            for at in range(0, len(fed), 8):
                evictor.make_room(8)
                parts.append(run.feed([fed[at : at + 8]], keep=len(fed[at : at + 8])).reshape(-1, model.vocabulary))
            return torch.cat(parts)
        return run_of(way).feed([fed], keep=len(fed))[0]

    def run_of(way: str) -> Any:
        if way.startswith("self-extend"):
            return ExtendedStepper(model, group=int(way.split()[1]), window=trained // 4)
        scaled = model if way == "none" else stretching.apply(model, method=way, stretch=4.0)  # type: ignore[arg-type]
        run = BareStepper(scaled)
        run.context = length
        return run

    for way in ways:
        total, sizes = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
        for begin in begins:
            piece = ids[begin : begin + length]
            logits = logits_of(way, piece[:-1]).double()
            at = torch.arange(length - 1)
            total[1:] -= logits.log_softmax(-1)[at, torch.tensor(piece[1:])] / math.log(2)
            sizes[1:] += torch.tensor([len(model.tokenizer.bytes_of(id)) for id in piece[1:]])
        parts = (slice(1, trained), *(slice(n * trained, (n + 1) * trained) for n in (1, 2, 3)))
        row: dict[str, Any] = {"way": f"last {trained}" if way == "last" else way} | {
            f"{part.start}-{part.stop - 1}": float(total[part].sum() / sizes[part].sum()) for part in parts
        }
        eighths = [slice(max(1, n * trained // 2), (n + 1) * trained // 2) for n in range(8)]
        row["curve"] = [float(total[part].sum() / sizes[part].sum()) for part in eighths]
        rows.append(row)
        yield_row({key: value for key, value in row.items() if key != "curve"})
    return rows


def latent(model: Any, text: str, count: int = 256) -> Rows:
    """Bits of a token where the one before it was not read, but something in its place."""
    ids = text_ids(model, text, count + 64)
    table = model.module.get_input_embeddings().weight.detach()
    names = ("token", "likeliest", "expected", "norm", "state", "mean vector")
    total = dict.fromkeys(names, 0.0)
    run = BareStepper(model)
    logits, states = run.feed_states([ids[:64]])
    for at in range(64, len(ids) - 1):
        inputs = {name: matched(model, states[:, -1:], logits, name) for name in ("expected", "norm", "state")}  # type: ignore[arg-type]
        inputs["likeliest"] = table[logits.argmax(-1)][None]
        inputs["mean vector"] = table.mean(0)[None, None]
        for name, vector in inputs.items():
            total[name] -= float(run.feed_vectors(vector)[0][0].double().log_softmax(-1)[ids[at + 1]]) / math.log(2)
            run.rollback(1)
        logits, states = run.feed_states([[ids[at]]])
        total["token"] -= float(logits[0].double().log_softmax(-1)[ids[at + 1]]) / math.log(2)
    rows: Rows = [{"input": name, "bits_per_token": total[name] / (len(ids) - 65)} for name in names]
    for row in rows:
        yield_row(row)
    return rows


def decided(model: Any, prompts: list[str]) -> Rows:
    """The layer behind which greedy tokens were decided, and what looking for it costs."""
    from kobza.decoding import greedy

    layers: list[int] = []
    seconds = [0.0, 0.0]
    for prompt in prompts:
        for deep in (False, True):
            begin = time.process_time()
            said = greedy.generate(model, prompt, tokens=48, decided=deep).steps
            seconds[deep] += time.process_time() - begin
        layers += [step.decided for step in said]
    order = sorted(layers)
    quarters = [order[len(order) * n // 4] for n in (1, 2, 3)]
    row = {"model": model.name, "layers": model.layers, "tokens": len(order), "quarters": quarters,
           "last": order.count(model.layers) / len(order), "cost": seconds[1] / seconds[0]}  # fmt: skip
    yield_row(row)
    return [row]
