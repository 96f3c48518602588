"""Bits of 20 kB of text: `token_bits` against the tightest plain loop over transformers, windows of equal size.

Each side runs in processes of its own, in turns; seconds are CPU time (least of three), memory is the peak above what
the process held before. Wanted: no slower, and less memory, since the logits of a whole window are never held.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

BYTES = 20_000
WINDOWS = (512, 1024)  # at 256 and below the logits of a window are no larger than a few chunks: no less memory there
REPEATS = 3
WANTED = 1.05  # times the CPU time of the plain loop: equal, within the noise of a busy machine


def plain(model: Any, ids: list[int], window: int) -> float:
    """Return the bits of a text by the plain loop: one call and one cross entropy for each window."""
    import torch
    from torch.nn.functional import cross_entropy

    start, total = model.tokenizer.start_id, 0.0
    tokens = torch.tensor(ids)
    with torch.inference_mode():
        for begin in range(0, len(tokens), window):
            part = tokens[begin : begin + window]
            fed = torch.cat([torch.tensor([start]), part[:-1]])
            logits = model.module(input_ids=fed[None], use_cache=False).logits[0]
            total += float(cross_entropy(logits, part, reduction="none").double().sum())
    return total / math.log(2)


def ours(model: Any, ids: list[int], window: int) -> float:
    """Return the bits of a text by `token_bits`."""
    from kobza.models.forward import token_bits

    return float(token_bits(model, ids, window=window, overlap=0).double().sum())


def measure(side: str, window: int) -> dict[str, float]:
    """Measure one side in this process."""
    import torch

    import kobza

    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    ids = model.tokenizer.encode(kobza.text(f"topics[:{BYTES}]").string)
    run = {"plain": plain, "ours": ours}[side]
    run(model, ids[:64], 64)  # what happens once is not part of the comparison
    touched = sum(float(p.sum()) for p in model.module.parameters())  # mapped weights enter memory here, not below
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    bits = run(model, ids, window)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bits": bits, "seconds": seconds, "megabytes": (peak - held) / 1024, "touched": touched}


def in_process(side: str, window: int) -> dict[str, float]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, side, str(window)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Print time, memory and their ratios for each window."""
    for window in WINDOWS:
        runs = [(in_process("plain", window), in_process("ours", window)) for _ in range(REPEATS)]
        seconds = [min(run[side]["seconds"] for run in runs) for side in (0, 1)]
        megabytes = [min(run[side]["megabytes"] for run in runs) for side in (0, 1)]
        bits = [runs[0][side]["bits"] for side in (0, 1)]
        print(f"SmolLM2-135M, {BYTES} bytes, windows of {window} tokens, one thread, least of {REPEATS}")
        print(f"plain loop: {seconds[0]:7.2f} s CPU  {megabytes[0]:7.0f} MB  {bits[0] / BYTES:.6f} bits per byte")
        print(f"token_bits: {seconds[1]:7.2f} s CPU  {megabytes[1]:7.0f} MB  {bits[1] / BYTES:.6f} bits per byte")
        print(f"ratio: {seconds[1] / seconds[0]:.3f} of the time, {megabytes[1] / megabytes[0]:.3f} of the memory")
        assert math.isclose(*bits, rel_tol=1e-6)
        assert seconds[1] < WANTED * seconds[0]
        assert megabytes[1] < megabytes[0]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
