"""Distillation: a model learns the distributions of another one over a text, not only the text.

Source: Hinton et al. (2015), arXiv:1503.02531 (temperature, its square as a factor); the divergence between forward and
reverse KL, Agarwal et al. (2023), arXiv:2306.13649, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange, WrongVocabulary
from kobza.models.model import Model
from kobza.training import base
from kobza.training.base import Given, Run
from kobza.training.parts import corpus, tuning
from kobza.training.parts.losses import mean_loss
from kobza.training.parts.tuning import Policy


def train(
    model: Model,
    text: Given,
    *,
    teacher: str = "",
    beta: float = 0.0,
    temperature: float = 1.0,
    mix: float = 1.0,
    adapter: str = "lora:rank=8",
    steps: int = 50,
    budget: str = "",
    rate: float = 1e-4,
    batch: int = 2,
    context: int = 0,
    schedule: Literal["cosine", "trapezoid", "constant"] = "cosine",
    accumulate: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    held: float = 0.1,
    evaluate: int = 0,
    folder: str = "",
    log: list[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Train a model to say what a teacher would.

    Args:
        model: the student; it is not changed.
        text: what both read.
        teacher: the model to learn from, as `kobza.open` names it; empty: the student's own weights as they were, which
            is of use where the student starts from an edit of them.
        beta: 0 is KL(teacher | student), 1 KL(student | teacher), between them the divergence of Jensen and Shannon
            [fraction, 0 .. 1].
        temperature: of both softmaxes; the loss is multiplied by its square [ratio, 0 < ..].
        mix: weight of the teacher; the rest is the loss on the text itself [fraction, 0 .. 1].
        adapter: "lora:rank=8", "dora", "ia3", the folder of one, or "none": all weights are trained.
        steps: updates [count, 1 ..].
        budget: other limits, beside the steps or instead of them: "300s", "1.65bpb".
        rate: highest learning rate [per step, 0 < ..].
        batch: windows of one batch [count, 1 ..].
        context: tokens of a window [count, 0 ..]; 0 is 256.
        schedule: how the rate falls: "cosine", "trapezoid" or "constant".
        accumulate: batches of one update [count, 1 ..].
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share of the text that is held out [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out part [count, 0 ..]; 0: a twelfth of the budget.
        folder: where checkpoints and the log go; the same call goes on from there.
        log: further logs, "tensorboard" or "wandb".
        seed: of batches and adapter [0 ..].
        tell: is told the prediction of memory and time before the run begins.

    Returns:
        A Run; "held" is the student's bits per byte.

    Raises:
        WrongVocabulary: teacher and student have different vocabularies. OutOfRange: a value out of its range.
    """
    if not 0 <= beta <= 1 or not 0 <= mix <= 1 or not temperature > 0:
        raise OutOfRange(f"beta {beta} and mix {mix} are 0 .. 1, temperature {temperature} is above 0.")
    master = _teacher(model, teacher)
    how = base.plan(
        budget if budget else steps, rate=rate, schedule=schedule, accumulate=accumulate, precision=precision,
        evaluate=evaluate, seed=seed,
    )  # fmt: skip
    length = tuning.context_of(model, context)
    policy = Policy.of(model, adapter, seed=seed)
    part, ids, held_out = tuning.held_texts(text, model, held)
    start = model.tokenizer.start_id
    windows = corpus.Windows(ids, batch, length, start)
    module = policy.module

    def of_batch(rows: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        read, targets = rows
        with torch.no_grad():
            wanted = master.module(input_ids=read, use_cache=False).logits.float()
        found = module(input_ids=read, use_cache=False).logits.float()
        apart = divergence(found, wanted, beta=beta, temperature=temperature).mean()
        total = mix * temperature**2 * apart
        if mix < 1:
            total = total + (1 - mix) * mean_loss(module, read, targets)[0]
        return total, {"divergence": float(apart.detach()) / math.log(2)}

    measured = len(held_out.ids) > 1
    job = policy.job(
        draw=windows.draw, loss=of_batch, batch_tokens=batch * windows.context, label="distil",
        measure=(lambda: base.held_bits(module, held_out, context=windows.context, start=start)) if measured else None,
    )  # fmt: skip
    options = {"teacher": teacher, "beta": beta, "temperature": temperature, "adapter": adapter, "steps": steps}
    return tuning.run(
        policy, job, how, technique="distil", options=options, folder=folder, log=log, tokens=batch * length, calls=2,
        look=len(held_out.ids), notes=part.notes, tell=tell,
    )  # fmt: skip


def divergence(student: Tensor, teacher: Tensor, *, beta: float, temperature: float = 1.0) -> Tensor:
    """Return the divergence at every position (...,) in nats, from logits (..., V).

    With p the teacher, q the student and m = beta p + (1 - beta) q it is beta KL(p | m) + (1 - beta) KL(q | m); its
    ends are set to KL(p | q) and KL(q | p), to which it is proportional near 0 and 1.
    """
    q, p = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p | q) (...,) in nats from log-probabilities (..., V)."""
    return (p.exp() * (p - q)).sum(-1)


def _teacher(model: Model, name: str) -> Model:
    if not name:
        return model
    from kobza.models.opening import open as open_model

    found = open_model(name)
    if found.vocabulary != model.vocabulary or found.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise WrongVocabulary(
            f"the teacher {found.name!r} ({found.vocabulary} ids) and {model.name!r} ({model.vocabulary}) have "
            "different vocabularies: their distributions cannot be compared."
        )
    return found
