"""Train a model whose early layers speak too, so that it can draft for itself; and, for comparison, one without.

python examples/exit_loss.py [TEXT FOLDER BUDGET [LOSS]]

TEXT is the text, FOLDER where the run is kept and resumed (the model lies in FOLDER/model), BUDGET as in "480s" or
"900steps"; LOSS "exit" (default) or "last". The exit loss: the final norm and head read out one early layer more at
every step, in turn, and its cross entropy is added; whole blocks are dropped, later ones more often, so that early
ones learn to finish the work.

Source: Elhoushi et al. (2024), LayerSkip, arXiv:2404.16710, sections 4.1 and 4.2.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kobza
from kobza.core import techniques
from kobza.models.model import Model, Origin
from kobza.models.states import body
from kobza.tokens import pairs
from kobza.training import base
from kobza.training.parts import classic, corpus
from kobza.training.parts.losses import linear_cross_entropy

CONTEXT = 128  # tokens
WEIGHT = 0.5  # of the exit's loss beside the last layer's
DROP = 0.1  # of the last block; earlier ones less, as exp(ln 2 n / (L - 1)) - 1 does


class Exits:
    """What the blocks write, heard by hooks; and blocks passed over by chance while training."""

    def __init__(self, module: Any, drop: float) -> None:
        self.module, self.states, self.turn = module, list[Tensor](), 0
        self.layers = len(module.model.layers)
        for n, block in enumerate(module.model.layers):
            share = drop * (2 ** (n / max(1, self.layers - 1)) - 1)
            block.register_forward_hook(lambda part, read, out, share=share: self._after(part, read, out, share))

    def _after(self, part: Any, read: Any, out: Any, share: float) -> Any:
        wrote = out[0] if isinstance(out, tuple) else out
        if part.training and share and float(torch.rand(())) < share:
            wrote = read[0]
        self.states.append(wrote)
        return (wrote, *out[1:]) if isinstance(out, tuple) else wrote

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of the last layer and of the exit whose turn it is."""
        read, targets = batch
        self.states = []
        last = body(self.module, input_ids=read)
        self.turn = self.turn % (self.layers - 1) + 1
        early = self.module.model.norm(self.states[self.turn - 1])
        found = [self._entropy(states, targets) for states in (last, early)]
        return found[0] + WEIGHT * found[1], {"exit": float(found[1].detach())}

    def _entropy(self, states: Tensor, targets: Tensor) -> Tensor:
        loss, _ = linear_cross_entropy(states.flatten(0, 1), self.module.lm_head.weight, targets.flatten())
        return loss


def train(text: str, folder: str, budget: str, *, layers: int, width: int, is_exit: bool) -> Model:
    """Train a byte-pair model of 512 ids; the last tenth of the text is held out."""
    part = corpus.split(corpus.documents(text)[0])
    tokenizer = pairs.train(part.train, size=512, special=(), pattern="gpt2")
    windows = corpus.Windows(corpus.encoded(part.train, tokenizer), 8, CONTEXT)
    heads = max(1, width // 64)
    sizes = classic.Sizes(layers, width, 2 * heads, heads, 32 * (width // 12), CONTEXT)
    module = classic.build("llama", sizes, tokenizer, seed=0)
    exits = Exits(module, DROP if is_exit else 0.0)
    held = corpus.Held.of(part, tokenizer)
    job = base.Job(
        module, windows.draw, exits.loss if is_exit else lambda rows: (base.mean_loss(module, *rows)[0], {}),
        measure=lambda: base.held_bits(module, held, context=CONTEXT), batch_tokens=8 * windows.context,
        label="exit loss",
    )  # fmt: skip
    how = base.plan(budget, optimizer="muon", rate=3e-3, schedule="trapezoid", warmup=20, decay=0.1, evaluate=100)
    history, facts = base.run(job, how, folder=folder or None)
    for block in module.model.layers:
        block._forward_hooks.clear()
    print(history, facts["ended"], sep="\n")
    origin = Origin("trained: exit loss", kind="trained", notes=("trained by kobza",))
    return Model("exits" if is_exit else "last", module.eval(), tokenizer, origin=origin)


def acceptance(model: Model, prompt: str, tokens: int) -> dict[int, float]:
    """Return how often each early layer names the token that the last one says, over a greedy text."""
    from kobza.models.stepping import steps

    said = techniques.verb("decoding", "greedy")(model, prompt, tokens=tokens)
    run, hits = steps(model), dict.fromkeys(range(1, model.layers), 0)
    for fed, right in zip([said.prompt_ids, *([id] for id in said.ids)], said.ids, strict=False):
        found = run.feed_layers([fed], list(hits))
        for n in hits:
            hits[n] += int(found[n].argmax()) == right
    return {n: count / len(said.ids) for n, count in hits.items()}


def main() -> None:
    """Train, save, and show what the exits are worth."""
    torch.manual_seed(0)
    given = sys.argv[1:] if len(sys.argv) > 3 else ["topics[:20000]", "", "5steps"]
    text, folder, budget, *kind = given
    layers, width = (12, 320) if folder else (3, 32)
    model = train(text, folder, budget, layers=layers, width=width, is_exit=kind != ["last"])
    if folder and not Path(folder, "model").exists():
        print(model.save(Path(folder, "model")))
    model = kobza.open(str(Path(folder, "model"))) if folder else model
    for n, share in acceptance(model, "The river", 32 if not folder else 96).items():
        print(f"layer {n:2}: {share:.2f} of its tokens are those of the last layer")


if __name__ == "__main__":
    main()
