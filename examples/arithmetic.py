"""Addition beyond the lengths that were trained: kinds of positions, and the order of the sum's digits.

python examples/arithmetic.py [MODEL] | full

Numbers of 1 and 2 digits are trained; sums of 1 to 4 digits are asked for.
"""

import random
import statistics
import sys

import kobza
from kobza.core.table import Table
from kobza.models.forward import generate
from kobza.training import scratch

is_full = "full" in sys.argv
seeds, steps, asked = (3, 900, 40) if is_full else (1, 3, 2)


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


rows = []
for kind, where in (("classic", "learned"), ("llama", "rotary")):
    for is_reversed in (False, True):
        found: dict[int, list[float]] = {digits: [] for digits in range(1, 5)}
        for seed in range(seeds):
            rng = random.Random(seed)
            lines = ["".join(line(rng, rng.randint(1, 2), is_reversed=is_reversed)) for _ in range(20_000)]
            run = scratch.train(
                kobza.vocabulary("bytes"), "\n".join(lines).encode(), kind=kind, size=2, width=64, heads=4, kv_heads=4,
                context=32, batch=32, steps=steps, rate=3e-3, optimizer="muon", warmup=20, held=0.01,
                evaluate=10 * steps, trim=False,
                seed=seed,
            )  # fmt: skip
            for digits, shares in found.items():
                shares.append(right(run.model, digits, is_reversed=is_reversed))
        order = "lowest first" if is_reversed else "highest first"
        row = {f"{d} digits": f"{statistics.mean(s):.2f} ({min(s):.2f} .. {max(s):.2f})" for d, s in found.items()}
        rows.append({"positions": where, "digits": order, **row})
        print(rows[-1], flush=True)
print(Table(rows, title=f"Exact sums, {seeds} seeds; trained on 1 and 2 digits"))
