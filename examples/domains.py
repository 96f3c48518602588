"""What to read: equal shares, DoReMi, Skill-it and learnable windows on three domains and on noise.

    python examples/domains.py [VOCABULARY [STEPS [SEEDS [TEXT]]]]    (LOG.md: bytes 1000 3 kobzar.txt)

A Llama-type model of two layers over bytes; prose and code of Python's documentation and sources, TEXT (without one the
short Ukrainian text that is built in, 2,971 bytes), and random noise; 60,000 bytes of each at most. Held-out bits per
byte of each domain behind equal steps of the last model.
"""

import random
import sys

import torch

import kobza
from kobza.core.table import Table
from kobza.training import mixture

torch.set_num_threads(1)
vocabulary = kobza.vocabulary(sys.argv[1] if len(sys.argv) > 1 else "bytes")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 2
seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 1
draw = random.Random(0)
names = {"topics": "topics", "source": "source", "poems": sys.argv[4] if len(sys.argv) > 4 else "ukrainian"}
domains = {key: kobza.text(f"{name}[:60000]").data.decode("utf-8", "ignore").encode() for key, name in names.items()}
domains["noise"] = "".join(chr(draw.randrange(33, 127)) for _ in range(60000)).encode()
rows = []
for by in ("uniform", "doremi", "skillit", "learnable"):
    for seed in range(seeds):
        run = mixture.train(vocabulary, domains, by=by, size=2, width=64, heads=4, context=64, steps=steps, seed=seed)
        last = list(run.history)[-1]
        held = {name: last[f"held {name}"] for name in domains}
        shares = {f"share {name}": last[f"weight {name}"] for name in domains}
        true = sum(held[name] for name in domains if name != "noise") / (len(domains) - 1)
        rows.append({"by": by, "seed": seed, "without noise": true, **held, **shares})
        print(rows[-1], flush=True)
print(Table(rows, title=f"{steps} steps", note="held-out bits per byte; shares of the last batch"))
