"""What eight ways to decode claim, measured on SmolLM2-135M-Instruct; their cards and LOG.md quote the figures.

    python bench/decoding_claims.py FOLDER [facts] [sums] [texts] [beams]

Every run is kept in FOLDER/runs.jsonl and not made twice, so that a call goes on where the last one ended; the worse
models of contrastive decoding are kept in FOLDER as well. One thread, about 12 CPU minutes in all. `facts`: sentences
to complete behind a solved one; an answer is right if it holds the word. DoLa, guidance, contrastive decoding and
beams against greedy decoding, with a penalty of repetition where they have one; and four answers of a kind, or all of
them, by their probability. `sums`: three digits added behind two solved examples, greedy against several draws.
`texts`: 200 tokens behind a beginning, repeated 4-grams and bits under the plain model in both halves; passages of
Python's documentation are there to compare. `beams`: what a wider search finds, and how unlike the texts of groups
are. Intervals: 95 % bootstrap over facts, sums or texts; differences are paired.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from tuning_experiments import Kept, Row

import kobza
from kobza.core import techniques
from kobza.core.result import Reading
from kobza.core.table import Table
from kobza.decoding import beam, choices, constrained
from kobza.edits import layer_drop
from kobza.models import opening
from kobza.models.stepping import steps

KINDS = {  # the first of each is the solved example
    "The capital of {} is": (
        "Italy:Rome France:Paris Germany:Berlin Spain:Madrid Portugal:Lisbon Poland:Warsaw Austria:Vienna "
        "Greece:Athens Ireland:Dublin Norway:Oslo Sweden:Stockholm Finland:Helsinki Hungary:Budapest "
        "Romania:Bucharest Russia:Moscow Turkey:Ankara Egypt:Cairo Kenya:Nairobi Iran:Tehran Iraq:Baghdad "
        "Japan:Tokyo China:Beijing Thailand:Bangkok Vietnam:Hanoi Canada:Ottawa Cuba:Havana Peru:Lima "
        "Chile:Santiago Belgium:Brussels Australia:Canberra Ghana:Accra Senegal:Dakar"
    ),
    "The chemical symbol of {} is": (
        "neon:Ne gold:Au silver:Ag iron:Fe copper:Cu sodium:Na lead:Pb tin:Sn mercury:Hg calcium:Ca magnesium:Mg "
        "aluminium:Al silicon:Si chlorine:Cl zinc:Zn nickel:Ni"
    ),
    "The main language of {} is": (
        "Cuba:Spanish Brazil:Portuguese Austria:German Egypt:Arabic Mexico:Spanish Israel:Hebrew Australia:English "
        "Senegal:French Angola:Portuguese Argentina:Spanish Iraq:Arabic Jamaica:English Pakistan:Urdu"
    ),
}
ALTERNATIVES = (4, 0)  # answers among which one is chosen; 0: all of the kind
SHOTS = "Q: 4 + 7 + 5\nA: 4 + 7 = 11, 11 + 5 = 16\n\nQ: 9 + 3 + 8\nA: 9 + 3 = 12, 12 + 8 = 20\n\n"
SUMS, SEEDS = 30, range(1)
BEGINNINGS = [
    "Once upon a time, in a village by the river, there lived an old man who",
    "The three most important things to know about the history of Europe are",
    "In physics, the word energy means", "When the ship came into the harbor, the captain",
    "To learn a musical instrument, one should first", "The forest was silent, and then",
    "A letter arrived this morning from my brother, in which he", "Bees are important to farmers because",
]  # fmt: skip
TOKENS, FOUND = 200, 24  # of a text, of a beam
DROPPED = {"26 layers": 4, "20 layers": 10}  # amateurs: blocks left and taken out
PENALIZED = "greedy, repetition 1.2"
PLAIN = {"greedy": ("greedy", {}), PENALIZED: ("sample", {"temperature": 0.0, "repetition": 1.2})}
GROUPS = [(1, 0.0), (4, 0.5), (8, 0.5)]  # groups of eight beams, their diversity
Way = tuple[str, dict[str, Any]]  # technique, options
Ways = dict[str, Way]


def said(way: Way, model: Any, prompt: Any, seed: int = 0, **more: Any) -> Any:
    """Return the generation of a way behind a prompt."""
    verb = techniques.verb("decoding", way[0])
    seeded = {"seed": seed} if "seed" in signature(verb).parameters else {}
    return verb(model, prompt, **way[1], **seeded, **more)


def amateur(model: Any, folder: Path, name: str) -> str:
    """Return the path of a worse model: without the blocks that change the stream least."""
    path = folder / f"amateur of {name}"
    if not path.exists():
        layer_drop.apply(model, drops=DROPPED[name]).save(path)
    return str(path)


def factual(paths: dict[str, str]) -> Ways:
    """Return the ways to say a fact, the paths of the amateurs being given."""
    ways: Ways = PLAIN | {"sample at 1": ("sample", {})}
    for name, layers in {"2 to 14": None, "16 to 28": list(range(16, 30, 2))}.items():
        ways[f"dola {name}"] = "dola", {"layers": layers, "repetition": 1.0}
        ways[f"dola {name}, repetition 1.2"] = "dola", {"layers": layers}
    ways |= {f"guidance {scale}": ("guidance", {"scale": scale}) for scale in (1.25, 1.5, 2.0)}
    ways |= {f"contrastive, {name}": ("contrastive", {"amateur": path}) for name, path in paths.items()}
    return ways | {f"{name} alone": ("greedy", {}) for name in paths} | {"beam 4": ("beam", {"beams": 4})}


def facts(kept: Kept, model: Any, folder: Path) -> list[Table]:
    """Share of facts that every way says."""
    paths = {name: amateur(model, folder, name) for name in DROPPED}
    asked = questions()
    right: dict[str, list[float]] = {}
    for name, way in factual(paths).items():
        path = paths.get(name.removesuffix(" alone"))
        heard = kept(f"facts {name}", lambda w=way, p=path: {"said": _heard(w, opening.open(p) if p else model, asked)})
        right[name] = [_is_in(fact[1], text) for fact, text in zip(asked, heard["said"], strict=True)]
    shares: dict[int, list[list[float]]] = {}
    for count in ALTERNATIVES:
        name = f"choices of {count}" if count else "choices of all"
        found = kept(f"facts {name}", lambda c=count: {"shares": [_shares(model, fact, c) for fact in asked]})
        shares[count] = found["shares"]
        right[name] = [float(max(each) == each[0]) for each in shares[count]]
        right[f"{name}, one drawn"] = [each[0] for each in shares[count]]
    controls = {name: PENALIZED if "dola" in name and "repetition" in name else "greedy" for name in right}
    rows = [{"way": name} | against(values, right[controls[name]]) for name, values in right.items()]
    return [Table(rows, title=f"{len(asked)} facts, share right"), sureness(shares[0])]


def _heard(way: Way, model: Any, asked: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the answer to every fact, its seed being its place."""
    return [said(way, model, fact[0], n, tokens=8, stop=["\n", "."]).text for n, fact in enumerate(asked)]


def _is_in(word: str, text: str) -> bool:
    return bool(re.search(rf"\b{word}\b", text))


def questions() -> list[tuple[str, ...]]:
    """Return (prompt, right answer, wrong answers of the same kind) of every fact."""
    found = []
    for sentence, line in KINDS.items():
        (thing, word), *pairs = [pair.split(":") for pair in line.split()]
        solved = f"{sentence.format(thing)} {word}.\n"
        for other, answer in pairs:
            wrong = sorted({each for _, each in pairs} - {answer})
            random.Random(len(found)).shuffle(wrong)
            found.append((solved + sentence.format(other), answer, *wrong))
    return found


def _shares(model: Any, fact: tuple[str, ...], count: int) -> list[float]:
    """Return the probabilities of so many answers to a fact, or of all (0), the right one first."""
    prompt, *words = fact
    found = choices.logprobs(model, prompt, [f" {word}" for word in words[: count or None]])
    return torch.tensor(found, dtype=torch.float64).softmax(-1).tolist()


def sureness(shares: Sequence[Sequence[float]]) -> Table:
    """Return how probable the likeliest alternative is where it is right and where it is wrong."""
    sides = {side: [max(each) for each in shares if (max(each) == each[0]) is side] for side in (True, False)}
    rows = [{"likeliest is right": side, "facts": len(p), "its probability": mean(p)} for side, p in sides.items() if p]
    return Table(rows, title="The likeliest of all answers of a kind")


def reading(values: Sequence[float], counts: Sequence[float] = ()) -> Reading:
    """Return the mean of values, or of sums over counts, with its interval."""
    return Reading.from_parts("mean", list(zip(values, counts or [1] * len(values), strict=True)), "", record={})


def against(values: Sequence[float], control: Sequence[float]) -> Row:
    """Return a mean with its interval, and its difference from a control's."""
    found, more = reading(values), reading(control).compare(reading(values))
    row: Row = {"mean": found.value, "low": found.low, "high": found.high}
    return row | {"minus control": more.value, "from": more.low, "to": more.high}


def sums(kept: Kept, model: Any, folder: Path) -> list[Table]:
    """Share of sums that several draws get right."""
    drawn = random.Random(0)
    digits = [[drawn.randint(1, 9) for _ in range(3)] for _ in range(SUMS)]
    ways: Ways = {"greedy": ("greedy", {}), "one draw at 0.8": ("best_of", {"texts": 1})}
    ways |= {f"vote of {n} at 0.8": ("best_of", {"texts": n, "by": "vote"}) for n in (4, 8)}
    ways["likeliest of 8 at 0.8"] = "best_of", {"texts": 8}
    right: dict[str, list[float]] = {}
    for name, way in ways.items():
        right[name] = [0.0] * SUMS
        seeds = SEEDS if name != "greedy" else range(1)
        for seed in seeds:
            found = kept(f"sums {name} {seed}", lambda w=way, s=seed: {"said": [_sum(w, model, d, s) for d in digits]})
            for place, (number, each) in enumerate(zip(found["said"], digits, strict=True)):
                right[name][place] += (number == str(sum(each))) / len(seeds)
    rows = [{"way": name} | against(values, right["greedy"]) for name, values in right.items()]
    return [Table(rows, title=f"{SUMS} sums of three digits, share right; seeds: {len(SEEDS)}")]


def _sum(way: Way, model: Any, digits: Sequence[int], seed: int) -> str:
    """Return the last number of the line said."""
    prompt = f"{SHOTS}Q: {' + '.join(map(str, digits))}\nA:"
    return (re.findall(r"\d+", said(way, model, prompt, seed, tokens=24, stop=["\n"]).text) or [""])[-1]


def texts(kept: Kept, model: Any, folder: Path) -> list[Table]:
    """Repetition and surprisal of texts, in both halves."""
    ways: Ways = PLAIN | {f"contrastive search {a}": ("contrastive_search", {"alpha": a}) for a in (0.4, 0.6)}
    ways |= {"sample at 1": ("sample", {})}
    ways |= {f"mirostat {target}": ("mirostat", {"target": target}) for target in (2.0, 3.0, 5.0)}
    places = range(len(BEGINNINGS))
    rows = []
    for name, way in ways.items():
        written = kept(f"texts {name}", lambda w=way: {"said": [_written(w, model, n) for n in places]})
        rows.append({"way": name} | _described(written["said"]))
    passages = kept("texts documentation", lambda: {"said": [_passage(model, n) for n in places]})
    rows.append({"way": "Python's documentation"} | _described(passages["said"]))
    note = "bits: of a token under the plain model; more: second half minus first, paired over texts"
    return [Table(rows, title=f"{len(BEGINNINGS)} texts of {TOKENS} tokens", note=note)]


def _written(way: Way, model: Any, place: int) -> Row:
    """Return tokens and bits of one text, its seed being its place."""
    made = said(way, model, BEGINNINGS[place], place, tokens=TOKENS)
    return {"ids": made.ids, "bits": [round(-logprob / math.log(2), 3) for logprob in made.logprobs]}


def _passage(model: Any, place: int) -> Row:
    """Return the same of a passage of the documentation behind 16 tokens of it."""
    begin = 20_000 + 30_000 * place
    ids = model.tokenizer.encode(kobza.text(f"topics[{begin}:{begin + 2000}]").string)[: 16 + TOKENS]
    logprobs = steps(model).feed([ids[:-1]], keep=TOKENS)[0].log_softmax(-1)
    bits = -logprobs.gather(1, torch.tensor(ids[16:])[:, None])[:, 0] / math.log(2)
    return {"ids": ids[16:], "bits": [round(value, 3) for value in bits.tolist()]}


def _described(written: Sequence[Row]) -> Row:
    """Return length, repetition and bits of texts."""
    repeated = reading([repeats(text["ids"]) for text in written])
    parts = [[text["bits"][part] for text in written] for part in (slice(TOKENS // 2), slice(TOKENS // 2, None))]
    first, second = (reading([sum(bits) for bits in part], [len(bits) for bits in part]) for part in parts)
    more = first.compare(second)
    return {
        "tokens": mean(len(text["ids"]) for text in written),
        "repeated 4-grams": repeated.value, "low": repeated.low, "high": repeated.high,
        "bits, first half": first.value, "second": second.value, "more": more.value, "from": more.low, "to": more.high,
    }  # fmt: skip


def repeats(ids: Sequence[int], size: int = 4) -> float:
    """Return the share of n-grams that stood in the text before.

    >>> repeats([1, 2, 1, 2, 1], 2)
    0.5
    """
    grams = list(zip(*(ids[n:] for n in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def beams(kept: Kept, model: Any, folder: Path) -> list[Table]:
    """What a wider search finds."""
    found: dict[int, list[Row]] = {}
    for width in (1, 2, 4, 8):
        way = "beam", {"beams": width}
        found[width] = kept(f"beams {width}", lambda w=way: {"said": [_best(w, model, b) for b in BEGINNINGS]})["said"]
    rows = []
    for width, each in found.items():
        nats, narrow = ([one["nats"] for one in many] for many in (each, found[1]))
        gains = [a - b for a, b in zip(nats, narrow, strict=True)]
        row: Row = {"beams": width} | against(nats, narrow)
        row |= {"likelier": sum(gain > 1e-4 for gain in gains), "less": sum(gain < -1e-4 for gain in gains)}
        rows.append(row | {"repeated 4-grams": mean(one["repeated"] for one in each)})
    title = f"{len(BEGINNINGS)} texts of {FOUND} tokens, log-probability in nats a token"
    return [Table(rows, title=title), grouped(kept, model)]


def _best(way: Way, model: Any, beginning: str) -> Row:
    made = said(way, model, beginning, tokens=FOUND)
    return {"nats": mean(made.logprobs), "repeated": repeats(made.ids)}


def grouped(kept: Kept, model: Any) -> Table:
    """How unlike the texts of groups are, and whether the first, which is said, is the likeliest."""
    rows = []
    for groups, diversity in GROUPS:
        more = {"tokens": FOUND, "beams": 8, "groups": groups, "diversity": diversity}
        key = f"groups {groups} at {diversity}"
        found = kept(key, lambda m=more: {"found": [beam.many(model, each, **m) for each in BEGINNINGS]})["found"]
        first = sum(each[0][1] == max(nats for _, nats in each) for each in found)
        row = {"nats a text": mean(nats for each in found for _, nats in each), "first is likeliest": first}
        rows.append({"way": key} | unlike(model, found) | row)
    places = enumerate(BEGINNINGS)
    drawn = kept(
        "groups, drawn", lambda: {"found": [constrained.many(model, b, 8, tokens=FOUND, seed=n) for n, b in places]}
    )
    rows.append({"way": "drawn at 1"} | unlike(model, drawn["found"]))
    return Table(rows, title="Eight texts from every beginning", note="first 4: different first four tokens")


def unlike(model: Any, found: Any) -> Row:
    """Return means of different texts, different beginnings, and the share of different 4-grams among all."""
    ids = [[model.tokenizer.encode(text) for text, _ in texts] for texts in found]
    grams = [[tuple(each[n : n + 4]) for each in texts for n in range(len(each) - 3)] for texts in ids]
    first = [{tuple(each[:4]) for each in texts} for texts in ids]
    different = mean(len(set(each)) / len(each) for each in grams)
    whole = mean(len({text for text, _ in texts}) for texts in found)
    return {"texts": whole, "first 4": mean(map(len, first)), "different 4-grams": different}


PARTS = {"facts": facts, "sums": sums, "texts": texts, "beams": beams}


def main() -> None:
    """Run the parts named on the command line, or all."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("folder", type=Path)
    reader.add_argument("parts", nargs="*", choices=[*PARTS, []])
    given = reader.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    kept, model = Kept(given.folder), kobza.open("smollm2")
    with patch.object(opening, "open", cache(opening.open)):  # contrastive decoding opens its amateur at every call
        for name in given.parts or PARTS:
            for table in PARTS[name](kept, model, given.folder):
                print(table, "\n", flush=True)


if __name__ == "__main__":
    main()
