"""What a small adapter learns from a text, and what it costs elsewhere.

python examples/adapt.py [MODEL [TEXT STEPS]]
"""

import sys

import kobza
from kobza.measures import bits_per_byte
from kobza.training import sft

model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
text = sys.argv[2] if len(sys.argv) > 2 else "ukrainian"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 6
run = sft.train(
    model, text, adapter="lora:rank=8", steps=steps, rate=1e-3, batch=2, context=256, warmup=steps // 10,
    held=0.03, evaluate=max(1, steps // 4), tell=print,
)  # fmt: skip
print(run.history)
for other in ("topics[:3000]", "source[:2000]"):
    before, after = (bits_per_byte.measure(m, other) for m in (model, run.model))
    print(f"{other}: {before.value:.4f} -> {after.value:.4f} bit/B; {before.compare(after)}")
print(
    f"adapter: {run.adapter.parameters:,} numbers, state of the optimizer {run.facts['optimizer_state_bytes']:,} bytes"
)
