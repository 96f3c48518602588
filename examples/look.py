"""Look inside: what a model is made of, how its text falls into tokens, which tokens lie near each other.

python examples/look.py [MODEL]
"""

import sys

import kobza
from kobza.embeddings import neighbors

model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
print(model)

for token in model.tokenizer.split(" lava flows"):
    print(f"{token.id:>6}  bytes {token.start:>2} to {token.end:<2} {model.tokenizer.show(token.id)!r}")

print(neighbors.table(model, token=" l", k=5))
