"""Transplants of SmolLM2, in bits per byte and by cause: python -m bench.transplant DATA.

DATA holds `text/` (tinyshakespeare.txt, enwik8-first4e6.gz) and `tokenizers/` (.tiktoken files). The article is one of
Wikipedia with its markup taken off and its quotes made typographic, as web pages write them. Windows of 512 tokens
without overlap.
"""

from __future__ import annotations

import argparse
import gzip
import html
import re
import time
from pathlib import Path

import torch

import kobza
from kobza.edits import transplant

MARKUP = (
    r"<!--.*?-->|<ref.*?</ref>|<math>.*?</math>|<table.*?</table>",
    *[r"\{\{[^{}]*\}\}|\{\|.*?\|\}"] * 3,
    r"\[\[(?:Image|image|Category|[a-z-]{2,12}):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]",
)
REST = ((r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1"), (r"\[https?:\S+ ?([^\]]*)\]", r"\1"), (r"</?[a-zA-Z][^>]*>", ""))
QUOTES = ((r"(?<=\w)'|'(?=\d0s)", "\u2019"), (r'(^|[\s(\u2014-])"', "\\1\u201c"), (r'"', "\u201d"))
SINGLE = ((r"(^|[\s(])'", "\\1\u2018"), (r"'", "\u2019"))


def article(data: Path, title: str) -> bytes:
    """Return the prose of an article of enwik8[0:4e6]: paragraphs above 80 characters, without markup."""
    whole = gzip.decompress((data / "text" / "enwik8-first4e6.gz").read_bytes()).decode()
    begin = whole.index(f"<title>{title}</title>")
    found = re.search(r"<text[^>]*>(.*)</text>", whole[begin : whole.find("</page>", begin)], re.DOTALL)
    assert found is not None
    text = html.unescape(html.unescape(found[1]))
    for pattern in MARKUP:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    for pattern, to in (*REST, (r"'{2,5}", ""), (r"={2,5} *(.*?) *={2,5}", r"\1")):
        text = re.sub(pattern, to, text)
    lines = [line.strip() for line in text.split("\n")]
    text = "\n".join(line for line in lines if len(line) > 80 and line[0] not in "*#:|{!;")
    for pattern, to in (*QUOTES, *SINGLE):
        text = re.sub(pattern, to, text)
    return text.encode() + b"\n"


def main() -> None:
    """Print a line per vocabulary, method and text."""
    words = argparse.ArgumentParser()
    words.add_argument("data", type=Path)
    words.add_argument("--tokens", default="r50k_base,o200k_base")
    words.add_argument("--methods", default="fitted,subtokens,hybrid")
    words.add_argument("--limit", type=int, default=8000)
    asked = words.parse_args()
    torch.set_num_threads(1)
    model = kobza.open("smollm2")
    shakespeare = (asked.data / "text" / "tinyshakespeare.txt").read_bytes()
    texts = {"article": article(asked.data, "Alfred Hitchcock"), "shakespeare": shakespeare}
    for name in asked.tokens.split(","):
        vocabulary = kobza.vocabulary(asked.data / "tokenizers" / f"{name}.tiktoken")
        for method in asked.methods.split(","):
            began = time.process_time()
            moved = transplant.onto(model, vocabulary, method=method)
            print(f"{name} {method}: {time.process_time() - began:.1f} s of CPU", flush=True)
            for title, text in texts.items():
                rows = list(transplant.causes(model, moved, text[: asked.limit]))
                print(f"  {title}", *(f"{row['cause']} {row['change']:+.4f}" for row in rows), sep="; ", flush=True)


if __name__ == "__main__":
    main()
