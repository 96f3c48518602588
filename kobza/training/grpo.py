"""Group relative policy optimization: answers scored by a program, the better of a group made likelier.

The advantage of an answer is its reward less the mean of its group, over the group's standard deviation; a group of
equal rewards teaches nothing. The divergence from the model as it was is held by the estimate exp(d) - d - 1, which
cannot be negative.

With `best_of` N the model learns to say at once what the best of N answers would be: a reward r counts as
(N - 1) log F(r), F its rank among answers of the model as it was. With beta 1 the optimum is then the distribution of
the best of N, but for ties.

Sources: Shao et al. (2024), arXiv:2402.03300, equation 3 and section 4.1; the estimate, Schulman (2020), "Approximating
KL divergence"; best of N, Amini et al. (2024), arXiv:2407.06057 (vBoN), equation 9.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.models.model import Model
from kobza.models.stepping import plain
from kobza.training import base
from kobza.training.base import Given, Run
from kobza.training.parts import answers, tuning
from kobza.training.parts.answers import Example
from kobza.training.parts.losses import token_logps
from kobza.training.parts.tuning import Policy

Reward = Callable[[str, str], float]  # from prompt and answer to a number
WORDS = 20  # an answer of twice as many words gets half the reward for shortness


def short(prompt: str, answer: str) -> float:
    """Return 1 for an answer without words, 1/2 at 20 words, falling with their number."""
    return WORDS / (WORDS + len(answer.split()))


def no_digit(prompt: str, answer: str) -> float:
    """Return 1 for an answer without a digit, else 0."""
    return float(not re.search(r"\d", answer))


REWARDS: dict[str, Reward] = {"short": short, "no_digit": no_digit}


def train(
    model: Model,
    text: Given,
    *,
    reward: str = "short+no_digit",
    group: int = 4,
    tokens: int = 32,
    temperature: float = 1.0,
    beta: float = 0.04,
    clip_ratio: float = 0.2,
    best_of: int = 0,
    adapter: str = "lora:rank=8",
    steps: int = 20,
    budget: str = "",
    rate: float = 1e-4,
    batch: int = 1,
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
    """Train a model by a rule that scores what it says.

    Args:
        model: the model to start from, and the reference; it is not changed.
        text: rows with "prompt", or a file of them; or a list of prompts.
        reward: sum of rules, "short+no_digit", or "package.module:function" of (prompt, answer).
        group: answers to one prompt [count, 2 ..].
        tokens: of an answer at most [count, 1 ..].
        temperature: at which answers are drawn [ratio, 0 < ..].
        beta: how strongly the reference holds [fraction, 0 ..].
        clip_ratio: how far the probability of a token may move within an update [fraction, 0 < ..].
        best_of: N, whose best answer the model shall learn to give; 0 takes rewards as they are [count, 0 ..].
        adapter: "lora:rank=8", "dora", "ia3", the folder of one, or "none": all weights are trained.
        steps: updates [count, 1 ..].
        budget: other limits, beside the steps or instead of them: "300s".
        rate: highest learning rate [per step, 0 < ..].
        batch: prompts of one batch [count, 1 ..].
        context: tokens of a prompt with its answer [count, 0 ..]; 0 is 256.
        chat: put prompts into the model's chat format, where it has one.
        schedule: how the rate falls: "cosine", "trapezoid" or "constant".
        accumulate: batches of one update [count, 1 ..].
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share of the prompts that is held out [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out prompts [count, 0 ..]; 0: a twelfth of the budget.
        folder: where checkpoints and the log go; the same call goes on from there.
        log: further logs, "tensorboard" or "wandb".
        seed: of batches, answers and adapter [0 ..].
        tell: is told the prediction of memory and time before the run begins.

    Returns:
        A Run; "held" is minus the mean reward of one answer to each held-out prompt, so that less is better.

    Raises:
        BadValue: no prompts. UnknownName: no such rule. OutOfRange: a value out of its range.
    """
    if group < 2 or tokens < 1 or beta < 0 or not temperature > 0 or best_of < 0 or best_of == 1:
        raise OutOfRange(
            f"group {group} is at least 2, tokens {tokens} at least 1, temperature {temperature} above 0, beta {beta} "
            f"at least 0, best_of {best_of} 0 or at least 2."
        )
    how = base.plan(
        budget if budget else steps, rate=rate, schedule=schedule, accumulate=accumulate, precision=precision,
        evaluate=evaluate, seed=seed,
    )  # fmt: skip
    length = tuning.context_of(model, context)
    policy = Policy.of(model, adapter, seed=seed)
    rows, kept = answers.read_rows(prompts(text), ("prompt",), held)
    asked, asked_held = ([str(row["prompt"]) for row in part] for part in (rows, kept))
    talk = _Talk(policy, rewarding(reward), group, min(tokens, length), temperature, beta, clip_ratio, best_of, chat)

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        numbers = answers.draw(len(asked), batch, generator)
        return {"numbers": numbers, "seeds": torch.randint(1 << 30, (len(numbers),), generator=generator)}

    job = policy.job(
        draw=draw,
        loss=lambda drawn: talk.loss([asked[n] for n in drawn["numbers"].tolist()], drawn["seeds"].tolist()),
        measure=(lambda: {"held": -talk.mean_reward(asked_held)}) if asked_held else None,
        unit="-reward",
        batch_tokens=batch * group * tokens,
        label="grpo",
    )
    options = {
        "reward": reward, "group": group, "tokens": tokens, "temperature": temperature, "beta": beta,
        "clip_ratio": clip_ratio, "best_of": best_of or "", "adapter": adapter, "steps": steps, "rate": rate,
    }  # fmt: skip
    return tuning.run(
        policy, job, how, technique="grpo", options=options, folder=folder, log=log, tokens=batch * group * tokens,
        drawn=(group, batch * tokens), calls=2, tell=tell,
    )  # fmt: skip


@dataclass
class _Talk:
    """How answers are drawn, scored and turned into a loss; the options are those of `train`."""

    policy: Policy
    rule: Reward
    group: int
    tokens: int
    temperature: float
    beta: float
    clip_ratio: float
    best_of: int
    chat: bool
    before: dict[str, Tensor] = field(default_factory=dict)  # prompt -> sorted rewards of the model as it was

    def loss(self, asked: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a group of answers to each prompt, and their mean reward."""
        said = [
            self.answers(self.policy.model, ask, self.group, start) for ask, start in zip(asked, seeds, strict=True)
        ]
        table = torch.tensor([self.rewards(ask, group) for ask, group in zip(asked, said, strict=True)])
        made = answers.batch([one for group in said for one in group])
        logps = token_logps(self.policy.module.train(), made.read, made.targets, made.mask)
        reference = self.policy.reference_logps(made.read, made.targets, made.mask) if self.beta else None
        gains = advantages(table)
        if self.best_of:
            ranked = torch.stack([self.ranked(ask, row) for ask, row in zip(asked, table, strict=True)])
            gains = ranked - ranked.mean(1, keepdim=True)  # in nats, so that beta keeps its meaning
        total = loss(
            logps, logps.detach(), reference, gains.flatten(), made.mask, beta=self.beta, clip_ratio=self.clip_ratio
        )
        return total, {"reward": float(table.mean())}

    def answers(self, model: Model, prompt: str, count: int, seed: int) -> list[Example]:
        """Return answers of a model to one prompt."""
        return speak(model, prompt, count, self.tokens, self.temperature, seed, self.chat)

    def rewards(self, prompt: str, said: Sequence[Example]) -> list[float]:
        """Return what the rule gives for each answer."""
        return [self.rule(prompt, self.policy.model.tokenizer.text(one.answer)) for one in said]

    def ranked(self, prompt: str, rewards: Tensor) -> Tensor:
        """Return the rewards of one prompt as those of the best of N; the model as it was answers once per prompt."""
        if prompt not in self.before:
            said = self.answers(
                self.policy.original, prompt, max(self.group, 4 * self.best_of), zlib.crc32(prompt.encode())
            )
            self.before[prompt] = torch.tensor(self.rewards(prompt, said)).sort().values
        return best_of_rewards(rewards, self.before[prompt], self.best_of)

    def mean_reward(self, asked: Sequence[str]) -> float:
        """Return the mean reward of one answer to each prompt."""
        found = [self.rewards(ask, self.answers(self.policy.model, ask, 1, n))[0] for n, ask in enumerate(asked)]
        return sum(found) / len(found)


def best_of_rewards(rewards: Tensor, before: Tensor, best_of: int) -> Tensor:
    """Return (N - 1) log F(r), F estimated from rewards before training; never minus infinity.

    Args:
        rewards: (B,) of new answers.
        before: (M,) sorted, of answers of the model as it was.
        best_of: N.
    """
    share = (torch.searchsorted(before, rewards, right=True) + 1) / (len(before) + 1)
    return (best_of - 1) * share.log()


def prompts(source: Any) -> Any:
    """Return rows with prompts: a list of strings becomes such rows."""
    is_plain = not isinstance(source, str) and isinstance(source, Sequence) and all(isinstance(p, str) for p in source)
    return [{"prompt": prompt} for prompt in source] if is_plain else source


def rewarding(words: str) -> Reward:
    """Return the reward that a name, a sum of names or "module:function" stands for.

    Raises:
        UnknownName: no such rule. BadValue: the module or function is not there.
    """
    if ":" in words:
        module, _, function = words.partition(":")
        try:
            found: Reward = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise BadValue(f"the reward {words!r} cannot be had: {error}.") from None
        return found
    unknown = next((name for name in words.split("+") if name not in REWARDS), None)
    if unknown is not None:
        raise UnknownName.of("reward", unknown, REWARDS)
    rules = [REWARDS[name] for name in words.split("+")]
    return lambda prompt, answer: sum(rule(prompt, answer) for rule in rules)


def advantages(rewards: Tensor) -> Tensor:
    """Return rewards (prompts, group) less their group's mean, over its standard deviation."""
    # the addend of TRL: a group of nearly equal rewards must not shout
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def loss(
    logps: Tensor, old: Tensor, reference: Tensor | None, gains: Tensor, mask: Tensor, *, beta: float, clip_ratio: float
) -> Tensor:
    """Return the loss: mean over answers of the mean over their tokens.

    Args:
        logps: (B, T) log p of the tokens, in nats.
        old: (B, T) the same when the answers were drawn.
        reference: (B, T) the same under the model as it was; None where beta is 0.
        gains: (B,) advantages.
        mask: (B, T) tokens of the answers.
        beta, clip_ratio: see `train`.
    """
    ratio = (logps - old).exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    each = -torch.minimum(ratio * gains[:, None], clipped * gains[:, None])
    if reference is not None and beta:
        away = reference - logps
        each = each + beta * (away.exp() - away - 1)
    return ((each * mask).sum(1) / mask.sum(1)).mean()


@torch.no_grad()
def speak(
    model: Model, prompt: str, count: int, tokens: int, temperature: float, seed: int, chat: bool
) -> list[Example]:
    """Return `count` answers to a prompt, drawn side by side; each ends with the end mark or after `tokens`."""
    ids = answers.prompt_ids(prompt, model.tokenizer, chat=chat)
    model.module.eval()
    stepper, generator = plain(model, count), torch.Generator().manual_seed(seed)
    fed = torch.tensor([ids] * count)
    said: list[list[int]] = [[] for _ in range(count)]
    is_open = [True] * count
    for _ in range(tokens):
        chances = (stepper.feed(fed) / temperature).softmax(-1)
        fed = torch.multinomial(chances.clone(), 1, generator=generator)
        for n, id in enumerate(fed[:, 0].tolist()):
            if is_open[n]:
                said[n].append(id)
                is_open[n] = id != model.tokenizer.end_id
        if not any(is_open):
            break
    return [Example(ids, answer) for answer in said]
