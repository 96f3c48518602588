"""Supervised fine-tuning: a model learns a text, or the answers to prompts.

Source: Ouyang et al. (2022), arXiv:2203.02155, section 3.1; loss on answers alone, as TRL's `completion_only_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from kobza.models.model import Model
from kobza.training import base
from kobza.training.base import Given, Run
from kobza.training.parts import answers, corpus, tuning
from kobza.training.parts.losses import mean_loss
from kobza.training.parts.tuning import Policy


def train(
    model: Model,
    text: Given,
    *,
    answer: str = "",
    adapter: str = "lora:rank=8",
    steps: int = 100,
    budget: str = "",
    rate: float = 0.0,
    batch: int = 4,
    context: int = 0,
    chat: bool = True,
    optimizer: str = "adamw",
    rank: int = 64,
    schedule: Literal["cosine", "trapezoid", "constant"] = "cosine",
    warmup: int = 0,
    decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    held: float = 0.1,
    evaluate: int = 0,
    patience: int = 0,
    sharded: bool = False,
    folder: str = "",
    log: list[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Go on training a model on a text, or teach it answers.

    Args:
        model: the model to start from; it is not changed.
        text: a text, or rows with a text column; with `answer` rows with "prompt" and that column.
        answer: column of the answers; the loss then falls on them alone. Empty: plain text.
        adapter: "lora:rank=8", "dora", "ia3" (see `parts.adapters.Spec`), the folder of one to go on with, or "none":
            all weights are trained.
        steps: updates [count, 1 ..].
        budget: other limits, beside the steps or instead of them: "300s", "1.65bpb".
        rate: highest learning rate [per step, 0 ..]; 0 is 2e-4 with an adapter, 2e-5 without.
        batch: windows or rows of one batch [count, 1 ..].
        context: tokens of a window or row [count, 0 ..]; 0 is 256.
        chat: put prompts into the model's chat format, where it has one.
        optimizer: "adamw", "muon", "adafactor", "schedule_free" or "galore".
        rank: of GaLore's projections [count, 1 ..].
        schedule: how the rate falls: "cosine", "trapezoid" or "constant".
        warmup: updates in which the rate rises [count, 0 ..].
        decay: decoupled weight decay [per unit of rate, 0 ..].
        clip: norm to which longer gradients are shortened; 0 leaves them [norm, 0 ..].
        accumulate: batches of one update [count, 1 ..].
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share that is held out [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out part [count, 0 ..]; 0: a twelfth of the budget.
        patience: looks without a new minimum after which the run ends with the best weights [count, 0 ..]; 0: never.
        sharded: cut weights, gradients and optimizer state among the ranks that torchrun started (adamw).
        folder: where checkpoints and the log go; the same call goes on from there.
        log: further logs, "tensorboard" or "wandb".
        seed: of batches and adapter [0 ..].
        tell: is told the prediction of memory and time before the run begins.

    Returns:
        A Run: the model with the adapter merged in, the adapter apart, history and facts. With answers "held" is the
        bits per byte of the held-out answers.

    Raises:
        BadValue, EmptyText: data without the columns, or without text. NotFinite: the run diverged.
    """
    how = base.plan(
        budget if budget else steps, optimizer=optimizer, rank=rank, rate=rate or default_rate(adapter),
        schedule=schedule, warmup=warmup, decay=decay, clip=clip, accumulate=accumulate, precision=precision,
        evaluate=evaluate, patience=patience, sharded=sharded, seed=seed,
    )  # fmt: skip
    length = tuning.context_of(model, context)
    policy = Policy.of(model, adapter, seed=seed)
    policy.rest()
    notes: list[str] = []
    if answer:
        job, tokens, look = _answering(policy, text, answer, batch, length, chat, held)
    else:
        job, tokens, look, notes = _reading(policy, text, batch, length, held)
    options = {"adapter": adapter, "steps": steps, "rate": how.rate, "optimizer": optimizer}
    return tuning.run(
        policy, job, how, technique="sft", options=options, folder=folder, log=log, tokens=tokens, look=look,
        notes=notes, tell=tell,
    )  # fmt: skip


def default_rate(adapter: str) -> float:
    """Return the usual rate: ten times higher for an adapter than for all weights (Biderman et al. 2024, section 6)."""
    return 2e-5 if adapter in ("none", "full", "") else 2e-4


def _reading(policy: Policy, text: Given, batch: int, length: int, held: float) -> tuple[base.Job, int, int, list[str]]:
    """Return the job of learning a text, tokens of a batch and of a look, and remarks on it."""
    part, ids, held_out = tuning.held_texts(text, policy.original, held)
    start = policy.original.tokenizer.start_id
    windows = corpus.Windows(ids, batch, length, start)
    module = policy.module
    measured = len(held_out.ids) > 1
    leaked = (
        [f"held out: {len(part.held):,} bytes, {part.leak:.1%} of them also in the training part"] if measured else []
    )
    job = policy.job(
        draw=windows.draw,
        loss=lambda rows: (mean_loss(module, *rows)[0], {}),
        measure=(lambda: base.held_bits(module, held_out, context=windows.context, start=start)) if measured else None,
        batch_tokens=batch * windows.context,
        label="sft",
    )
    return job, batch * windows.context, len(held_out.ids), [*part.notes, *leaked]


def _answering(
    policy: Policy, text: Given, answer: str, size: int, length: int, chat: bool, held: float
) -> tuple[base.Job, int, int]:
    """Return the job of learning answers, tokens of a batch at most and of a look."""
    train_rows, held_rows = answers.read_rows(text, ("prompt", answer), held)
    tokenizer, module = policy.original.tokenizer, policy.module
    known, kept = (answers.examples(r, tokenizer, answer, chat=chat, most=length) for r in (train_rows, held_rows))

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        made = answers.batch([known[i] for i in answers.draw(len(known), size, generator)])
        return made.read, made.targets, made.mask

    job = policy.job(
        draw=draw,
        loss=lambda rows: (answer_loss(module, *rows), {}),
        measure=(lambda: answer_bits(module, kept, tokenizer)) if kept else None,
        batch_tokens=lambda rows: int(rows[0].numel()),
        label="sft",
    )
    return job, size * max(map(len, known)), sum(map(len, kept))


def answer_loss(module: Any, read: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats over the tokens of the answers; (B, T) each."""
    return mean_loss(module, read, targets, mask / mask.sum())[0]


def answer_bits(module: Any, examples: list[answers.Example], tokenizer: Any) -> dict[str, float]:
    """Return the bits per byte of answers, given their prompts."""
    bits, size = 0.0, 0
    for example in examples:
        made = answers.batch([example])
        bits += (
            float(answer_loss(module, made.read, made.targets, made.mask)) * len(example.answer) / 0.6931471805599453
        )
        size += len(tokenizer.decode(example.answer))
    return {"held": bits / max(1, size)}
