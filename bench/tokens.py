"""Training and encoding against the libraries: equal merges and equal ids, CPU seconds of one thread, one run.

Training: ours (cutting the text included) against Hugging Face's `tokenizers` on about 10 MB of Python's own source and
documentation. Encoding: 2 MB through our face against the engine called alone; and what has no break: a megabyte of
one letter, of one word, of spaces, wanted under 2 s.
"""

from __future__ import annotations

import json
import os
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers

from kobza.core.texts import text
from kobza.tokens import pairs
from kobza.tokens.alphabet import byte_to_character

SIZE = 10_000_000  # characters
SIZES = (8192, 32768)


def corpus() -> str:
    """Return about 10 MB: the documentation, then source files in the order of their names."""
    parts, size = [text("topics").string, text("ukrainian").string], 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size > SIZE:
            break
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    return "".join(parts)[:SIZE]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds and the outcome."""
    begin = time.process_time()
    done = work()
    return time.process_time() - begin, done


def hugging_face(sample: str, size: int) -> list[tuple[str, str]]:
    """Train with `tokenizers` and return its merges."""
    level = tokenizers.pre_tokenizers.ByteLevel
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=level.alphabet(), show_progress=False
    )
    trained.train_from_iterator([sample], trainer)
    return [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]


def training(sample: str) -> pairs.Trained:
    """Print both trainers' seconds; return the larger vocabulary."""
    table = byte_to_character()
    for size in SIZES:
        theirs, wanted = seconds(lambda size=size: hugging_face(sample, size))
        ours, made = seconds(lambda size=size: pairs.train(sample, size=size, special=()))
        got = [tuple("".join(table[byte] for byte in part) for part in merge) for merge in made.merges]
        times = f"ours {ours:5.2f} s, tokenizers {theirs:5.2f} s, ratio {ours / theirs:.2f} (<= 1 wanted)"
        print(f"train {size:6d}: {times}; merges equal: {got == wanted}")
    return made


def encoding(vocabulary: pairs.Trained, sample: str) -> None:
    """Print our face against the engine alone, and texts without a break."""
    vocabulary.encode("warm")
    alone, ids = seconds(lambda: vocabulary._engine.encode_ordinary(sample) if vocabulary._engine else None)
    ours, got = seconds(lambda: vocabulary.encode(sample))
    print(f"encode {len(sample) / 1e6:.1f} MB: ours {ours:.3f} s, tiktoken alone {alone:.3f} s; equal: {got == ids}")
    backend, ids = seconds(lambda: vocabulary._backend.encode(sample).ids)
    print(f"    tokenizers {backend:.3f} s, ratio {ours / backend:.2f}; equal: {got == ids}")
    for name, long in (("a", "a" * 10**6), ("word", "qwzx" * 250_000), ("spaces", " " * 10**6 + "x")):
        print(f"    1 MB of {name}: {seconds(lambda long=long: vocabulary.encode(long))[0]:.2f} s (< 2 wanted)")


if __name__ == "__main__":
    sample = corpus()
    encoding(training(sample), sample[:2_000_000])
