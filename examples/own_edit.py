"""An edit of your own is a function from Model to Model; nothing has to be registered to try it.

Here: the rows of the token table in random order. The cloud of vectors stays the same, and so does its spectrum;
only which token owns which vector is lost.

python examples/own_edit.py [MODEL]
"""

import sys

import torch

import kobza
from kobza.measures import bits_per_byte
from kobza.models.model import Change


def shuffle(model: kobza.Model, *, share: float = 0.01, seed: int = 0) -> kobza.Model:
    """Shuffle a share of the rows of the input table among each other."""
    table = model.matrix("embed.in").clone()  # (V, D)
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(table), generator=draw)[: int(share * len(table))]
    table[rows] = table[rows.roll(1)]
    change = Change("shuffle", {"share": share}, ["embed.in"], seed=seed)
    return model.replace({"embed.in": table}, change=change)


model = kobza.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
text = kobza.text("topics[:2000]")
base = bits_per_byte.measure(model, text)
for share in (0.001, 0.01, 0.1):
    reading = bits_per_byte.measure(shuffle(model, share=share), text)
    print(f"{share:6.1%} of the rows shuffled: {reading}, factor {reading.value / base.value:.3f}")
