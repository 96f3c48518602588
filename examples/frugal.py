"""What a step needs beside the weights: all weights, LoRA, ReLoRA, GaLore at equal steps, by loss and bytes of state.

python examples/frugal.py [MODEL [TEXT STEPS]]
"""

import statistics
import sys

import kobza
from kobza.core.table import Table
from kobza.training import sft

model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "tiny")
text = sys.argv[2] if len(sys.argv) > 2 else "topics[:20000]"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 4
WAYS = {
    "all weights, AdamW": {"adapter": "none", "rate": 1e-3},
    "all weights, Muon": {"adapter": "none", "rate": 1e-3, "optimizer": "muon"},
    "all weights, GaLore 32": {"adapter": "none", "rate": 4e-3, "optimizer": "galore", "rank": 32},
    "all weights, Adafactor": {"adapter": "none", "rate": 1e-3, "optimizer": "adafactor"},
    "all weights, schedule-free": {
        "adapter": "none",
        "rate": 2e-3,
        "optimizer": "schedule_free",
        "schedule": "constant",
    },
    "LoRA 8": {"adapter": "lora:rank=8", "rate": 4e-3},
    "ReLoRA 8": {"adapter": f"lora:rank=8,merge_every={max(1, steps // 4)}", "rate": 4e-3},
    "DoRA 8": {"adapter": "dora:rank=8", "rate": 4e-3},
    "IA3": {"adapter": "ia3", "rate": 1e-2},
}
rows = []
for name, way in WAYS.items():
    held = []
    for seed in range(2):
        run = sft.train(
            model, text, steps=steps, batch=4, context=128, evaluate=10 * steps, warmup=steps // 10, seed=seed, **way
        )
        held.append(run.history["held"][-1])
    begin = run.history["held"][0]
    spread = statistics.stdev(held)
    facts = run.facts
    rows.append(
        {"way": name, "before": begin, "held": statistics.mean(held), "spread": spread}
        | {"trained": facts["trained_parameters"], "state": facts["optimizer_state_bytes"]}
    )
    print(rows[-1], flush=True)
print(Table(rows, units={"held": "bit/B", "before": "bit/B", "state": "bytes"}, title=f"{steps} steps, two seeds"))
