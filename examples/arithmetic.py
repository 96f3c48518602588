"""Addition beyond the lengths that were trained: kinds of positions, and the order of the sum's digits.

python examples/arithmetic.py [tiny] | full [FOLDER]

Numbers of 1 to 3 digits are trained; sums of 1 to 5 digits are asked for, every digit of the answer must be right. The
models differ in nothing but the kind of positions. FOLDER keeps every run (arithmetic.json); the same words go on.
"""

import json
import random
import statistics
import sys
from pathlib import Path

import kobza
from kobza.core.files import write_atomic
from kobza.core.table import Table
from kobza.models.forward import generate
from kobza.training import scratch

is_full = "full" in sys.argv
folder = Path(sys.argv[2]) if is_full and len(sys.argv) > 2 else None
seeds, steps, asked, kinds = (3, 3000, 100, ("learned", "rope", "alibi", "none")) if is_full else (1, 3, 2, ("alibi",))
TRAINED = 3  # digits


def line(rng: random.Random, digits: int, *, is_reversed: bool) -> tuple[str, str]:
    """Return question and answer."""
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in "ab")
    total = str(a + b)
    return f"{a}+{b}=", (total[::-1] if is_reversed else total)


def right(model: kobza.Model, digits: int, *, is_reversed: bool) -> float:
    """Return the share of sums that are exact."""
    rng = random.Random(digits)
    hits = 0
    for _ in range(asked):
        question, answer = line(rng, digits, is_reversed=is_reversed)
        ids = model.tokenizer.encode("\n" + question)
        said = model.tokenizer.text(i for i, _ in generate(model, ids, tokens=len(answer) + 1))
        hits += said == answer + "\n"
    return hits / asked


def measured(kind: str, *, is_reversed: bool, seed: int) -> dict[str, object]:
    """Train one model and ask it."""
    rng = random.Random(seed)
    lines = ["".join(line(rng, rng.randint(1, TRAINED), is_reversed=is_reversed)) for _ in range(20_000)]
    run = scratch.train(
        kobza.vocabulary("bytes"), "\n".join(lines).encode(), kind="free", form=f"position={kind}", size=2, width=64,
        heads=4, context=32, batch=32, steps=steps, rate=3e-3, optimizer="muon", warmup=20, held=0.01,
        evaluate=10 * steps, trim=False, precision="float32", seed=seed,
    )  # fmt: skip
    shares = [right(run.model, digits, is_reversed=is_reversed) for digits in range(1, TRAINED + 3)]
    sizes = {"steps": steps, "trained": TRAINED, "loss": run.history["loss"][-1]}
    return {"kind": kind, "reversed": is_reversed, "seed": seed, "shares": shares, **sizes}


keep = None if folder is None else folder / "arithmetic.json"
done = json.loads(keep.read_text()) if keep and keep.exists() else []
for kind in kinds:
    for is_reversed in (True, False):
        for seed in range(seeds):
            key = {"kind": kind, "reversed": is_reversed, "seed": seed, "steps": steps, "trained": TRAINED}
            if not any(key.items() <= row.items() for row in done):
                done.append(measured(kind, is_reversed=is_reversed, seed=seed))
                print(done[-1], flush=True)
                if keep is not None:
                    keep.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(keep, json.dumps(done, indent=0))
rows = []
for kind, is_reversed in dict.fromkeys((row["kind"], row["reversed"]) for row in done):
    found = [row["shares"] for row in done if (row["kind"], row["reversed"]) == (kind, is_reversed)]
    row = {"positions": kind, "digits": "lowest first" if is_reversed else "highest first"}
    for n, shares in enumerate(zip(*found, strict=True), 1):
        row[f"{n} digits"] = f"{statistics.mean(shares):.2f} ({min(shares):.2f} .. {max(shares):.2f})"
    rows.append(row)
print(Table(rows, title=f"Exact sums, {seeds} seeds; trained on 1 to {TRAINED} digits"))
