"""Change a model and measure what changed: rank 2/3 of the token table, by its size and by what its text uses.

python examples/edit_and_measure.py [MODEL]
"""

import sys

import kobza
from kobza.edits import lowrank, random_projection
from kobza.measures import bits_per_byte

model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
text = kobza.text("topics[:4000]")
rank = model.width * 2 // 3

base = bits_per_byte.measure(model, text)
print(base)
for edited in (lowrank.apply(model, rank=rank), random_projection.apply(model, rank=rank, seed=0)):
    reading = bits_per_byte.measure(edited, text)
    gap = base.compare(reading)
    print(f"{edited.changes[-1]}\n    {reading}\n    {gap}  factor {reading.value / base.value:.3f}")
