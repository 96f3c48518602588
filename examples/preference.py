"""A rule as a preference (short, no digit): what each objective reaches, and what it costs.

python examples/preference.py [MODEL [STEPS]]

The rule's rate is counted on held-out prompts, greedy answers of 32 tokens; the cost is the divergence from the model
as it was, and bits per byte, both on English prose that has nothing to do with it.
"""

import re
import sys

import kobza
from kobza.core.table import Table
from kobza.measures import bits_per_byte, divergence
from kobza.models.forward import generate
from kobza.training import dpo, grpo, orpo, sft
from kobza.training.parts.answers import prompt_ids

THINGS = [
    "a kobza",
    "a river",
    "a village",
    "a violin",
    "the Moon",
    "a bridge",
    "a horse",
    "a winter",
    "a poem",
    "a sea",
]
ASKED = ["How old is {}?", "How long is {}?", "How much does {} cost?", "Tell me about {}."]
SHORT, MOST_WORDS = {"chosen": "That differs from one to another.", "rejected": ""}, 12
TEXT = "topics[:1500]"

model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 2
prompts = [ask.format(thing) for thing in THINGS for ask in ASKED]
rows = [
    {
        "prompt": prompt,
        "chosen": SHORT["chosen"],
        "rejected": f"There are {n + 2} kinds, between {n * 10} and {n * 90}.",
    }
    for n, prompt in enumerate(prompts)
]
train, held = rows[:32], [row["prompt"] for row in rows[32:]]
if model.context is None or model.tokenizer.chat_template is None:
    held = held[:2]


def follows(answer: str) -> bool:
    """Say whether an answer is short and has no digit."""
    return not re.search(r"\d", answer) and len(answer.split()) <= MOST_WORDS


def measured(name: str, tuned: kobza.Model) -> dict[str, float | str]:
    """Return the rule's rate and the costs."""
    said = []
    for prompt in held:
        ids = prompt_ids(prompt, tuned.tokenizer, chat=True)
        end = tuned.tokenizer.end_id
        said.append(tuned.tokenizer.text(i for i, _ in generate(tuned, ids, tokens=32, stop={end})))
    print(f"{name}: {said[0]!r}", flush=True)
    rate = sum(map(follows, said)) / len(said)
    away = divergence.measure(tuned, kobza.text(TEXT), original=model).value
    return {"objective": name, "rule": rate, "KL": away, "bits_per_byte": bits_per_byte.measure(tuned, TEXT).value}


how = {"adapter": "lora:rank=8", "steps": steps, "rate": 3e-4, "context": 128, "held": 0.0, "evaluate": 1000}
found = [measured("none", model)]
for name, train_it in (
    ("sft", lambda: sft.train(model, train, answer="chosen", batch=2, **how)),
    ("dpo", lambda: dpo.train(model, train, batch=2, **how)),
    ("orpo", lambda: orpo.train(model, train, batch=2, **how)),
    ("grpo", lambda: grpo.train(model, train, reward="short+no_digit", tokens=24, **how)),
):
    found.append(measured(name, train_it().model))
print(Table(found, units={"KL": "bit/token", "bits_per_byte": "bit/B"}, title=f"{steps} steps on 32 pairs"))
