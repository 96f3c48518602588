"""The same cells done by a peer library, in that library's own environment: called by `bench/interventions.py`.

    PYTHON bench/interventions_peers.py transformer_lens|nnsight FOLDER JOBS.json

FOLDER holds the model as transformers files; JOBS lists prompts as ids and cells as (layer, neuron, last position only)
or patches (layer, position, vector). Prints one JSON document: CPU milliseconds per cell and the probability of each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def transformer_lens(model: Any, tokenizer: Any) -> Callable[..., torch.Tensor]:
    """Return a function (ids, layer, kind, change) -> logits at the last position, by a hooked forward pass."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=model, tokenizer=tokenizer
    )
    names = {"neuron": "blocks.{}.mlp.out.hook_in", "resid_pre": "blocks.{}.hook_in"}

    def run(ids: torch.Tensor, layer: int, kind: str, change: Callable[[torch.Tensor], None]) -> torch.Tensor:
        def hook(value: torch.Tensor, **_: Any) -> torch.Tensor:
            value = value.clone()
            change(value)
            return value

        found: torch.Tensor = bridge.run_with_hooks(ids, fwd_hooks=[(names[kind].format(layer), hook)])
        return found[0, -1]

    return run


def nnsight(model: Any, tokenizer: Any) -> Callable[..., torch.Tensor]:
    """Return the same by nnsight's tracing."""
    from nnsight import LanguageModel

    traced = LanguageModel(model, tokenizer=tokenizer)

    def run(ids: torch.Tensor, layer: int, kind: str, change: Callable[[torch.Tensor], None]) -> torch.Tensor:
        with torch.no_grad(), traced.trace(ids):
            block = traced.model.layers[layer]
            if kind == "neuron":
                value = block.mlp.down_proj.input.clone()
                change(value)
                block.mlp.down_proj.input = value
            else:
                value = block.input.clone()
                change(value)
                block.input = value
            out = traced.lm_head.output[0, -1].save()
        found: torch.Tensor = out
        return found

    return run


def _zero(neuron: int, is_last: bool) -> Callable[[torch.Tensor], None]:
    def change(value: torch.Tensor) -> None:
        value[0, -1 if is_last else slice(None), neuron] = 0

    return change


def _put(position: int, vector: list[float]) -> Callable[[torch.Tensor], None]:
    new = torch.tensor(vector)

    def change(value: torch.Tensor) -> None:
        value[0, position] = new

    return change


def main() -> None:
    """Run every job, and print what it took and gave."""
    torch.set_num_threads(1)
    library, folder, jobs = sys.argv[1:]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    run = {"transformer_lens": transformer_lens, "nnsight": nnsight}[library](
        model, AutoTokenizer.from_pretrained(folder)
    )
    found = {}
    for job in json.loads(Path(jobs).read_text(encoding="utf-8")):
        ids = torch.tensor([job["ids"]])
        changes = [
            (cell["layer"], _zero(cell["neuron"], cell["last"]) if job["kind"] == "neuron"
             else _put(cell["position"], cell["vector"]))
            for cell in job["cells"]
        ]  # fmt: skip
        with torch.inference_mode(library != "nnsight"):
            run(ids, changes[0][0], job["kind"], changes[0][1])  # what is made on first use is not counted
            begin = time.process_time()
            logits = [run(ids, layer, job["kind"], change) for layer, change in changes]
            seconds = time.process_time() - begin
        probs = [float(row.float().softmax(-1)[job["token"]]) for row in logits]
        found[job["name"]] = {"milliseconds": 1e3 * seconds / len(changes), "probs": probs}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
