"""Train a model from nothing on several domains, and find how much of each: DoReMi, Skill-it, learnable windows.

doremi     a reference model is trained on all domains alike; a second one against the worst excess loss over it, which
           moves the weights; their mean over its run are the weights of the third
skillit    what training on domain i does for the loss of domain j is tried out first; while training, the weights
           follow what helps the domains whose held-out loss is high
learnable  of more windows than fit into a batch, those are taken whose loss lies highest above that of a reference
           model: neither known yet nor noise
uniform    every domain alike; the yardstick for the others

Sources: Xie et al. (2023), arXiv:2305.10429 (DoReMi), algorithm 1; Chen et al. (2023), arXiv:2307.14430 (Skill-it),
algorithms 1 and 2; Mindermann et al. (2022), arXiv:2206.07137 (RHO loss), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.models.model import Model, Origin
from kobza.tokens.base import Tokenizer
from kobza.training import base
from kobza.training.base import Given, Job, Run
from kobza.training.parts import classic, corpus, sizing
from kobza.training.parts.classic import Sizes
from kobza.training.parts.losses import mean_loss
from kobza.training.parts.ranks import ranks

SMOOTHING = 1e-3  # of DoReMi's weights, towards equal ones
POOL = 4  # windows looked at for each that is learned from, by `learnable`
TRIAL = 10  # a trial of Skill-it takes a tenth of the steps
HELD_TOKENS = 4096  # of a domain, for the weights of Skill-it


def train(
    model: Model | Tokenizer,
    text: Mapping[str, Given] | Given,
    *,
    by: Literal["doremi", "skillit", "learnable", "uniform"] = "doremi",
    strength: float = 1.0,
    size: int = 2,
    width: int = 0,
    heads: int = 0,
    context: int = 64,
    batch: int = 8,
    steps: int = 500,
    rate: float = 0.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    held: float = 0.1,
    evaluate: int = 0,
    folder: str = "",
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Train a Llama-type model on a mixture of domains.

    Args:
        model: whose vocabulary is used, or a vocabulary.
        text: domain -> text; or rows with "text" and "domain"; or texts with semicolons, "topics;poems.txt".
        by: how the weights of the domains are found.
        strength: of a step of the weights [ratio, 0 < ..].
        size: layers [count, 1 ..].
        width: D [count, 0 ..]; 0 is 64 per layer.
        heads: of attention [count, 0 ..]; 0 is one per 64 of the width.
        context: tokens of a window [count, 1 ..].
        batch: windows of one batch [count, 1 ..].
        steps: updates of each model that is trained [count, 1 ..].
        rate: highest learning rate [per step, 0 ..]; 0: by the width.
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share of each domain that is held out [fraction, 0 < .. below 1].
        evaluate: updates between two looks at the held-out parts [count, 0 ..]; 0: a twelfth of the budget.
        folder: where checkpoints and logs of all models go; the same call goes on from there.
        seed: of weights and batches [0 ..].
        tell: is told the prediction of memory and time, and what is being done.

    Returns:
        A Run. "held" is the mean of the domains' bits per byte, "held NAME" those of each, "weight NAME" its share of
        the next batches (learnable: of the windows chosen since the look before); facts have the last "weights".

    Raises:
        EmptyText: a domain without text. OutOfRange: a number outside its range. BadValue: several ranks.

    Cost: doremi trains three models, learnable two and reads `POOL` batches a step, skillit tries a tenth per domain.
    """
    if not strength > 0 or not 0 < held < 1:
        raise OutOfRange(f"strength {strength} must be above 0, held {held} between 0 and 1.")
    if ranks().world > 1:  # each rank would move weights of its own
        raise BadValue("a mixture is trained by one process.", "Start it without torchrun.")
    tokenizer = model if isinstance(model, Tokenizer) else model.tokenizer
    width = width or 64 * size
    heads = heads or max(1, width // 64)
    sizes = Sizes(size, width, heads, heads, 32 * math.ceil(8 * width / 3 / 32), context)
    how = base.plan(steps, rate=rate or 4e-3 * math.sqrt(64 / width), evaluate=evaluate, precision=precision, seed=seed)
    domains = _domains(text, tokenizer, held, context, batch)
    place = Path(folder) if folder else None
    mix = _Mix(domains, tokenizer, sizes, how, strength, tell or (lambda line: None), place)
    foreseen = sizing.predict(mix.fresh(), tokens=batch * context, optimizer="adamw", precision=how.dtype)
    mix.tell(f"each model: {foreseen.told(how.budget)}")
    module, history, facts = mix.trained(by)
    history.figures.append(_shares(history, domains))
    facts |= {"parameters": foreseen.parameters, "predicted_bytes": foreseen.bytes, "notes": []}
    facts |= {"predicted_seconds": foreseen.seconds, "domains": [d.name for d in domains]}
    facts["weights"] = {d.name: history.rows[-1][f"weight {d.name}"] for d in domains}
    label = f"mixture {size} x {width}"
    origin = Origin(f"trained: {label}", kind="trained", notes=(f"trained by kobza, {by}",))
    return Run(Model(label.replace(" ", ""), module.requires_grad_(False), tokenizer, origin=origin), history, facts)


@dataclass
class _Domain:
    """A domain: windows to train on, tokens held out."""

    name: str
    windows: corpus.Windows
    held: corpus.Held


def _domains(
    text: Mapping[str, Given] | Given, tokenizer: Tokenizer, share: float, context: int, batch: int
) -> list[_Domain]:
    found = []
    for name, given in named(text).items():
        texts, _ = corpus.documents(given)
        part = corpus.split(texts, share)
        windows = corpus.Windows(corpus.encoded(part.train, tokenizer), batch, context, tokenizer.start_id)
        found.append(_Domain(name, windows, corpus.Held.of(part, tokenizer)))
    return found


def _shares(history: Table, domains: Sequence[_Domain]) -> Figure:
    """Return the weights of the domains over the steps."""
    series = [{"name": d.name, "x": history["step"], "y": history[f"weight {d.name}"]} for d in domains]
    caption = "Shares of the next batches (learnable: of the windows chosen since the look before)."
    return Figure("lines", {"series": series}, title="Weights of the domains", caption=caption, x="step", y="share")


def named(text: Mapping[str, Given] | Given) -> Mapping[str, Given]:
    """Return the texts by domain.

    >>> named([{"text": "a", "domain": "x"}, {"text": "b", "domain": "y"}, {"text": "c", "domain": "x"}])
    {'x': ['a', 'c'], 'y': ['b']}
    >>> named("topics;lyrics/poems.txt")
    {'topics': 'topics', 'poems.txt': 'lyrics/poems.txt'}
    """
    if isinstance(text, Mapping):
        if not text:
            raise BadValue("there is no domain.", "Give at least one text.")
        return text
    if isinstance(text, str) and ";" in text:
        parts = text.split(";")
        short = [part.rpartition("/")[2] for part in parts]
        return dict(zip(short if len({*short}) == len(parts) else parts, parts, strict=True))
    if not corpus.is_rows(text):
        return {"text": text}
    found: dict[str, list[str]] = {}
    for row in corpus.rows(text, ("text",)):
        name = str(row.get("domain", "text")) if isinstance(row, Mapping) else "text"
        found.setdefault(name, []).append(row["text"] if isinstance(row, Mapping) else row)
    return found


@dataclass
class _Mix:
    """A mixture under training; a checkpoint holds the three tensors (K,), which change in place.

    `weights` are the shares of the next batch, `chosen` counts the windows chosen since the last look, `seen` sums what
    moves the weights.
    """

    domains: Sequence[_Domain]
    tokenizer: Tokenizer
    sizes: Sizes
    how: base.Plan
    strength: float
    tell: Callable[[str], None]
    folder: Path | None = None
    weights: Tensor = field(init=False)
    chosen: Tensor = field(init=False)
    seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.weights = self.even()
        self.chosen, self.seen = torch.zeros(2, len(self.domains))

    def even(self) -> Tensor:
        """Return equal shares."""
        return torch.full((len(self.domains),), 1 / len(self.domains))

    def fresh(self) -> Any:
        """Return a model that has learned nothing."""
        return classic.build("llama", self.sizes, self.tokenizer, seed=self.how.seed, tied=True)

    def trained(self, by: str) -> tuple[Any, Any, dict[str, Any]]:
        """Return the trained module, its history and facts."""
        if by == "doremi":
            self.tell("a reference model on all domains alike")
            reference, _, _ = self.run("reference")
            self.tell("weights against the worst excess loss")
            self.weights.copy_(self.proxy(reference))
            self.tell("the model itself")
            return self.run("doremi")
        if by == "skillit":
            effects = self.effects()
            return self.run("skillit", after=self.follow(effects))
        if by == "learnable":
            self.tell("a reference model on all domains alike")
            reference, _, _ = self.run("reference")
            return self.run("learnable", reference=reference)
        return self.run("uniform")

    def run(
        self, label: str, *, reference: Any = None, after: Callable[[Any], Callable[[int, Any], None]] | None = None,
        steps: int = 0,
    ) -> tuple[Any, Table, dict[str, Any]]:  # fmt: skip
        """Train a fresh model with the present weights; `reference` chooses windows, `after` moves the weights."""
        module = self.fresh()
        job = Job(
            module,
            draw=lambda generator: self.draw(generator, POOL if reference is not None else 1),
            loss=lambda rows: self.loss(module, rows, reference),
            measure=None if steps else lambda: self.held(module),
            batch_tokens=self.domains[0].windows.batch * self.sizes.context,
            label=label,
            after=after(module) if after else None,
            also={"weights": self.weights, "chosen": self.chosen, "seen": self.seen},
        )
        plan = (
            base.plan(steps, rate=self.how.rate, precision=self.how.precision, seed=self.how.seed)
            if steps
            else self.how
        )
        history, facts = base.run(job, plan, folder=self.folder and self.folder / label)
        return module, history, facts

    def draw(self, generator: torch.Generator, times: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return (read, to predict, domain) of windows whose domains are drawn by the weights."""
        count = self.domains[0].windows.batch * times
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.windows(chosen, generator)

    def windows(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return (read, to predict, domain) of one window of each domain in `chosen` (B,)."""
        pairs = []
        for number in chosen.tolist():
            read, wanted = self.domains[number].windows.draw(generator)
            pairs.append((read[:1], wanted[:1]))
        return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]), chosen

    def loss(self, module: Any, rows: tuple[Tensor, ...], reference: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss, over the windows furthest above a reference where there is one."""
        read, wanted, domain = rows
        if reference is not None:
            with torch.no_grad():
                gain = _window_losses(module, read, wanted) - _window_losses(reference, read, wanted)
            best = gain.topk(len(read) // POOL).indices
            read, wanted = read[best], wanted[best]
            self.chosen += domain[best].bincount(minlength=len(self.domains))
        return mean_loss(module, read, wanted)[0], {}

    def held(self, module: Any) -> dict[str, float]:
        """Return the held-out figures of all domains, their mean first, and the weights."""
        bits = {
            f"held {d.name}": base.held_bits(module, d.held, context=self.sizes.context, start=d.windows.start)["held"]
            for d in self.domains
        }
        counted = self.chosen / self.chosen.sum() if self.chosen.any() else self.weights
        shares = {f"weight {d.name}": float(w) for d, w in zip(self.domains, counted, strict=True)}
        self.chosen.zero_()
        return {"held": sum(bits.values()) / len(bits), **bits, **shares}

    def proxy(self, reference: Any) -> Tensor:
        """Return DoReMi's weights: the mean over a run that minimizes the worst excess loss over the reference."""
        module, count, now = self.fresh(), len(self.domains), self.even()
        self.seen.zero_()
        every = torch.arange(self.domains[0].windows.batch * -(-count // self.domains[0].windows.batch)) % count

        def loss(rows: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, float]]:
            read, wanted, chosen = rows
            with torch.no_grad():
                excess = (_token_losses(module, read, wanted) - _token_losses(reference, read, wanted)).relu().mean(1)
            now.copy_(group_step(now, _by_domain(excess, chosen, count), self.strength))
            self.seen += now
            # each domain counts by its weight, however many windows of it there are
            shares = (now / chosen.bincount(minlength=count))[chosen]
            return mean_loss(module, read, wanted, shares[:, None].expand_as(wanted) / wanted.shape[1])[0], {}

        also = {"weights": now, "seen": self.seen}
        job = Job(module, draw=lambda g: self.windows(every, g), loss=loss, label="weights", also=also)
        plan = base.plan(self.how.budget, rate=self.how.rate, precision=self.how.precision, seed=self.how.seed)
        base.run(job, plan, folder=self.folder and self.folder / "weights")
        return self.seen / self.seen.sum()

    def effects(self) -> Tensor:
        """Return A (K, K): the share of domain j's loss that a short training on domain i takes away."""
        few = max(2, (self.how.budget.steps or TRIAL) // TRIAL)
        before = self.losses(self.fresh())
        rows = []
        for number, domain in enumerate(self.domains):
            self.tell(f"what {few} steps on {domain.name!r} do for all")
            self.weights.zero_()[number] = 1.0
            module, _, _ = self.run(f"trial-{number}", steps=few)
            rows.append(((before - self.losses(module)) / before).clamp(min=0))
        self.weights.copy_(self.even())
        return torch.stack(rows)

    def follow(self, effects: Tensor) -> Callable[[Any], Callable[[int, Any], None]]:
        """Return what moves the weights of Skill-it at every look."""

        def of(module: Any) -> Callable[[int, Any], None]:
            def after(step: int, _: Any) -> None:
                if step % self.how.looks == 0:
                    self.seen += self.losses(module)
                    self.weights.copy_((self.strength * (effects @ self.seen)).softmax(-1))

            return after

        return of

    @torch.no_grad()
    def losses(self, module: Any) -> Tensor:
        """Return the held-out losses of the domains (K,) in nats per token."""
        was_training = module.training
        module.eval()
        found = []
        for domain in self.domains:
            most = HELD_TOKENS // self.sizes.context
            windows = [
                pair
                for _, pair in zip(
                    range(most), domain.held.windows(self.sizes.context, domain.windows.start), strict=False
                )
            ]
            found.append(
                torch.cat([_token_losses(module, read, wanted).flatten() for read, wanted, _ in windows]).mean()
            )
        module.train(was_training)
        return torch.stack(found)


def group_step(weights: Tensor, excess: Tensor, strength: float) -> Tensor:
    """Return DoReMi's next weights (K,): multiplied by exp(strength x excess), renormalised, and smoothed.

    >>> group_step(torch.tensor([0.5, 0.5]), torch.tensor([0.6931472, 0.0]), 1.0).tolist()
    [0.6664999723434448, 0.3334999978542328]
    """
    moved = (weights.log() + strength * excess).softmax(-1)
    return (1 - SMOOTHING) * moved + SMOOTHING / len(weights)


def _by_domain(values: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Return the mean (K,) of values (B,) over the windows of each domain."""
    sums = torch.zeros(count).index_add(0, chosen, values.float())
    return sums / chosen.bincount(minlength=count).clamp(min=1)


def _token_losses(module: Any, read: Tensor, wanted: Tensor) -> Tensor:
    return mean_loss(module, read, wanted)[1].reshape(wanted.shape)


def _window_losses(module: Any, read: Tensor, wanted: Tensor) -> Tensor:
    return _token_losses(module, read, wanted).mean(1)
