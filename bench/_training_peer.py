"""One piece of training by kobza, by a plain loop, by transformers' Trainer or by TRL, for `bench/training.py`.

    python bench/_training_peer.py WHO WORK FOLDER

WORK is "float32" or "bfloat16": a model from nothing, whose configuration and first weights lie in the folder, on given
batches; or "sft", "dpo", "orpo", "grpo": five steps on the model in the folder. Every batch is the same rows, all
settings are equal, nothing is saved or logged on the way. Prints one line of JSON: CPU seconds of a step (median) and
of all steps, peak memory up to their end, losses; for grpo also the seconds that drawing answers took.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

STEPS, ROUNDS, GROUP, TOKENS = 5, 20, 4, 32  # ROUNDS: steps from nothing
RATES = {"sft": 2e-4, "dpo": 5e-6, "orpo": 5e-6, "grpo": 1e-4}
ROWS = [
    {
        "prompt": f"Tell me about thing number {n}.",
        "chosen": " It is an instrument with a short neck and many strings, played in the villages.",
        "rejected": f" It costs {n} coins and weighs {n + 1} pounds, and nobody has ever seen two of them.",
    }
    for n in range(2)
]


@dataclass
class Watch:
    """CPU seconds at the beginning and at the end of every step, seconds of drawing, losses."""

    ends: list[float] = field(default_factory=list)
    drawing: float = 0.0
    losses: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """Note that a step is over, or that the first begins."""
        self.ends.append(time.process_time())

    def draws(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts as drawing answers."""

        def timed(*given: Any, **more: Any) -> Any:
            begin = time.process_time()
            found = work(*given, **more)
            self.drawing += time.process_time() - begin
            return found

        return timed

    def ticks(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function after which a step is over."""

        def timed(*given: Any, **more: Any) -> Any:
            found = work(*given, **more)
            self.tick()
            return found

        return timed

    def told(self) -> dict[str, Any]:
        """Return what was seen so far."""
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        peak = peak_MB()
        found = {"cpu_seconds": self.ends[-1] - self.ends[0], "step": statistics.median(steps), "peak_MB": peak}
        return found | {"losses": self.losses} | ({"drawing": self.drawing} if self.drawing else {})


def peak_MB() -> float:
    """Return the most memory this process held; `getrusage` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def digits(answer: str) -> float:
    """Return the rule of grpo: shorter is better, digits are worse; no two answers are likely to be worth the same."""
    return 20 / (20 + len(answer)) + float(not re.search(r"\d", answer))


def rule(prompt: str, answer: str) -> float:
    """Return the same as kobza's rules are called."""
    return digits(answer)


def batches(folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ids to be read and ids to be predicted, (B, T) each, a batch for each step."""
    told = json.loads(Path(folder, "batches.json").read_text())
    generator = torch.Generator().manual_seed(0)
    shape = told["batch"], told["length"] + 1
    rows = (torch.randint(told["ids"], shape, generator=generator) for _ in range(ROUNDS))
    return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def opened(folder: str) -> Any:
    """Return the module in a folder, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def plain_scratch(watch: Watch, precision: str, folder: str) -> None:
    """Train from nothing by the loop of tutorials: the module's own loss, AdamW, clipping."""
    module = opened(folder).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    watch.tick()
    for read, wanted in batches(folder):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = module(input_ids=read, labels=wanted, shift_labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        watch.losses.append(loss.item())
        watch.tick()


def kobza_scratch(watch: Watch, precision: str, folder: str) -> None:
    """Train from nothing by kobza's loop."""
    from kobza.models.building import _spare_scipy  # as where kobza itself builds the module
    from kobza.training import base
    from kobza.training.parts.losses import mean_loss

    _spare_scipy()
    module, found = opened(folder), iter(batches(folder))

    def loss(rows: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        value, _ = mean_loss(module, *rows)
        watch.losses.append(value.item())
        return value, {}

    base._Loop._update = watch.ticks(base._Loop._update)  # type: ignore[method-assign]
    how = base.plan(ROUNDS, schedule="constant", precision=precision, evaluate=ROUNDS)
    watch.tick()
    base.run(base.Job(module, draw=lambda _: next(found), loss=loss), how)


def trainer_scratch(watch: Watch, precision: str, folder: str) -> None:
    """Train from nothing by transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    class Same(Trainer):
        def get_train_dataloader(self) -> Any:
            return [{"input_ids": read, "labels": next_, "shift_labels": next_} for read, next_ in batches(folder)]

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            watch.losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    settings = TrainingArguments(max_steps=ROUNDS, learning_rate=1e-3, **_quiet(), bf16=precision == "bfloat16")
    trainer = Same(model=opened(folder), args=settings, train_dataset=[0], callbacks=[_ticking(watch)])
    trainer.train()


def _quiet() -> dict[str, Any]:
    """Return settings of a Trainer that trains as kobza does and keeps nothing."""
    return {
        "output_dir": tempfile.mkdtemp(), "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "report_to": [], "save_strategy": "no", "logging_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def _ticking(watch: Watch) -> Any:
    """Return a callback of a Trainer that tells a watch of its steps."""
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.tick()

        def on_log(self, _: Any, __: Any, ___: Any, logs: Any = None, **____: Any) -> None:
            if "loss" in logs:
                watch.losses.append(logs["loss"])

    return Ticking()


def kobza_tuning(watch: Watch, objective: str, folder: str) -> None:
    """Tune a model by kobza."""
    import kobza
    from kobza.core import techniques
    from kobza.training import base, grpo

    model = kobza.open(folder)
    how: dict[str, Any] = {"steps": STEPS, "batch": 2, "held": 0.0, "precision": "float32", "evaluate": 1}
    how |= {"schedule": "constant", "rate": RATES[objective], "chat": False}  # TRL reads plain prompts as they are
    how["adapter"] = "lora:rank=8" if objective in ("sft", "grpo") else "none"
    if objective == "sft":
        how["answer"] = "chosen"
    marks = model.tokenizer.marks
    if objective != "orpo":  # TRL puts the start token in front of a plain prompt there alone
        model.tokenizer.marks = replace(marks, start_id=None)
    if objective == "grpo":
        model.tokenizer.marks = replace(marks, start_id=None, end_id=None)  # every answer has all its tokens
        how |= {"batch": 1, "group": GROUP, "tokens": TOKENS, "reward": "_training_peer:rule"}
        grpo.speak = watch.draws(grpo.speak)
    base._Loop._update = watch.ticks(base._Loop._update)  # type: ignore[method-assign]
    run, ended = base.run, []

    def watched(*given: Any, **more: Any) -> Any:
        watch.tick()
        found = run(*given, **more)
        ended.append(watch.told())  # the steps, without merging the adapter behind them
        return found

    base.run = watched
    found = techniques.verb("training", objective)(model, ROWS, **how)
    watch.losses = found.history["loss"][1:]
    print(json.dumps(ended[0] | {"losses": watch.losses, "peak_merged_MB": watch.told()["peak_MB"]}))


def trl_tuning(watch: Watch, objective: str, folder: str) -> None:
    """Tune a model by TRL."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows: list[dict[str, str]] = ROWS
    how: dict[str, Any] = {**_quiet(), "learning_rate": RATES[objective], "max_steps": STEPS, "bf16": False}
    how |= {"gradient_checkpointing": False, "logging_strategy": "steps", "logging_steps": 1}
    if objective == "grpo":
        rows = [{"prompt": row["prompt"]} for row in ROWS]
        how |= {"per_device_train_batch_size": GROUP, "num_generations": GROUP, "max_completion_length": TOKENS}
        how |= {"beta": 0.04, "loss_type": "grpo", "generation_kwargs": {"min_new_tokens": TOKENS}}
    else:
        how |= {"per_device_train_batch_size": 2, "max_length": 256}
    if objective == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    made = {
        "sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer), "grpo": (trl.GRPOConfig, trl.GRPOTrainer),
    }  # fmt: skip
    config, trainer_class = made[objective]
    more: dict[str, Any] = {}
    if objective in ("sft", "grpo"):
        more["peft_config"] = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    if objective == "grpo":
        more["reward_funcs"] = lambda completions, **_: [digits(answer) for answer in completions]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = trainer_class(
        model=opened(folder), args=config(**how), train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[_ticking(watch)], **more,
    )  # fmt: skip
    if objective == "grpo":
        trainer._generate = watch.draws(trainer._generate)
    trainer.train()
    told = watch.told()
    if objective == "sft":
        trainer.model.merge_and_unload()
    odds = [row["log_odds_ratio"] for row in trainer.state.log_history if "log_odds_ratio" in row]
    print(json.dumps(told | {"peak_merged_MB": watch.told()["peak_MB"]} | ({"odds": odds[0]} if odds else {})))


def main() -> None:
    """Do the work and print what it took."""
    torch.set_num_threads(1)
    who, work, folder = sys.argv[1:]
    watch = Watch()
    if work in RATES:
        {"kobza": kobza_tuning, "trl": trl_tuning}[who](watch, work, folder)
        return
    {"kobza": kobza_scratch, "plain": plain_scratch, "trainer": trainer_scratch}[who](watch, work, folder)
    print(json.dumps(watch.told()))


if __name__ == "__main__":
    main()
