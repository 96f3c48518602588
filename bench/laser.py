"""LASER on SmolLM2: the map of all MLP matrices at a tenth of their rank, and what its best are worth elsewhere.

    .venv/bin/python bench/laser.py [--count 10] [--where blocks.*.mlp]

Each matrix is reduced alone on 1,024 tokens of calibration (prose and code). The `count` least missed are then read on
prose and code they were not chosen by: each alone, with an interval over pieces of 32 tokens, since the best of
ninety look good by chance on the text that chose them; and the first 3 and all of them together, beside equally many
matrices of the same kinds (an `mlp.down` for an `mlp.down`, and so on) in blocks drawn at random. About 10 CPU minutes.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

import kobza
from kobza.core.texts import text
from kobza.edits import laser
from kobza.edits._lowrank import whitened
from kobza.edits.base import CALIBRATION
from kobza.models.forward import token_bits
from kobza.models.model import Change

TEXTS = ("topics[:4000]", "source[:3000]")  # held out
SHARE, PIECE, NIL = 0.1, 32, 0.01  # NIL: bits per token that count as nothing
DRAWS = 2


def read(model: Any) -> list[Tensor]:
    """Bits of every token of every text."""
    return [token_bits(model, model.tokenizer.encode(text(name).data), window=511, overlap=0) for name in TEXTS]


def shown(after: Sequence[Tensor], before: Sequence[Tensor]) -> str:
    """Change of bits per byte on each text, with half of a 95 % interval over pieces of the text."""
    found = []
    for name, new, old in zip(TEXTS, after, before, strict=True):
        change = (new - old).double()
        pieces = torch.stack([piece.mean() for piece in change.split(PIECE) if len(piece) == PIECE])
        scale = len(change) / len(text(name))
        half = 1.96 * float(pieces.std()) / math.sqrt(len(pieces))
        found.append(f"{scale * float(change.mean()):+.4f} +- {scale * half:.4f}")
    return " | ".join(found)


def reduced(model: Any, names: Sequence[str]) -> Any:
    """A fork with these matrices at `SHARE` of their rank."""
    rank = laser.rank_of
    return model.replace(
        {name: whitened(model.matrix(name), rank(model.matrix(name), SHARE, 1)) for name in names},
        change=Change("reduced"),
    )


def alike(model: Any, names: Sequence[str], draw: random.Random) -> list[str]:
    """As many other matrices of the same kinds, in blocks drawn at random."""
    found: list[str] = []
    for name in names:
        kind = name.split(".", 2)[2]
        others = [f"blocks.{layer}.{kind}" for layer in range(model.layers)]
        found.append(draw.choice([other for other in others if other not in (*names, *found)]))
    return found


def summary(rows: Sequence[dict[str, Any]], layers: int) -> None:
    """Print how many matrices are not missed, and the median change by kind and third of the depth."""
    changes = [row["change"] for row in rows]
    print(
        f"{len(rows)} matrices: {sum(c < 0 for c in changes)} better without, {sum(c < NIL for c in changes)} missed "
        f"by less than {NIL} bit/token; median {median(changes):+.3f}, worst {max(changes):+.2f}"
    )
    for kind in sorted({row["matrix"] for row in rows}):
        own = [row for row in rows if row["matrix"] == kind]
        thirds = [[row["change"] for row in own if row["layer"] * 3 // layers == part] for part in range(3)]
        small = sum(row["change"] < NIL for row in own)
        print(f"  {kind:9} {' '.join(f'{median(part):+.3f}' for part in thirds)}   {small} of {len(own)} below {NIL}")


def main() -> None:
    """Print the map, then what its best do on other texts."""
    given = argparse.ArgumentParser()
    given.add_argument("--count", type=int, default=10)
    given.add_argument("--where", default="blocks.*.mlp")
    options = given.parse_args()
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    begin = time.process_time()
    table = laser.table(model, [text(name) for name in CALIBRATION], where=options.where, share=SHARE)
    print(f"map: {time.process_time() - begin:.0f} CPU seconds, by {CALIBRATION}; change in bit/token", flush=True)
    summary(list(table), model.layers)
    best = [f"blocks.{row['layer']}.{row['matrix']}" for row in table][: options.count]
    whole = read(model)
    level = [float(bits.sum()) / len(text(name)) for name, bits in zip(TEXTS, whole, strict=True)]
    print(f"held out, {' and '.join(TEXTS)}: {' '.join(f'{value:.4f}' for value in level)} bit/B", flush=True)
    for row, name in zip(table, best, strict=False):
        after = shown(read(reduced(model, [name])), whole)
        print(f"{name:20} chosen by {row['change']:+.4f} bit/token; held out {after}", flush=True)
    for count in sorted({3, options.count}):
        print(f"best {count} together: {shown(read(reduced(model, best[:count])), whole)}", flush=True)
        for seed in range(DRAWS):
            others = alike(model, best[:count], random.Random(seed))
            print(f"  {count} of the same kinds, draw {seed}: {shown(read(reduced(model, others)), whole)}", flush=True)
    print(f"{time.process_time() - begin:.0f} CPU seconds in all")


if __name__ == "__main__":
    main()
