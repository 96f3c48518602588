"""Train the poems GPT and look at the curve nobody looked at: held-out bits per byte, with and without what leaks.

python examples/train_poems.py [TEXT VOCABULARY [FOLDER]]

TEXT is the book, VOCABULARY a .tiktoken file (o200k_base), FOLDER where the run is kept and resumed. Without them, or
with the word "tiny", a small model learns a text that is always at hand.
"""

import sys
from pathlib import Path

import kobza
from kobza.models.forward import generate
from kobza.training import scratch

PROMPTS = [
    "Як умру",
    "Україна",
    "Кайдан",
    "Місяць",
    "Мороз и солнце; день чудесный",
    "Once upon a time",
    "我在那里,",
    "",
]

if len(sys.argv) > 2:
    text, vocabulary = Path(sys.argv[1]), kobza.vocabulary(sys.argv[2])
    folder, size, steps = (sys.argv[3] if len(sys.argv) > 3 else "poems"), 12, 3000
else:
    text, vocabulary, folder, size, steps = "topics[:20000]", kobza.vocabulary("tiny"), "", 1, 20

run = scratch.train(
    vocabulary, text, kind="classic", size=size, steps=steps, schedule="constant", clip=0.0, decay=0.01,
    evaluate=steps // 12, folder=folder, tell=print,
)  # fmt: skip
print(run.history)
print({key: value for key, value in run.facts.items() if key != "notes"})
model = run.model
for prompt in PROMPTS:
    begun = model.tokenizer.encode(prompt or "\n")
    room = (model.context or 32) - len(begun)
    said = [id for id, _ in generate(model, begun, tokens=max(0, room), temperature=0.8, top_p=0.95)]
    print(f"{prompt!r}: {model.tokenizer.text(said)!r}")
if folder and not Path(folder, "model").exists():
    print(model.save(Path(folder, "model")))
