"""Decoding: speed of the backends, what speculation saves, what smaller caches and longer texts cost; docs/decoding.md.

    python bench/decoding.py [PART ...] [--text FILE] [--exits FOLDER] [--heads FILE] [--positions FOLDER]
                             [--keep FOLDER] [--seconds N]

Parts: speed, prompt, speculation, exact, exits, schema, cache, needle, packed, pages, nearest, positions, latent,
decided, and page, which writes docs/decoding.md and its pictures from what the others kept in FOLDER. FILE of --text
is an English text (tinyshakespeare in the page; default: topics), of --kobzar the text of the embedded model of that
name, FOLDER of --exits what examples/exit_loss.py made, FILE of --heads what examples/draft_heads.py made;
--positions FOLDER holds alibi, rope and none, each `kobza train topics --kind free --vocabulary 512 --size 4 --budget
1000steps --save FOLDER/alibi --set "form='position=alibi',context=128,width=128"`; without them their rows are left
out. With --seconds a call stops there; the next goes on where the rows kept in FOLDER end. CPU seconds of one thread,
ratios within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _decoding_cache as small
import _decoding_page as page
import torch

import kobza
from kobza.core import techniques
from kobza.models.stepping import steps, using

TOKENS = 64
KINDS = ("alibi", "rope", "none")  # of positions, in models trained alike
PASSAGES = (kobza.text("topics[:500]").string, kobza.text("source[4000:4400]").string)
COPY = [f"Repeat the passage word for word.\n{p}\n\nThe passage again:\n{p}\n\nThe passage again:\n" for p in PASSAGES]
FREE = [
    "Once upon a time, in a village by the river, there lived an old man who",
    "The three most important things to know about the history of Europe are",
]
SHORT = kobza.text("topics[3000:3090]").string
SMALL = {"copy": [f"{SHORT}\n\n{SHORT[:30]}", "float() int() float() int() float() int() float()"],
         "free": ["The river", "In physics, the word"]}  # fmt: skip
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


def speed(model: Any, given: Any) -> small.Rows:
    """Generation by transformers' generate and by each backend, and the limit of the memory, taken in between."""
    rows: small.Rows = []
    for dtype in ("float32", "bfloat16"):
        one = model if dtype == "float32" else kobza.open("smollm2", dtype=dtype)
        weights = [p for p in one.module.parameters() if p.ndim > 1]
        limits: list[float] = []

        def limit(weights: Any = weights, limits: list[float] = limits) -> None:
            limits.append(1 / timed(lambda: [w.view(torch.float32).sum() for w in weights], 3)[0])

        ways = _ways(one, dtype)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                limit()
                found[name].append(_rate(way))
        right = ways["transformers' generate"](24)
        base, most = max(found["transformers' generate"]), max(limits)
        for name, rates in found.items():
            same = ways[name](24)
            row = {"dtype": dtype, "way": name, "rate": max(rates), "of_generate": max(rates) / base}
            row |= {"of_limit": max(rates) / most, "limit": most, "equal": same == right}
            rows.append(row)
            small.yield_row(row)
    return rows


def _ways(model: Any, dtype: str) -> dict[str, Callable[[int], Any]]:
    """Return {name: generates so many tokens}."""
    ids = torch.tensor([model.tokenizer.encode(FREE[0])])
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

    ways: dict[str, Callable[[int], Any]] = {"transformers' generate": theirs}
    ways |= {f"{name} backend": lambda n, b=name: ours(b, n) for name in ("transformers", "bare", "paged")}
    with contextlib.suppress(ImportError, kobza.KobzaError):
        if dtype == "float32":
            ours("llama", 2)
            own_llama(model, ids[0].tolist(), 2)
            ways["llama backend (Q4_1)"] = lambda n: ours("llama", n)
            ways["llama.cpp's own loop (Q4_1)"] = lambda n: own_llama(model, ids[0].tolist(), n)
    return ways


def _rate(way: Callable[[int], Any]) -> float:
    short, long = (timed(lambda n=n: way(n), 1)[0] for n in (8, 48))
    return 40 / (long - short)


def own_llama(model: Any, ids: list[int], count: int) -> list[int]:
    """Generate by llama-cpp-python's own class."""
    import llama_cpp

    global _LLAMA  # loading is no part of the comparison
    if _LLAMA is None:
        _LLAMA = llama_cpp.Llama(model.origin.path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    _LLAMA.reset()
    made = []
    for token in _LLAMA.generate(ids, temp=0.0, reset=True):
        made.append(int(token))
        if len(made) == count:
            break
    return made


_LLAMA: Any = None


def prompt(model: Any, given: Any) -> small.Rows:
    """The first token behind a prompt of 2,000 tokens."""
    ids = torch.tensor([model.tokenizer.encode(kobza.text("topics[:20000]").string)[:2000]])
    seconds: dict[str, list[float]] = {"transformers": [], "bare": []}
    for _ in range(3):
        for backend, found in seconds.items():
            found.append(timed(lambda b=backend: steps(model, backend=b).feed(ids), 1)[0])
    row = {name: min(found) for name, found in seconds.items()} | {
        "ratio": min(seconds["bare"]) / min(seconds["transformers"])
    }
    small.yield_row(row)
    return [row]


def _kinds(given: Any, is_small: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return {what it is called: (technique, options)} of all speculation."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "lookup": ("lookup", {}), "tree of lookups": ("tree", {}), "n-grams": ("ngram", {}),
    }  # fmt: skip
    if is_small:
        exits = ((1, 1, 0.0), (2, 1, 0.0), (2, 2, 0.0), (2, 4, 0.5), (3, 4, 0.5), (4, 4, 0.7))
    else:
        exits = ((27, 1, 0.0), (20, 1, 0.5))
        kinds["Q4_1 by llama.cpp as draft"] = "assisted", {"assistant": "gguf", "draft": 3}
        if given.heads:
            kinds["draft heads, chain"] = "hydra", {"heads": given.heads, "width": 1, "draft": 3}
            kinds["draft heads, tree"] = "hydra", {"heads": given.heads}
    for layer, draft, sure in exits:
        name = f"exit at {layer}, draft {draft}" + (f", if {sure} sure" if sure else "")
        kinds[name] = "early_exit", {"layer": layer, "draft": draft, "confidence": sure}
    return kinds


def _models(model: Any, given: Any) -> list[tuple[Any, bool]]:
    return [(model, False)] + ([(kobza.open(given.exits), True)] if given.exits else [])


def speculation(model: Any, given: Any) -> Iterator[small.Cell]:
    """Passes, tokens a pass, and CPU time against greedy in the same run."""
    for one, is_small in _models(model, given):
        for kind, texts in SMALL.items() if is_small else (("copy", COPY), ("free", FREE)):
            plain: list[Any] = []  # greedy, run once a call
            for name, (way, options) in _kinds(given, is_small).items():
                key = {"model": one.name, "prompt": kind, "way": name}

                def measure(
                    one: Any = one,
                    texts: list[str] = texts,
                    plain: list[Any] = plain,
                    way: str = way,
                    options: Any = options,
                ) -> dict[str, Any]:
                    plain[:] = plain or [_run("greedy", one, text, {}) for text in texts]
                    return _compared(one, texts, plain, way, options)

                yield key, measure


def _compared(model: Any, texts: list[str], plain: list[Any], way: str, options: Any) -> dict[str, Any]:
    """Return the row of one way, beside greedy before and after it."""
    found = [_run(way, model, text, options) for text in texts]
    again = [_run("greedy", model, text, {})[0] for text in texts]
    seconds = sum(min(a, b) for (a, _), b in zip(plain, again, strict=True))
    passes = sum(said.passes for _, said in found)
    made = sum(len(said.ids) for _, said in found)
    proposed = sum(len(draft.ids) for _, said in found for draft in said.drafts)
    accepted = sum(draft.accepted for _, said in found for draft in said.drafts)
    return {
        "passes": passes, "tokens": made, "a_pass": made / passes,
        "acceptance": accepted / proposed if proposed else None, "ratio": seconds / sum(each for each, _ in found),
        "equal": all(a.ids == b.ids for (_, a), (_, b) in zip(found, plain, strict=True)),
    }  # fmt: skip


def _run(name: str, model: Any, text: str, options: dict[str, Any]) -> tuple[float, Any]:
    """Return the least CPU seconds of two runs behind the first token (the prompt is the same work for all)."""
    best = float("inf")
    for _ in range(2):
        said = techniques.verb("decoding", name)(model, text, tokens=TOKENS, **options)
        pieces = iter(said)
        next(pieces, None)
        begin = time.process_time()
        _ = said.ids
        best = min(best, time.process_time() - begin)
    return best, said


def exact(model: Any, given: Any) -> Iterator[small.Cell]:
    """In how many of eight texts every kind of speculation says what greedy decoding says, by type and backend."""
    begins = ["The kobza is", "def main():", "1, 2, 3,", "Dear Sir,", "In 1914", "Water is", *FREE]
    for dtype, backend in (("float32", "bare"), ("bfloat16", "bare"), ("bfloat16", "transformers")):
        right: list[list[int]] = []
        for name, (way, options) in _kinds(given, False).items():
            if "llama" in name or (backend == "transformers" and way == "early_exit"):
                continue
            forced = options | ({"price": 0.0} if way in ("lookup", "tree", "ngram") else {})

            def measure(
                dtype: str = dtype, backend: str = backend, right: Any = right, way: str = way, forced: Any = forced
            ) -> dict[str, Any]:
                one = model if dtype == "float32" else kobza.open("smollm2", dtype=dtype)

                def said(way: str, more: Any) -> list[list[int]]:
                    return [techniques.verb("decoding", way)(one, text, tokens=32, **more).ids for text in begins]

                with using(backend):
                    right[:] = right or said("greedy", {})
                    same = sum(a == b for a, b in zip(said(way, forced), right, strict=True))
                return {"equal": same, "of": len(begins)}

            yield {"dtype": dtype, "backend": backend, "way": name}, measure


def exits(model: Any, given: Any) -> small.Rows:
    """How often a token of a model's own greedy text is the likeliest behind a layer."""
    from kobza.decoding import greedy

    rows: small.Rows = []
    for one, is_small in _models(model, given):
        hits = dict.fromkeys(range(1, one.layers), 0)
        made = 0
        for text in SMALL["free"] + SMALL["copy"] if is_small else FREE:
            said = greedy.generate(one, text, tokens=TOKENS)
            run = steps(one)
            for new, right in zip([said.prompt_ids, *([i] for i in said.ids)], said.ids, strict=False):
                found = run.feed_layers([new], list(hits))
                made += 1
                for n in hits:
                    hits[n] += int(found[n].argmax()) == right
        rows.append(
            {"model": one.name, "layers": one.layers, "tokens": made, "agree": {n: h / made for n, h in hits.items()}}
        )
        small.yield_row({"model": one.name} | {str(n): round(h / made, 2) for n, h in hits.items()})
    return rows


def schema(model: Any, given: Any, count: int = 1000) -> small.Rows:
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
    row = {"valid": valid, "of": made, "seconds": time.process_time() - begin, "last": texts[-1][0]}
    small.yield_row(row)
    return [row]


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


def positions(model: Any, given: Any) -> small.Rows:
    """Bits per byte by position for the small models, which were trained on windows of 128 tokens."""
    rows: small.Rows = []
    texts = {"kobzar": given.kobzar, "exits": "topics"}
    for name, source in texts.items():
        if source and (name == "kobzar" or given.exits):
            one = kobza.open("kobzar" if name == "kobzar" else given.exits)
            rows += [{"model": one.name, "text": name} | row for row in small.stretched(one, source)]
    for kind in KINDS if given.positions else ():
        one = kobza.open(Path(given.positions, kind, "model"))
        (row,) = small.stretched(one, "topics", ways=("as trained",))
        rows.append(row | {"model": "small models of the free form", "text": "kinds", "way": kind})
    return rows


PARTS: dict[str, Callable[[Any, Any], small.Rows | Iterator[small.Cell]]] = {
    "speed": speed, "prompt": prompt, "speculation": speculation, "exact": exact, "exits": exits, "schema": schema,
    "cache": lambda model, given: small.cache(model, given.text),
    "needle": lambda model, given: small.needle(model, "topics"),
    "packed": lambda model, given: small.packed(model, given.text),
    "pages": lambda model, given: small.pages(model, given.text),
    "nearest": lambda model, given: small.nearest(model, given.text),
    "positions": positions,
    "latent": lambda model, given: small.latent(model, given.text),
    "decided": lambda model, given: small.decided(model, FREE),
}  # fmt: skip


def main() -> None:
    """Run the parts named on the command line, or all."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("parts", nargs="*", choices=[*PARTS, "page", []])
    for name in ("text", "kobzar", "exits", "heads", "positions", "keep"):
        reader.add_argument(f"--{name}", default="topics" if name == "text" else "")
    reader.add_argument("--seconds", type=float, default=float("inf"), help="CPU seconds after which it stops")
    given = reader.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = kobza.open("smollm2") if given.parts != ["page"] else None
    for name in given.parts or PARTS:
        if name == "page":
            page.write(Path(given.keep), Path(__file__).resolve().parents[1] / "docs")
            continue
        print(f"--- {name}", flush=True)
        found = PARTS[name](model, given)
        if not isinstance(found, list):
            found = measured(found, Path(given.keep, f"{name}.json") if given.keep else None, given.seconds)
        if given.keep:
            _save(Path(given.keep, f"{name}.json"), found)


def measured(cells: Iterator[small.Cell], kept: Path | None, seconds: float) -> small.Rows:
    """Measure cell by cell, going on from what was kept, until so many CPU seconds are spent."""
    rows: small.Rows = json.loads(kept.read_text()) if kept and kept.exists() else []
    for key, measure in cells:
        if any(key.items() <= row.items() for row in rows):
            continue
        if time.process_time() > seconds:
            print("to be continued: call it again")
            break
        with contextlib.suppress(kobza.KobzaError):  # an extra that is not installed
            rows.append(key | measure())
            small.yield_row(rows[-1])
            if kept:
                _save(kept, rows)
    return rows


def _save(path: Path, rows: small.Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


if __name__ == "__main__":
    sys.exit(main())
