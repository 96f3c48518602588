"""Training and encoding against the libraries: equal merges and equal ids, CPU seconds of one thread, one run.

    python bench/tokens.py [--rustbpe PYTHON]

Training: ours (cutting the text included) against Hugging Face's `tokenizers` and, if the interpreter of an environment
that has it is named (`python -m venv ENV && ENV/bin/pip install rustbpe`), against rustbpe, on about 10 MB of Python's
own source and documentation. Encoding: 2 MB through our face against the engine called alone, for each vocabulary of
the data folder (KOBZA_DATA) and SmolLM2's; and what has no break: a megabyte of one letter, of one word, of text
without its spaces, of spaces, wanted under 2 s each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers

import kobza
from kobza.core.table import Table
from kobza.core.texts import text
from kobza.tokens import pairs
from kobza.tokens.alphabet import byte_to_character
from kobza.tokens.base import Tokenizer

SIZE = 10_000_000  # characters
SIZES = (8192, 32768)
DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "tokenizers"
RUSTBPE = """
import sys, time, rustbpe
sample, size, pattern = open(sys.argv[1], encoding="utf-8", newline="").read(), int(sys.argv[2]), sys.argv[3]
begin = time.process_time()
rustbpe.Tokenizer().train_from_iterator([sample], size, pattern=pattern)
print(time.process_time() - begin)
"""


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


def rustbpe(python: str, sample: str, size: int) -> float | None:
    """Return the CPU seconds of rustbpe in an interpreter that has it, or None."""
    if not python:
        return None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sample").write_text(sample, encoding="utf-8", newline="")
        words = [python, "-c", RUSTBPE, str(Path(folder, "sample")), str(size), pairs.PATTERNS["gpt2"]]
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def training(sample: str, python: str) -> Table:
    """Return all trainers' seconds."""
    table, rows = byte_to_character(), []
    for size in SIZES:
        theirs, wanted = seconds(lambda size=size: hugging_face(sample, size))
        ours, made = seconds(lambda size=size: pairs.train(sample, size=size, special=()))
        got = [tuple("".join(table[byte] for byte in part) for part in merge) for merge in made.merges]
        row = {"ids": size, "ours": ours, "tokenizers": theirs, "of tokenizers": ours / theirs}
        other = rustbpe(python, sample, size)
        rows.append(row | {"rustbpe": other, "of rustbpe": other and ours / other, "merges equal": got == wanted})
    units = dict.fromkeys(("ours", "tokenizers", "rustbpe"), "s")
    return Table(rows, units=units, title=f"Training on {len(sample.encode()):,} bytes, CPU seconds, one thread")


def vocabularies() -> list[tuple[Tokenizer, str, Callable[[str], list[int]]]]:
    """Return our tokenizer, the library under it, and that library's own encoding."""
    found: list[tuple[Tokenizer, str, Callable[[str], list[int]]]] = []
    for name in ("r50k_base", "cl100k_base", "o200k_base", "llama-3"):
        if (DATA / f"{name}.tiktoken").is_file():
            ranked: Any = kobza.vocabulary(DATA / f"{name}.tiktoken")
            found.append((ranked, "tiktoken", ranked._engine.encode_ordinary))
    if (DATA / "mistral-7b-v0.1.model").is_file():
        pieced: Any = kobza.vocabulary(DATA / "mistral-7b-v0.1.model")
        found.append((pieced, "sentencepiece", pieced._processor.encode))
    plain: Any = kobza.vocabulary("smollm2")
    return [*found, (plain, "tokenizers", lambda text: plain._backend.encode(text, add_special_tokens=False).ids)]


def encoding(sample: str) -> Table:
    """Return seconds of our face, of the library alone, and of texts without a break."""
    rows = []
    solid = "".join(sample.split())[:1_000_000]
    breakless = {"a": "a" * 10**6, "word": "qwzx" * 250_000, "no spaces": solid, "spaces": " " * 10**6 + "x"}
    for tokenizer, library, encode in vocabularies():
        tokenizer.encode("warm"), encode("warm")
        alone, ids = min((seconds(lambda e=encode: e(sample)) for _ in range(3)), key=lambda pair: pair[0])
        ours, got = min((seconds(lambda t=tokenizer: t.encode(sample)) for _ in range(3)), key=lambda pair: pair[0])
        row = {"vocabulary": tokenizer.name, "library": library, "ours": len(sample.encode()) / 1e6 / ours}
        row |= {"alone": len(sample.encode()) / 1e6 / alone, "of its speed": alone / ours, "equal": got == ids}
        for name, long in breakless.items():
            row[name] = seconds(lambda t=tokenizer, long=long: t.encode(long))[0]
        rows.append(row)
    units = {"ours": "MB/s", "alone": "MB/s"} | dict.fromkeys(breakless, "s")
    return Table(rows, units=units, title="Encoding 2 MB, and a megabyte without a break (< 2 s wanted)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rustbpe", default="", metavar="PYTHON")
    given = parser.parse_args()
    sample = corpus()
    print(
        encoding("".join(c for c in sample[:2_000_000] if c.isascii() and (c.isprintable() or c == "\n"))), "", sep="\n"
    )
    print(training(sample, given.rustbpe))
