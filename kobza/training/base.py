"""The one training loop: batches, updates, the held-out figure, checkpoints, and going on after a kill.

A technique of this room gives `train(model, text, *, ..., seed=0) -> Run`. `text` is a named text, a path (text,
.jsonl, .json, .parquet), bytes, a Text, or a list of strings or rows. The model given is never changed.

Every row of the log holds all three coins a budget can be paid in: steps, seconds, held-out bits per byte. A run whose
budget is in steps is the same to the bit however often it was killed and resumed.

Source: the loop is plain stochastic gradient descent with clipping (Pascanu et al. 2013, arXiv:1211.5063) and
accumulation; what it holds on to is documented in `training.parts`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core import resident
from kobza.core.errors import BadValue, NotFinite, OutOfRange
from kobza.core.files import sha256, write_atomic
from kobza.core.progress import Task, task
from kobza.core.table import Table
from kobza.models.model import Model
from kobza.training.parts import checkpoints, optimizers, sizing
from kobza.training.parts.corpus import Given, Held
from kobza.training.parts.log import Log, curves
from kobza.training.parts.losses import mean_loss
from kobza.training.parts.precision import autocast, first_not_finite, has_bfloat16
from kobza.training.parts.ranks import Sharding, cut_like, ranks, whole
from kobza.training.parts.schedules import Budget, budget, rate_at

__all__ = ["Given", "Job", "Plan", "Run", "autocast", "held_bits", "plan", "run"]

SAMPLED = 4  # looks between two texts that the model writes
LOOKS = 12  # of a run, where nobody says otherwise
SHARE = 0.2  # of a budget of seconds that looks may take
TOLD = 0.1  # seconds between two words on progress
OLD = 300.0  # seconds after which a checkpoint is due, whether the held-out text is looked at or not
BITS = "bit/B"
UNITS = {"seconds": "s", "tokens": "tokens", "loss": "nats", "held_all": BITS, "tokens_per_second": "tokens/s"}
CALMER = ("rate", "warmup", "clip", "precision")  # what may change where a run broke off at values not finite
BROKEN = "not-finite.json"


@dataclass(frozen=True)
class Plan:
    """How to train, plain data.

    Attributes:
        budget: when to stop.
        optimizer: its name; `rank` is GaLore's.
        rate, decay, betas: of the optimizer.
        schedule, warmup, floor: how the rate runs (see `schedules.rate_at`).
        clip: norm to which longer gradients are shortened, 0 leaves them.
        accumulate: batches of one update.
        precision: "auto" (bfloat16 products where the processor has them), "float32" or "bfloat16".
        evaluate: updates between two looks at the held-out text, 0: a twelfth of the steps, or else of the seconds.
        checkpoint: updates between two checkpoints, 0: at every look, and every five minutes in any case.
        patience: looks without a new minimum before the run ends, 0: never; then the best weights are returned.
        sharded: cut parameters, gradients and optimizer state among the ranks (adamw).
        seed: of the batches and of everything else that is drawn.
    """

    budget: Budget
    optimizer: str = "adamw"
    rank: int = 64
    rate: float = 1e-3
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup: int = 0
    floor: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "auto"
    evaluate: int = 0
    checkpoint: int = 0
    patience: int = 0
    sharded: bool = False
    seed: int = 0

    @property
    def looks(self) -> int:
        """Updates between two looks at the held-out text."""
        return self.evaluate or max(1, (self.budget.steps or 1200) // LOOKS)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrix products."""
        wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(self.precision)
        return wanted or (torch.bfloat16 if has_bfloat16() else torch.float32)


def plan(budget_: str | int | Budget, *, betas: tuple[float, float] = (0.9, 0.999), **how: Any) -> Plan:
    """Check the numbers of a plan and make it.

    Raises:
        BadValue, OutOfRange: a value outside its range; the message says which.
    """
    made = Plan(budget(budget_), betas=betas, **how)
    if not made.rate > 0 or made.clip < 0 or made.accumulate < 1 or made.decay < 0:
        raise OutOfRange(
            f"rate {made.rate}, clip {made.clip}, accumulate {made.accumulate}, decay {made.decay}: "
            "rate must be above 0, accumulate at least 1, the others at least 0."
        )
    if made.precision not in ("auto", "float32", "bfloat16"):
        raise OutOfRange(f"precision {made.precision!r}: one of 'auto', 'float32', 'bfloat16'.")
    if made.sharded and made.optimizer != "adamw":
        raise BadValue(f"the optimizer {made.optimizer!r} needs whole matrices.", "Shard with adamw.")
    rate_at(0.0, 0, kind=made.schedule)  # an unknown schedule is named before anything is computed
    return made


@dataclass
class Job:
    """What is trained, on what: the loop knows no more.

    Attributes:
        module: its parameters that require gradients are trained, in place: a fork's own, never an opened model's.
        draw: a batch from a generator: a tensor (B, ...), tuples or dicts of them.
        loss: from a batch to (loss in nats, further figures to log).
        measure: the held-out figures; the first, "held", decides about stopping. None: nothing is held out.
        unit: of "held", of which less is always better.
        sample: a text the model writes now, for the progress line. None: none.
        batch_tokens: of one batch [count, 0 ..], or a function that counts those of a batch, padding included.
        label: what the progress bar says.
        after: called with the number of each finished update and the optimizer (ReLoRA merges here).
        also: tensors that `after` changes, which belong into a checkpoint.
    """

    module: Any
    draw: Callable[[torch.Generator], Any]
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]]
    measure: Callable[[], dict[str, float]] | None = None
    unit: str = BITS
    sample: Callable[[], str] | None = None
    batch_tokens: int | Callable[[Any], int] = 0
    label: str = "train"
    after: Callable[[int, Any], None] | None = None
    also: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """What a training returns.

    Attributes:
        model: the trained model.
        history: one row per look: step, seconds, tokens, loss, held-out bits per byte without and with repeated parts.
        facts: prediction and what happened: parameters, seconds per step (without looks and checkpoints), peak memory,
            bytes of optimizer state, why it ended, the leak of the split, notes on the data, a text written at the end.
        adapter: where one was trained.
    """

    model: Model
    history: Table
    facts: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None


def run(
    job: Job, how: Plan, *, folder: str | Path | None = None, log: tuple[str, ...] = ()
) -> tuple[Table, dict[str, Any]]:
    """Train until the budget is spent; going on from the newest checkpoint of `folder`, if there is one.

    Args:
        job: what to train.
        how: with which settings.
        folder: for checkpoints and the log; None keeps nothing, and a killed run is lost.
        log: further logs, "tensorboard" or "wandb".

    Returns:
        The history and facts. The job's module holds the last weights, or with `patience` the best.

    Raises:
        NotFinite: the loss or a gradient is not finite; the message names the step and the first part of the model that
            gave such a value. The last good checkpoint stays; from there a call with another rate, warm-up, norm of
            clipping or precision goes on too.
        CannotWrite: the disk is full; the checkpoints before are whole.
    """
    with torch.inference_mode(False), torch.enable_grad():
        loop = _Loop(job, how, None if folder is None else Path(folder), log)
        try:
            return loop.run()
        finally:
            loop.log.close()


class _Step(nn.Module):
    """Loss of a batch as a module, for torch's data parallelism."""

    def __init__(self, job: Job, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = job.module
        self._loss, self._dtype, self.said = job.loss, dtype, dict[str, float]()

    def forward(self, batch: Any) -> Any:
        if callable(batch):  # a look: sharded parameters are whole only in here
            return batch()
        with autocast(self._dtype, next(self.module.parameters()).device.type):
            loss, self.said = self._loss(batch)
        return loss


class _Loop:
    """One run; its state is what a checkpoint holds."""

    def __init__(self, job: Job, how: Plan, folder: Path | None, log: tuple[str, ...]) -> None:
        self.job, self.how, self.ranks = job, how, ranks()
        self.folder = folder
        self.stepper = _Step(job, how.dtype)
        self.sharding = Sharding(self.stepper, job.module) if how.sharded and self.ranks.world > 1 else None
        self.trained = {name: p for name, p in job.module.named_parameters() if p.requires_grad}
        if not self.trained:
            raise OutOfRange("no parameter of the model requires a gradient: there is nothing to train.")
        self.optimizer = optimizers.build(
            how.optimizer, self.trained.items(), rate=how.rate, decay=how.decay, betas=how.betas, rank=how.rank
        )
        if how.budget.bits_per_byte and (job.measure is None or job.unit != BITS):
            raise BadValue(
                f"budget '{how.budget}': no bits per byte of a held-out text are measured here.",
                "Give steps or seconds.",
            )
        self.generator = torch.Generator().manual_seed(how.seed)
        self.step, self.tokens, self.before = 0, 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] = {}
        weights = sizing.tensor_bytes(list(job.module.parameters()))
        self.program = max(0, resident.held_bytes() - weights)  # what the process holds beside the training
        self.losses: list[Tensor] = []
        self.began, self.saved = time.monotonic(), 0.0
        self.spent, self.next_look, self.told = 0.0, 0.0, 0.0  # seconds of updates, of the next look, of the last word
        self.since = (0, 0.0)  # tokens and seconds at the last row
        self.why = ""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed)
            self.noise = torch.get_rng_state()
        self._resume()
        self.log = Log(folder if self.ranks.is_first else None, log if self.ranks.is_first else (), self.history)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    @property
    def held(self) -> float | None:
        rows = [row["held"] for row in self.history if "held" in row]
        return rows[-1] if rows else None

    def run(self) -> tuple[Table, dict[str, Any]]:
        stepping = self.stepper if self.sharding else self.ranks.shared(self.stepper)
        limit = self.how.budget
        total = limit.steps or (math.ceil(limit.seconds) if limit.seconds else None)
        with task(self.job.label, total) as work, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.noise)
            if not self.history:
                self._look(work)
            while not self._is_over():
                begin = time.monotonic()
                self._update(stepping)
                self.spent += time.monotonic() - begin
                self._report(work)
                if is_due := self._is_due():
                    self._look(work)
                if self.folder and self._is_checkpoint_due(is_due):
                    self._save()
            if self.step != self.history[-1]["step"]:
                self._look(work)
            if self.folder:
                self._save()
            return self._ended()

    def _is_over(self) -> bool:
        seconds = self.ranks.agreed(self.seconds)
        if self.how.budget.is_spent(self.step, seconds, self.held):
            self.why = self.why or f"the budget of {self.how.budget} is spent"
        waited = sum(row["step"] > self.best.get("step", 0) for row in self.history if "held" in row)
        if self.how.patience and waited >= self.how.patience:
            self.why = f"no better held-out figure for {waited} looks; the best was at step {self.best['step']}"
        return bool(self.why)

    def _is_due(self) -> bool:
        limit = self.how.budget
        if self.how.evaluate or limit.steps or not limit.seconds:
            return self.step % self.how.looks == 0
        return self.ranks.agreed(self.seconds) >= self.next_look

    def _is_checkpoint_due(self, has_looked: bool) -> bool:
        due = self.step % self.how.checkpoint == 0 if self.how.checkpoint else has_looked
        return due or self.ranks.agreed(self.seconds) - self.saved > OLD

    def _update(self, stepping: nn.Module) -> None:
        part = self.how.budget.part(self.step, self.ranks.agreed(self.seconds))
        share = rate_at(part, self.step, kind=self.how.schedule, warmup=self.how.warmup, floor=self.how.floor)
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.rate * share
        self.optimizer.zero_grad()
        self.job.module.train()
        total = torch.zeros(())
        for n in range(self.how.accumulate):
            whole_batch = self.job.draw(self.generator)
            batch, count = self.ranks.part(whole_batch), self.job.batch_tokens
            last = n + 1 == self.how.accumulate
            with self._quiet(stepping, last):
                loss = stepping(batch) / self.how.accumulate
                if not torch.isfinite(loss):
                    self._refuse(batch)
                loss.backward()
            total += loss.detach()
            self.tokens += count if isinstance(count, int) else count(whole_batch)
        self.norm = whole(optimizers.clip(self.trained.values(), self.how.clip or math.inf))
        if not torch.isfinite(self.norm):
            self._refuse(batch)
        self.optimizer.step()
        self.losses.append(self.ranks.mean(total))
        self.share = share
        self.step += 1
        if self.job.after is not None:
            self.job.after(self.step, self.optimizer)

    def _quiet(self, stepping: Any, is_last: bool) -> Any:
        """Return a context in which ranks do not yet exchange gradients, unless the update is due."""
        if self.sharding:
            stepping.set_requires_gradient_sync(is_last)
        return nullcontext() if is_last or self.sharding or self.ranks.world == 1 else stepping.no_sync()

    def _refuse(self, batch: Any) -> None:
        where = first_not_finite(self.job.module, lambda: self.job.loss(batch), self.how.dtype)
        hint = "There is no checkpoint before it."
        if self.folder and self.ranks.is_first:
            checkpoints.put_aside(self.folder, self.step)
            write_atomic(self.folder / BROKEN, json.dumps({"step": self.step, "first in": where}))
        if self.folder and (kept := checkpoints.found(self.folder)):
            hint = f"With that changed the same command goes on from the last good checkpoint, '{kept[0]}'."
        raise NotFinite(
            f"{self.job.label}: the loss or a gradient is not finite at step {self.step} (batch drawn from seed "
            f"{self.how.seed}); first in {where}.",
            f"Lower the rate ({self.how.rate:g}), or warm up. {hint}",
        )

    def _report(self, work: Task) -> None:
        now = time.monotonic()
        if now - self.told < TOLD:
            return
        self.told = now
        limit = self.how.budget
        in_seconds = bool(limit.seconds) and not limit.steps
        work.done = int(self.seconds) if in_seconds else self.step
        step = f"step {self.step}, " if in_seconds else ""
        held = f"{self.held:.3f} {self.job.unit} held out, " if self.held is not None else ""
        fast = self.tokens / max(self.seconds, 1e-9)
        work.step(0, f"{step}loss {float(self.losses[-1]):.3f}, {held}{fast:,.0f} tokens/s")

    def _look(self, work: Task) -> None:
        """Measure the held-out text and add a row to the history."""
        seconds = self.seconds
        tokens, before = self.since
        row: dict[str, Any] = {"step": self.step, "seconds": round(seconds, 3), "tokens": self.tokens}
        row["loss"] = float(torch.stack(self.losses).mean()) if self.losses else None
        self.losses = []
        if self.job.measure is not None:
            self.job.module.eval()
            with optimizers.averaged(self.optimizer), torch.no_grad():
                row |= {key: float(value) for key, value in self.stepper(self.job.measure).items()}
                self._remember(row)
        row |= self.stepper.said if self.step else {}
        row["tokens_per_second"] = (self.tokens - tokens) / max(seconds - before, 1e-9)
        row |= {"rate": self.how.rate * getattr(self, "share", 0.0), "norm": float(getattr(self, "norm", 0.0))}
        if self.job.sample is not None and len(self.history) % SAMPLED == 0 and self.step:
            with optimizers.averaged(self.optimizer):
                self.job.module.eval()
                row["sample"] = self.stepper(self.job.sample)
        self.since = (self.tokens, self.seconds)
        pause = max((self.how.budget.seconds or 0.0) / LOOKS, (self.seconds - seconds) / SHARE)
        self.next_look = self.ranks.agreed(self.seconds + pause)
        self.history.append(row)
        self.log.write(row)
        work.step(0, f"held out {row['held']:.4f} {self.job.unit}" if "held" in row else "")

    def _remember(self, row: dict[str, Any]) -> None:
        if not self.best or row["held"] < self.best["value"]:
            self.best = {"step": self.step, "value": row["held"]}
            if self.how.patience:
                self.best_weights = {name: p.detach().clone() for name, p in self.trained.items()}

    def _save(self) -> None:
        weights, optimizer = whole(self.trained | self.job.also), whole(self.optimizer.state_dict())
        best = whole(self.best_weights)
        if self.ranks.is_first and self.folder is not None:
            state = checkpoints.State(
                self.step, self.seconds, self.tokens, weights, optimizer,
                {"batches": self.generator.get_state(), "torch": torch.get_rng_state()},
                self.history, self.best, best, self._identity(),
            )  # fmt: skip
            if self.losses:  # the mean that the next row will show must not depend on where the run was cut
                state.random["losses"] = torch.stack(self.losses)
            checkpoints.save(self.folder, state)
            (self.folder / BROKEN).unlink(missing_ok=True)
        self.ranks.wait()
        self.saved = self.ranks.agreed(self.seconds)

    def _resume(self) -> None:
        if self.folder is None:
            return
        may_differ = CALMER if (self.folder / BROKEN).exists() else ()
        state = checkpoints.load(self.folder, self._identity(), may_differ)
        if state is None:
            return
        with torch.no_grad():
            for name, p in (self.trained | self.job.also).items():
                p.copy_(cut_like(state.weights[name], p))
        self.optimizer.load_state_dict(state.optimizer)
        for p in self.trained.values() if self.sharding else ():
            for key, values in self.optimizer.state[p].items():
                if values.shape == p.shape:
                    self.optimizer.state[p][key] = cut_like(values, p)
        self.generator.set_state(state.random["batches"])
        self.noise = state.random["torch"]
        self.step, self.before, self.tokens = state.step, state.seconds, state.tokens
        self.history, self.best = state.history, state.best
        self.best_weights = {name: cut_like(values, self.trained[name]) for name, values in state.best_weights.items()}
        self.losses = list(state.random["losses"]) if "losses" in state.random else []
        self.since, self.saved = (self.tokens, self.before), self.before
        self.resumed = self.step

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to fit: everything but the budget, which may be raised."""
        fixed = {key: value for key, value in asdict(self.how).items() if key not in ("budget", "patience", "sharded")}
        if self.how.schedule != "constant":
            fixed["budget"] = str(self.how.budget)
        shapes = {name: list(p.shape) for name, p in self.trained.items()}
        return {**fixed, "label": self.job.label, "shapes": _digest(shapes)}

    def _ended(self) -> tuple[Table, dict[str, Any]]:
        if self.how.patience and self.best_weights:
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(self.best_weights[name])
        elif optimizers.has_average(self.optimizer):
            with optimizers.averaged(self.optimizer):
                last = {name: p.detach().clone() for name, p in self.trained.items()}
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(last[name])
        self.job.module.eval()
        sample = None if self.job.sample is None else self.stepper(self.job.sample)
        state_bytes, count = optimizers.state_bytes(self.optimizer), sum(p.numel() for p in self.trained.values())
        if self.sharding:
            self.sharding.undone()
        updates = self.step - getattr(self, "resumed", 0)
        facts = {
            "ended": self.why, "steps": self.step, "seconds": self.seconds,
            "seconds_per_step": self.spent / max(updates, 1), "best_step": self.best.get("step"), "sample": sample,
            "optimizer_state_bytes": state_bytes, "peak_bytes": resident.peak_bytes(),
            "taken_bytes": max(0, resident.peak_bytes() - self.program),
            "trained_parameters": count, "ranks": self.ranks.world,
        }  # fmt: skip
        measured = [name for name in ("held", "held_all") if any(name in row for row in self.history)]
        order = ["step", "seconds", "tokens", "loss", *measured]
        history = Table(self.history, units=UNITS | {"held": self.job.unit}, title=self.job.label, order=order)
        history.figures = list(curves(history))
        return history, facts


def _digest(shapes: dict[str, list[int]]) -> str:
    """Return a short digest of names and shapes: an adapter's checkpoint must not be laid over another model."""
    return sha256(repr(sorted(shapes.items())).encode())[:16]


def held_bits(module: Any, held: Held, *, context: int, start: int | None = None) -> dict[str, float]:
    """Return held-out bits per byte: "held" over what is not repeated from the training part, "held_all" over all.

    Where all of it is repeated, both are the figure over all. Windows do not overlap, so a token has half a window of
    context on average: a figure to watch, lower ones come from `kobza.measures.bits_per_byte` with overlap. The first
    token of a text without a start token costs log2 V.
    """
    bits = torch.full((len(held.ids),), math.log2(module.get_output_embeddings().weight.shape[0]))
    device = next(module.parameters()).device
    for read, wanted, places in held.windows(context, start):
        _, losses = mean_loss(module, read.to(device), wanted.to(device))
        bits[places.reshape(-1)] = losses.float().cpu() / math.log(2)
    every = float(bits.double().sum() / max(1, int(held.sizes.sum())))
    count = int(held.fresh.sum())
    fresh = float((bits.double() * held.fresh / held.sizes.clamp(min=1)).sum() / count) if count else every
    return {"held": fresh, "held_all": every}
