"""Tables that leave the model, and word vectors beside token vectors: what survives, what agrees, what either knows.

    .venv/bin/python bench/vectors.py

SmolLM2's whole table is written and read back: by `extract`, as a text file of word vectors, and by bare safetensors;
bits, labels, and whether every token's text finds its row again. Then GloVe 6B 100d (the data folder's first 40,000
words) and the same words' rows in SmolLM2's table, cut to the words both have: every view on both, how far their ten
nearest agree (chance beside it), and analogies from pairs listed below, of which a question is right if the first
answer is; beside it the nearest to the third word alone, which needs no analogy.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import kobza
from kobza.core import techniques
from kobza.core.errors import KobzaError
from kobza.embeddings import extract, words
from kobza.embeddings.base import Query, Vectors, combine, near_table, row_query, vectors_of

DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "vectors"
FILE = "glove.6B.100d.top40k.txt.gz"
NEAR, ASKED = 10, 1000
PAIRS = {
    "capital": "france paris england london japan tokyo germany berlin italy rome spain madrid russia moscow china "
    "beijing egypt cairo greece athens cuba havana ireland dublin canada ottawa sweden stockholm austria vienna",
    "nation": "france french england english japan japanese germany german italy italian spain spanish russia russian "
    "china chinese egypt egyptian greece greek sweden swedish mexico mexican israel israeli india indian",
    "woman": "man woman king queen boy girl father mother son daughter brother sister husband wife uncle aunt "
    "prince princess actor actress he she his her",
    "plural": "car cars bird birds cat cats dog dogs child children city cities country countries day days "
    "hand hands house houses man men month months road roads woman women year years",
    "more": "big bigger small smaller great greater high higher low lower fast faster strong stronger weak weaker "
    "young younger old older long longer short shorter good better bad worse",
    "past": "go went see saw take took say said think thought know knew find found give gave run ran "
    "write wrote sing sang play played walk walked move moved",
    "ing": "go going see seeing take taking say saying think thinking run running write writing play playing "
    "walk walking move moving dance dancing read reading sit sitting",
    "ly": "quick quickly slow slowly rapid rapidly serious seriously complete completely free freely usual usually "
    "real really perfect perfectly safe safely most mostly",
    "opposite": "good bad big small hot cold high low old new long short rich poor early late open closed "
    "strong weak true false first last",
}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    begin = time.process_time()
    found = call()
    return time.process_time() - begin, found


def found_again(vectors: Vectors, back: Vectors) -> tuple[int, int]:
    """How many tokens' texts find their own row in what was read back, of how many that are text."""
    good = asked = 0
    for row in range(len(vectors)):
        piece = vectors.pieces(row) if vectors.pieces else b""
        try:
            piece_text = piece.decode()
        except UnicodeDecodeError:
            continue
        if not piece_text or row in vectors.special:
            continue
        asked += 1
        good += piece_text in back and back.row(piece_text) == row
    return good, asked


def files(vectors: Vectors, folder: Path) -> None:
    """Write and read the whole table in three forms; print bytes and seconds as ratios to bare safetensors."""
    bare, text = folder / "bare.safetensors", folder / "table.txt"
    plain = sum(timed(call)[0] for call in (
        lambda: save_file({"vectors": vectors.matrix.contiguous()}, bare), lambda: load_file(bare),
    ))  # fmt: skip
    path = folder / "table.safetensors"
    wrote, _ = timed(lambda: extract.save(vectors, path))
    read, back = timed(lambda: extract.load(path))
    good, asked = found_again(vectors, back)
    print(
        f"extract: {path.stat().st_size:,} bytes ({path.stat().st_size / bare.stat().st_size:.3f} of bare), "
        f"{(wrote + read) / plain:.1f} of its seconds; rows equal {torch.equal(back.matrix, vectors.matrix)}, labels "
        f"equal {back.labels == vectors.labels}, control tokens equal {back.special == vectors.special}; "
        f"{len(set(vectors.labels)):,} of {len(vectors):,} labels differ; {good:,} of {asked:,} texts find their row"
    )
    wrote, _ = timed(lambda: words.write(vectors, text, header=True))
    read, back = timed(lambda: words.read(text))
    print(
        f"text file: {text.stat().st_size:,} bytes, {(wrote + read) / plain:.0f} of the seconds; rows equal "
        f"{torch.equal(back.matrix, vectors.matrix)}, labels equal {back.labels == vectors.labels}"
    )


def common(model: Any) -> tuple[Vectors, Vectors]:
    """Vectors of the words that GloVe and the model's table both have, in GloVe's order; ` Paris` stands for paris."""
    glove, own = words.read(DATA / FILE), vectors_of(model)
    rows: dict[str, tuple[int, int]] = {}
    for row, word in enumerate(glove.labels):
        spelled = next((one for one in (f" {word}", f" {word.capitalize()}") if one in own), None)
        if word.isalpha() and spelled is not None:
            rows[word] = (row, own.row(spelled))
    theirs, ours = map(list, zip(*rows.values(), strict=True))
    cut = ((glove.matrix[theirs], "GloVe"), (own.matrix[ours], "SmolLM2"))
    one, other = (words.of_words(list(rows), matrix, name=name) for matrix, name in cut)
    return one, other


def nearest(vectors: Vectors, queries: list[Query], k: int, center: bool) -> list[list[int]]:
    """The k nearest rows of every query."""
    ids = near_table(vectors, queries, k=k, center=center)["id"]
    return [ids[at : at + k] for at in range(0, len(ids), k)]


def agreement(one: Vectors, other: Vectors, center: bool) -> float:
    """Share of the ten nearest of the most common words that both name."""
    asked = [[row_query(vectors, row) for row in range(ASKED)] for vectors in (one, other)]
    pairs = zip(nearest(one, asked[0], NEAR, False), nearest(other, asked[1], NEAR, center), strict=True)
    return sum(len({*a} & {*b}) for a, b in pairs) / ASKED / NEAR


def questions(known: Vectors) -> Iterator[tuple[str, str, str, str, str]]:
    """Kind and a, b, c, d of every question a : b = c : d whose words are all known."""
    for kind, listed in PAIRS.items():
        flat = listed.split()
        pairs = [(a, b) for a, b in zip(flat[::2], flat[1::2], strict=True) if a in known and b in known]
        for (a, b), (c, d) in permutations(pairs, 2):
            if len({a, b, c, d}) == 4:
                yield kind, a, b, c, d


def analogies(vectors: Vectors, center: bool) -> dict[str, tuple[int, int, int]]:
    """Per kind: questions, right ones, and right ones by the nearest to the third word alone."""
    asked = list(questions(vectors))
    sums = [combine(vectors, [(b, 1.0), (a, -1.0), (c, 1.0)]) for _, a, b, c, _ in asked]
    alone = [Query(c, vectors[c].double(), tuple(vectors.rows([a, b, c]))) for _, a, b, c, _ in asked]
    first, plain = (nearest(vectors, queries, 1, center) for queries in (sums, alone))
    found: dict[str, tuple[int, int, int]] = {}
    for (kind, *_, d), (said,), (near,) in zip(asked, first, plain, strict=True):
        all_, right, lazy = found.get(kind, (0, 0, 0))
        row = vectors.row(d)
        found[kind] = (all_ + 1, right + (said == row), lazy + (near == row))
    return found


def views(model: Any, glove: Vectors) -> None:
    """Run every view of the room on a model and on word vectors, with one option where it needs one."""
    needed = {
        "neighbors": ({"token": " sea"}, {"token": "sea"}),
        "words": ({"word": '" king" - " man" + " woman"'}, {"word": "king - man + woman"}),
    }
    for name in techniques.names("embeddings"):
        view, told = techniques.verb("embeddings", name), []
        for subject, given in zip((model, glove), needed.get(name, ({}, {})), strict=True):
            try:
                told.append(f"{len(view(subject, **given))} rows")
            except KobzaError as error:
                told.append(type(error).__name__)
        print(f"  {name}: tokens {told[0]}, words {told[1]}", flush=True)


def main() -> None:
    """Print what survives the file, and what both tables answer."""
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        files(vectors_of(model), Path(folder))
    if not (DATA / FILE).is_file():
        print(f"skipped: no {FILE}")
        return
    glove, own = common(model)
    views(model, glove)
    N = len(glove)
    scrambled = own.matrix[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
    print(f"{N:,} words in both; ten nearest of the first {ASKED} that both name:")
    for name, other, center in (
        ("SmolLM2", own, False), ("SmolLM2 less its mean row", own, True),
        ("rows exchanged at random", words.of_words(own.labels, scrambled), False),
    ):  # fmt: skip
        print(f"  {name}: {agreement(glove, other, center):.1%}", flush=True)
    for name, vectors, center in (("GloVe", glove, False), ("SmolLM2", own, False), ("SmolLM2, centered", own, True)):
        found = analogies(vectors, center)
        asked, right, lazy = (sum(column) for column in zip(*found.values(), strict=True))
        print(f"analogies, {name}: {right} of {asked} ({right / asked:.1%}); the nearest to c alone {lazy / asked:.1%}")
        print("  " + ", ".join(f"{kind} {b / a:.0%} ({c / a:.0%}) of {a}" for kind, (a, b, c) in found.items()))


if __name__ == "__main__":
    main()
