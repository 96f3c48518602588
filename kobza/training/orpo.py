"""Odds ratio preference optimization: learn the chosen answer and lower the odds of the rejected one, no reference.

loss = -log p(c) + beta * -log sigmoid(log odds(c) - log odds(r)); log p is the mean over the answer's tokens, so odds
are those of an average token. The listing that circulates takes the odds of every entry of the vocabulary, and
equal inputs for both answers: its loss is the constant ln 2 and its gradient 0.

Source: Hong et al. (2024), arXiv:2403.07691, equations 4 to 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kobza.core.errors import OutOfRange
from kobza.models.model import Model
from kobza.training import base
from kobza.training.base import Given, Run
from kobza.training.parts import tuning
from kobza.training.parts.answers import Batch
from kobza.training.parts.preferences import Pairs
from kobza.training.parts.tuning import Policy


def train(
    model: Model,
    text: Given,
    *,
    beta: float = 0.1,
    adapter: str = "lora:rank=8",
    steps: int = 50,
    budget: str = "",
    rate: float = 5e-5,
    batch: int = 2,
    context: int = 0,
    chat: bool = True,
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
    """Teach a model the chosen answers and away from the rejected ones.

    Args:
        model: the model to start from; it is not changed.
        text: rows with "prompt", "chosen" and "rejected", or a file of them.
        beta: weight of the odds part [fraction, 0 ..].
        adapter: "lora:rank=8", "dora", "ia3", the folder of one, or "none": all weights are trained.
        steps: updates [count, 1 ..].
        budget: other limits, beside the steps or instead of them: "300s", "1.65bpb".
        rate: highest learning rate [per step, 0 < ..].
        batch: pairs of one batch [count, 1 ..].
        context: tokens of a prompt with its answer [count, 0 ..]; 0 is 256.
        chat: put prompts into the model's chat format, where it has one.
        schedule: how the rate falls: "cosine", "trapezoid" or "constant".
        accumulate: batches of one update [count, 1 ..].
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share of the rows that is held out [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out part [count, 0 ..]; 0: a twelfth of the budget.
        folder: where checkpoints and the log go; the same call goes on from there.
        log: further logs, "tensorboard" or "wandb".
        seed: of batches and adapter [0 ..].
        tell: is told the prediction of memory and time before the run begins.

    Returns:
        A Run; "held" and "wins" as in `dpo`.

    Raises:
        BadValue, EmptyText: a column is missing, an answer is empty. NotFinite: the run diverged.
    """
    if beta < 0:
        raise OutOfRange(f"beta is {beta}; it must be at least 0.")
    how = base.plan(
        budget if budget else steps, rate=rate, schedule=schedule, accumulate=accumulate, precision=precision,
        evaluate=evaluate, seed=seed,
    )  # fmt: skip
    length = tuning.context_of(model, context)
    policy = Policy.of(model, adapter, seed=seed)
    policy.rest()
    pairs = Pairs(policy, text, length=length, chat=chat, held=held)

    def of_batch(logps: Tensor, rows: Batch, _: list[int]) -> tuple[Tensor, dict[str, float]]:
        counts = rows.mask.sum(-1).reshape(2, -1)
        sums = logps.sum(-1).reshape(2, -1)
        learned = -sums[0].sum() / counts[0].sum()
        apart = odds_loss(sums / counts).mean()
        return learned + beta * apart, {"odds": float(apart.detach())}

    job = pairs.job(of_batch, size=batch, label="orpo")
    options = {"beta": beta, "adapter": adapter, "steps": steps, "rate": rate}
    return tuning.run(
        policy, job, how, technique="orpo", options=options, folder=folder, log=log,
        tokens=2 * batch * pairs.longest, look=pairs.held_tokens, tell=tell,
    )  # fmt: skip


def odds_loss(means: Tensor) -> Tensor:
    """Return -log sigmoid of the difference of log odds (B,), from mean log p of chosen and rejected answers (2, B)."""
    # log odds = log p - log(1 - p); 1 - exp(x) near x = 0 by expm1, as Maechler (2012) has it
    log_odds = means - torch.log(-torch.expm1(means.clamp(max=-1e-7)))
    return -logsigmoid(log_odds[0] - log_odds[1])
