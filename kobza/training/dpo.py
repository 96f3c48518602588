"""Direct preference optimization: raise chosen answers above rejected ones, held to the model as it was.

loss = -log sigmoid(beta [(log p(c) - log p0(c)) - (log p(r) - log p0(r))]), log p summed over the answer's tokens. Its
first value is ln 2. What rises is the difference: log p of the chosen answer itself often falls, so it is logged.

Sources: Rafailov et al. (2023), arXiv:2305.18290, equation 7; the hinge of SLiC, Zhao et al. (2023), arXiv:2305.10425,
in the form of Liu et al. (2024), arXiv:2309.06657; IPO, Azar et al. (2023), arXiv:2310.12036, equation 17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

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
    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
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
    """Teach a model which of two answers is preferred.

    Args:
        model: the model to start from, and the reference; it is not changed.
        text: rows with "prompt", "chosen" and "rejected", or a file of them.
        beta: how strongly the reference holds [1 / nat, 0 < ..].
        kind: "sigmoid" (DPO), "hinge" (SLiC) or "ipo".
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
        A Run. "held" is the bits per byte of held-out chosen answers, "wins" the share of held-out pairs whose chosen
        answer is the likelier one per token.

    Raises:
        BadValue, EmptyText: a column is missing, an answer is empty. NotFinite: the run diverged.
    """
    if not beta > 0:
        raise OutOfRange(f"beta is {beta}; it must be above 0.")
    how = base.plan(
        budget if budget else steps, rate=rate, schedule=schedule, accumulate=accumulate, precision=precision,
        evaluate=evaluate, seed=seed,
    )  # fmt: skip
    length = tuning.context_of(model, context)
    policy = Policy.of(model, adapter, seed=seed)
    pairs = Pairs(policy, text, length=length, chat=chat, held=held)

    def of_batch(logps: Tensor, rows: Batch, numbers: list[int]) -> tuple[Tensor, dict[str, float]]:
        counts = rows.mask.sum(-1).reshape(2, -1)
        losses, margins = loss(
            logps.sum(-1).reshape(2, -1), pairs.reference(rows, numbers), counts, beta=beta, kind=kind
        )
        return losses.mean(), {"margin": float(margins.mean().detach())}

    job = pairs.job(of_batch, size=batch, label="dpo")
    options = {"beta": beta, "kind": kind, "adapter": adapter, "steps": steps, "rate": rate}
    return tuning.run(
        policy, job, how, technique="dpo", options=options, folder=folder, log=log,
        tokens=2 * batch * pairs.longest, look=pairs.held_tokens, calls=2, tell=tell,
    )  # fmt: skip


def loss(
    logps: Tensor, reference: Tensor, counts: Tensor, *, beta: float, kind: str = "sigmoid"
) -> tuple[Tensor, Tensor]:
    """Return the losses (B,) and margins (B,) of pairs.

    Args:
        logps: (2, B) log p of chosen and rejected answers, summed over their tokens, in nats.
        reference: (2, B) the same under the reference.
        counts: (2, B) tokens of the answers; ipo divides by them.
        beta: see `train`.
        kind: see `train`.
    """
    moved = logps - reference
    margins = moved[0] - moved[1]
    if kind == "ipo":
        mean = moved / counts
        return (mean[0] - mean[1] - 1 / (2 * beta)) ** 2, margins
    return (1 - beta * margins).relu() if kind == "hinge" else -logsigmoid(beta * margins), margins
