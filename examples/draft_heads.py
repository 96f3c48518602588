"""Fit draft heads to a model's own distributions, over what it says itself and over a text; keep them in a file.

python examples/draft_heads.py [MODEL FILE TOKENS STEPS]

Half of TOKENS are drawn from the model at temperature 0.7 behind beginnings taken from the text, half are the text.
"""

import sys
import time

import torch

import kobza
from kobza.decoding.hydra import Heads
from kobza.models.stepping import draw, steps

TEXT = "topics"
ROWS, LENGTH, BEGUN = 16, 256, 24


def drawn(model: kobza.Model, ids: torch.Tensor, rows: int, length: int, seed: int) -> torch.Tensor:
    """Return what a model says (rows, length), beginnings included: a new one wherever a text ends is not needed."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.randint(len(ids) - BEGUN, (rows,), generator=generator)
    made = ids[begins[:, None] + torch.arange(BEGUN)]
    run = steps(model, rows)
    logits = run.feed(made)
    while made.shape[1] < length:
        new = torch.tensor([[draw(row, 0.7, 0, 1.0, generator)] for row in logits])
        made = torch.cat([made, new], 1)
        logits = run.feed(new)
    return made


def main() -> None:
    """Draw, fit, save, and say how much it costs and gains."""
    name, file, tokens, count = sys.argv[1:5] if len(sys.argv) > 4 else ("tiny:llama", "", "600", "5")
    model = kobza.open(name)
    ids = torch.tensor(model.tokenizer.encode(kobza.text(TEXT).string))
    begin = time.process_time()
    half, rows = int(tokens) // 2, []
    for seed in range(max(1, half // (ROWS * LENGTH))):
        rows += drawn(model, ids, ROWS, LENGTH, seed).tolist() if file else []
    rows += ids[: half // LENGTH * LENGTH].reshape(-1, LENGTH).tolist()
    print(f"{len(rows)} rows of {LENGTH} tokens after {time.process_time() - begin:.0f} s CPU")
    heads = Heads.fit(model, rows, steps=int(count))
    print(f"fitted after {time.process_time() - begin:.0f} s CPU")
    if file:
        print(heads.save(file))


if __name__ == "__main__":
    main()
