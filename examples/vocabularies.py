"""Vocabularies for a small model of one text at equal compute, three seeds: bytes, 2,048, 8,192 ids, or a given one.

python examples/vocabularies.py [TEXT VOCABULARY COMPUTE FOLDER]

VOCABULARY is a file (o200k_base.tiktoken), cut to what the training part needs; the others are trained on that part
alone. Each run spends COMPUTE times 1e12 multiplications, 6 per weight (blocks and head) and token, on a Llama of 4 x
256 without dropout. FOLDER keeps every run (small.json); the same words go on. One larger run: small_model.py.
"""

import json
import sys
from pathlib import Path

import kobza
from kobza.core.files import write_atomic
from kobza.measures import bits_per_byte
from kobza.tokens import pairs
from kobza.training import scratch
from kobza.training.parts import corpus

BATCH = 1024  # tokens
is_full = len(sys.argv) > 4
text, given, compute, folder = sys.argv[1:5] if is_full else ("topics[:20000]", "tiny", "0.0005", "")
seeds, layers, width, heads = (3, 4, 256, 4) if is_full else (1, 1, 32, 2)
part = corpus.split(corpus.documents(text)[0])
keep = Path(folder, "small.json") if folder else None
done = json.loads(keep.read_text()) if keep and keep.exists() else []


def measured(name: str, seed: int) -> dict[str, object]:
    """Train one model and measure it."""
    own = pairs.train(part.train, size=int(name), special=(), pattern="gpt2") if name.isdigit() else None
    vocabulary = own or kobza.vocabulary(name)
    ids = len(vocabulary) if len(vocabulary) < 10_000 else 5_038
    weights = 12 * width**2 * layers + ids * width
    steps = max(2, round(float(compute) * 1e12 / (6 * weights * BATCH)))
    context = 256 if name == "bytes" else 128
    run = scratch.train(
        vocabulary, text, layers=layers, width=width, heads=heads, kv_heads=heads // 2, context=context,
        batch=BATCH // context, steps=steps, optimizer="muon", rate=3e-3, schedule="trapezoid", warmup=20, decay=0.1,
        evaluate=steps, seed=seed,
    )  # fmt: skip
    whole = bits_per_byte.measure(run.model, part.held, window=context, overlap=context // 2, limit=0)
    held = {name: run.history[name][-1] for name in ("held", "held_all")}
    sizes = {"steps": steps, "ids": ids, "parameters": run.model.parameters}
    return {"name": name, "seed": seed, **sizes, **held, "overlap": whole.value}


for seed in range(seeds):
    for name in ("bytes", "2048", "8192", given) if is_full else ("bytes", given):
        if not any((row["name"], row["seed"]) == (name, seed) for row in done):
            done.append(measured(name, seed))
            print(done[-1], flush=True)
            if keep is not None:
                keep.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(keep, json.dumps(done, indent=0))
