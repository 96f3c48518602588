"""An exported file as others run it: bits per byte and tokens per second in llama.cpp, transformers and kobza.

    .venv/bin/python bench/exported.py BASE.gguf FILE.gguf [FOLDER] [--bytes 2000]

A GGUF file is read by llama.cpp, by transformers (`from_pretrained(folder, gguf_file=...)`) and by kobza; a folder by
transformers and kobza. The texts are held out: the beginnings of `topics` and `source`, windows of 511 tokens begun by
the start token. Time is CPU time of one thread, generating 32 tokens behind a prompt, least of three; models take
turns, and ratios to the first file are printed. In transformers and kobza the weights of a GGUF file are dense.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.models import passes
from kobza.models.stepping import steps

Run = Callable[[torch.Tensor], torch.Tensor]  # ids (T,) -> logits (T, V)
TOKENS = 32


def by_llama(path: Path, dtype: Any) -> tuple[Run, Callable[[], Any]]:
    """llama.cpp through the C interface."""
    model = kobza.open(path)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return steps(model, backend="llama").feed(ids[None], keep=len(ids))[0]

    return logits, lambda: steps(model, backend="llama")


def by_transformers(path: Path, dtype: Any) -> tuple[Run, Callable[[], Any]]:
    """Plain transformers, without a line of ours."""
    from transformers import AutoModelForCausalLM, DynamicCache

    place = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    module: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype).eval()

    class Steps:
        def __init__(self) -> None:
            self.cache = DynamicCache()

        def feed(self, ids: Any) -> torch.Tensor:
            given = torch.as_tensor(ids)
            return module(input_ids=given, past_key_values=self.cache, use_cache=True).logits[:, -1]

    return lambda ids: module(input_ids=ids[None], use_cache=False).logits[0], Steps


def by_kobza(path: Path, dtype: Any) -> tuple[Run, Callable[[], Any]]:
    """Our own model and step."""
    model = kobza.open(path, dtype=None if dtype == torch.float32 else "bfloat16")
    return lambda ids: model.module(input_ids=ids[None], use_cache=False).logits[0], lambda: steps(model)


@torch.inference_mode()
def bits(run: Run, tokenizer: Any, text: Any) -> float:
    """Bits per byte of a text."""
    tokens, total = torch.tensor(tokenizer.encode(text.data)), 0.0
    for begin, _, end in passes.windows(len(tokens), 511, 0):
        logs = run(passes.fed_ids(tokens[begin:end], tokenizer.start_id)).double().log_softmax(-1)
        total -= float(logs.gather(1, tokens[begin:end][-len(logs) :, None]).sum())
    return total / math.log(2) / len(text)


@torch.inference_mode()
def seconds(begin: Callable[[], Any]) -> float:
    """CPU seconds of generating tokens."""
    run = begin()
    logits = run.feed([list(range(1, 17))])
    start = time.process_time()
    for _ in range(TOKENS):
        logits = run.feed([[int(logits.argmax())]])
    return time.process_time() - start


def main() -> None:
    """Print a line per file and way of running it."""
    torch.set_num_threads(1)
    words = [word for word in sys.argv[1:] if not word.startswith("--") and not word.isdigit()]
    size = int(sys.argv[sys.argv.index("--bytes") + 1]) if "--bytes" in sys.argv else 2000
    files = [Path(word) for word in words]
    tokenizer = kobza.open(files[0]).tokenizer
    for name, way in (("llama.cpp", by_llama), ("transformers", by_transformers), ("kobza", by_kobza)):
        chosen = [(file, torch.float32) for file in files if file.is_file() or name != "llama.cpp"]
        opened = {file: way(file, torch.bfloat16 if file.is_dir() else dtype) for file, dtype in chosen}
        best = dict.fromkeys(opened, math.inf)
        for _ in range(3):
            for file, (_, begin) in opened.items():
                best[file] = min(best[file], seconds(begin))
        for file, (run, _) in opened.items():
            found = [bits(run, tokenizer, kobza.text(f"{text}[:{size}]")) for text in ("topics", "source")]
            disk = file.stat().st_size if file.is_file() else sum(f.stat().st_size for f in file.iterdir())
            print(
                f"{name:12} {file.name:24} {disk:>12,} bytes  prose {found[0]:.4f}  code {found[1]:.4f} bit/B  "
                f"{TOKENS / best[file]:7.1f} token/s  {best[files[0]] / best[file]:5.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
