"""Train the poems GPT and look at the curve nobody looked at: held-out bits per byte, with and without what leaks.

python examples/train_poems.py [TEXT VOCABULARY [FOLDER [SEED STEPS]]]

TEXT is the book, VOCABULARY a .tiktoken file (o200k_base), FOLDER where the run is kept and resumed (poems-SEED for
bench/training_pages.py). Without them, or with the word "tiny", a small model learns a text that is always at hand.
What it says is drawn twice: freely, and from the alphabet of its text alone.
"""

import sys
from pathlib import Path

import kobza
from kobza.decoding import alphabet, sample
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
    folder, size = (sys.argv[3] if len(sys.argv) > 3 else "poems-0"), 12
    seed, steps = (int(word) for word in (sys.argv[4:6] or (0, 3000)))
else:
    text, vocabulary, folder, size, seed, steps = "topics[:20000]", kobza.vocabulary("tiny"), "", 1, 0, 20

run = scratch.train(
    vocabulary, text, kind="classic", size=size, steps=steps, schedule="constant", clip=0.0, decay=0.01,
    evaluate=250 if folder else 2, folder=folder, alphabet=True, seed=seed, tell=print,
)  # fmt: skip
print(run.history)
print({key: value for key, value in run.facts.items() if key != "notes"})
model = run.model
for prompt in PROMPTS:
    begun = model.tokenizer.encode(prompt or "\n")
    room = (model.context or 32) - len(begun) - 1  # a start token
    if room < 1:
        continue  # a small vocabulary spells it in more tokens than the model reads
    how = {"tokens": room, "temperature": 0.8, "top_p": 0.95, "seed": 1}
    free = sample.generate(model, prompt or "\n", **how)
    held = alphabet.generate(model, prompt or "\n", of=str(text), **how)
    print(f"{prompt!r}: {free.text!r}, of the alphabet {held.text!r}")
if folder and not Path(folder, "model").exists():
    print(model.save(Path(folder, "model")))
