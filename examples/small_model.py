"""Which vocabulary makes the best small model of a text: bytes, 2,048 or 8,192 ids trained on it, or a given one.

python examples/small_model.py [TEXT VOCABULARY COMPUTE FOLDER]

TEXT is the text, VOCABULARY "bytes", a number of ids, or a file; COMPUTE how many times 1e12 multiplications are spent,
6 per weight (blocks and head) and token; FOLDER where the run is kept and resumed. The vocabulary is trained on the
training part alone. The embedded model `kobzar` is TEXT kobzar.txt, VOCABULARY 2048, COMPUTE 18.5, saved as bfloat16;
vocabularies were compared at COMPUTE 12 without dropout.
"""

import sys
from pathlib import Path

import kobza
from kobza.measures import bits_per_byte
from kobza.tokens import pairs
from kobza.training import scratch
from kobza.training.parts import corpus

BATCH = 1024  # tokens

arguments = sys.argv[1:] if len(sys.argv) > 2 else ["topics[:20000]", "300", "0.02", ""]
text, name, compute, folder = arguments[0], arguments[1], float(arguments[2]), arguments[3]
layers, width, heads = (4, 256, 4) if folder else (1, 32, 2)

part = corpus.split(corpus.documents(text)[0])
if name.isdigit():
    vocabulary = pairs.train(part.train, size=int(name), special=(), pattern="gpt2")
else:
    vocabulary = kobza.vocabulary(name)
ids = len(vocabulary) if len(vocabulary) < 10_000 else 5_038
weights = 12 * width**2 * layers + ids * width
steps = max(3, round(compute * 1e12 / (6 * weights * BATCH)))
context = 256 if name == "bytes" else 128
print(f"{name}: {ids} ids, {weights:,} weights in products, {steps} steps")
run = scratch.train(
    vocabulary, text, layers=layers, width=width, heads=heads, kv_heads=heads // 2, context=context,
    batch=BATCH // context, steps=steps, optimizer="muon", rate=3e-3, schedule="trapezoid", warmup=20,
    decay=0.1, dropout=0.15,
    evaluate=max(1, steps // 12), patience=99, folder=folder, tell=print,
)  # fmt: skip
print(run.history)
print({key: value for key, value in run.facts.items() if key != "notes"})
print(bits_per_byte.measure(run.model, part.held, window=context, overlap=context * 3 // 4, limit=0))
if folder:
    print(run.model.save(Path(folder, "model")))
