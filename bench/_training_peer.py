"""Five steps of an objective on SmolLM2 by kobza or TRL, for `bench/training.py`: CPU seconds, peak memory, losses."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch

STEPS, BATCH = 5, 2
ROWS = [
    {
        "prompt": f"Tell me about thing number {n}.",
        "chosen": "It is an instrument with a short neck and many strings, played in the villages.",
        "rejected": f"It costs {n} coins and weighs {n + 1} pounds, and nobody has ever seen two of them.",
    }
    for n in range(20)
]


def kobza_steps(objective: str, model: str) -> tuple[float, list[float]]:
    """Return CPU seconds and losses of kobza's steps."""
    import kobza
    from kobza.core import techniques
    from kobza.training import base

    opened = kobza.open(model)
    how: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "held": 0.0, "precision": "float32", "evaluate": 1}
    how |= {"adapter": "lora:rank=8", "answer": "chosen"} if objective == "sft" else {"adapter": "none"}
    how["chat"] = False  # TRL reads plain prompts as they are
    taken = []
    plain = base.run

    def timed(*given: Any, **more: Any) -> Any:
        begin = time.process_time()
        found = plain(*given, **more)
        taken.append(time.process_time() - begin)
        return found

    base.run = timed  # as TRL's: the steps, without what is made before and after them
    run = techniques.verb("training", objective)(opened, ROWS, **how)
    return taken[0], run.history["loss"][1:]


def trl_steps(objective: str, model: str) -> tuple[float, list[float]]:
    """Return CPU seconds and losses of TRL's steps."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = ROWS if objective != "sft" else [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
    configs = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "orpo": ORPOConfig}
    trainers = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "orpo": ORPOTrainer}
    folder = tempfile.mkdtemp()
    settings = configs[objective](
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=256, disable_tqdm=True,
    )  # fmt: skip
    more = {"peft_config": LoraConfig(r=8, target_modules="all-linear")} if objective == "sft" else {}
    trainer = trainers[objective](
        model=module, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **more
    )
    begin = time.process_time()
    trainer.train()
    return time.process_time() - begin, [row["loss"] for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    torch.set_num_threads(1)
    who, objective, model = sys.argv[1:]
    seconds, losses = (kobza_steps if who == "kobza" else trl_steps)(objective, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"who": who, "cpu_seconds": seconds, "peak_MB": peak, "losses": losses}))
