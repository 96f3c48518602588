"""Transplants of SmolLM2, in bits per byte and by cause: python -m bench.transplant DATA.

DATA holds `text/` (tinyshakespeare.txt, enwik8-first4e6.gz) and `tokenizers/` (.tiktoken files). The article is one of
Wikipedia with its markup taken off and its quotes made typographic, as web pages write them. Windows of 512 tokens
without overlap.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

import kobza
from kobza.core.errors import MissingExtra
from kobza.core.figure import COLORS
from kobza.core.texts import Text
from kobza.edits import transplant
from kobza.measures.base import take
from kobza.models.forward import token_bits
from kobza.tokens import supertokens
from kobza.tokens.base import Tokenizer

TEST = "Alfred Hitchcock"
UNSEEN = (TEST, "Al Gore")  # methods were chosen on the second and are measured on the first

MARKUP = (
    r"<!--.*?-->|<ref.*?</ref>|<math>.*?</math>|<table.*?</table>",
    *[r"\{\{[^{}]*\}\}|\{\|.*?\|\}"] * 3,
    r"\[\[(?:Image|image|Category|[a-z-]{2,12}):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]",
)
REST = ((r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1"), (r"\[https?:\S+ ?([^\]]*)\]", r"\1"), (r"</?[a-zA-Z][^>]*>", ""))
QUOTES = ((r"(?<=\w)'|'(?=\d0s)", "\u2019"), (r'(^|[\s(\u2014-])"', "\\1\u201c"), (r'"', "\u201d"))
SINGLE = ((r"(^|[\s(])'", "\\1\u2018"), (r"'", "\u2019"))


@cache
def dump(data: Path) -> str:
    """Return enwik8[0:4e6]."""
    return gzip.decompress((data / "text" / "enwik8-first4e6.gz").read_bytes()).decode()


def article(data: Path, title: str) -> bytes:
    """Return the prose of one of its articles: paragraphs above 80 characters, without markup."""
    whole = dump(data)
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


@dataclass(frozen=True)
class Case:
    """What stands in a line of the table: its name, the options, the vocabularies it is run on."""

    name: str
    options: dict[str, Any]
    onto: tuple[str, ...] = ("r50k_base", "supertokens", "o200k_base")


ORDER = ("r50k_base", "supertokens", "o200k_base")
SMALL = ORDER[:2]  # neighbors of 159,002 rows among 49,152 are ten minutes of one core
CASES = (
    Case("random", {"method": "random"}),
    Case("mean", {"method": "mean"}),
    Case("subtokens", {"method": "subtokens"}),
    Case("neighbors", {"method": "neighbors"}, SMALL),
    Case("hybrid", {"method": "hybrid"}, SMALL),
    Case("hybrid with MiniLM", {"method": "hybrid", "space": "minilm"}, SMALL),
    Case("fitted", {"method": "fitted"}),
    Case("chained without contexts", {"method": "chained", "contexts": 0}),
    Case("chained without contexts + 12 updates", {"method": "chained", "contexts": 0, "steps": 12}, ("r50k_base",)),
    Case("chained without contexts + 40 updates", {"method": "chained", "contexts": 0, "steps": 40}, SMALL),
    Case("chained (default)", {"method": "chained"}),
    Case("chained + 12 updates", {"method": "chained", "steps": 12}, ("r50k_base",)),
    Case("chained + 40 updates", {"method": "chained", "steps": 40}),
)
CAUSES = ("leak onto new rows", "unfamiliar splits", "new tokens", "context")


class Bench:
    """Transplants of SmolLM2 measured one by one; what was measured is kept in a file of lines, and not again.

    Args:
        data: the folder of texts and vocabularies.
        kept: file of results.
    """

    def __init__(self, data: Path, kept: Path) -> None:
        self.data, self.kept = data, kept
        self.model = kobza.open("smollm2")
        shakespeare = (data / "text" / "tinyshakespeare.txt").read_bytes()
        self.texts = {"article": article(data, TEST), "shakespeare": shakespeare}
        self.bits = kept.with_suffix(".bits.pt")  # of the original, which every case is compared with
        self.known: dict[str, torch.Tensor] = torch.load(self.bits) if self.bits.exists() else {}

    def done(self) -> list[dict[str, Any]]:
        """Return what was measured so far."""
        return [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []

    @cached_property
    def articles(self) -> list[Text]:
        """Prose to learn from: the first 20 kB of the other articles above 4 kB, at most 96."""
        found = [Text(title, article(self.data, title)[:20000]) for title in titles(self.data) if title not in UNSEEN]
        return [text for text in found if len(text) > 4000][:96]

    def vocabulary(self, name: str) -> Tokenizer:
        """Open a vocabulary, or train the one of supertokens: 32,768 on the articles and the end of Shakespeare."""
        if name != "supertokens":
            return kobza.vocabulary(self.data / "tokenizers" / f"{name}.tiktoken")
        path = self.kept.with_suffix(".supertokens.json")
        if not path.exists():
            corpus = [text.data for text in self.articles] + [self.texts["shakespeare"][200_000:]]
            supertokens.train(corpus, size=32768).save_json(path)
        return kobza.vocabulary(path)

    def measure(self, name: str, case: Case, limit: int) -> None:
        """Move the model, split the change by cause on both texts, append the line."""
        options = dict(case.options)
        vocabulary = self.vocabulary(name)
        if options["method"] == "chained":
            options["calibration"] = self.articles
        began = time.process_time()
        moved = transplant.onto(self.model, vocabulary, **options)
        line: dict[str, Any] = {"onto": name, "method": case.name, "seconds": time.process_time() - began}
        line |= {"limit": limit, "texts": {}, "facts": moved.changes[-1].facts}
        for title, text in self.texts.items():
            sample = text[:limit]
            bits = self.before(title, sample)
            rows = list(transplant.causes(self.model, moved, sample, bits=bits))
            before = float(bits.double().sum()) / len(sample)
            line["texts"][title] = {"before": before, "changes": [row["change"] for row in rows]}
        with self.kept.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def before(self, title: str, sample: bytes) -> torch.Tensor:
        """Bits of the original's tokens."""
        key = f"{title}[:{len(sample)}]"
        if key not in self.known:
            ids = take(self.model, sample).ids
            self.known[key] = token_bits(self.model, ids, window=512, overlap=0)
            torch.save(self.known, self.bits)
        return self.known[key]


def titles(data: Path) -> list[str]:
    """Return the titles of the articles of enwik8[0:4e6]."""
    whole = dump(data)
    return re.findall(r"<title>([^<]*)</title>", whole[: whole.rindex("</page>")])


def main() -> None:
    """Measure what is lacking within the time given, or write the page."""
    words = argparse.ArgumentParser()
    words.add_argument("data", type=Path)
    words.add_argument("--kept", type=Path, default=Path("transplant.jsonl"), help="results so far")
    words.add_argument("--onto", default="r50k_base,supertokens,o200k_base")
    words.add_argument("--methods", default="", help="names of cases; all by default")
    words.add_argument("--limit", type=int, default=8000, help="bytes of each text")
    words.add_argument("--seconds", type=float, default=0, help="begin nothing after so much CPU time; 0: no end")
    words.add_argument("--docs", type=Path, help="write the page and the picture from the results, measure nothing")
    asked = words.parse_args()
    torch.set_num_threads(1)
    if asked.docs:
        write(asked.docs, [json.loads(line) for line in asked.kept.read_text().splitlines()])
        return
    bench = Bench(asked.data, asked.kept)
    there = {(line["onto"], line["method"]) for line in bench.done()}
    for name in asked.onto.split(","):
        for case in CASES:
            over = asked.seconds and time.process_time() > asked.seconds
            asked_for = not asked.methods or case.name in asked.methods.split(",")
            if asked_for and name in case.onto and (name, case.name) not in there and not over:
                try:
                    bench.measure(name, case, asked.limit)
                except MissingExtra as error:
                    print(f"{name} {case.name}: skipped, {error}", flush=True)


# --- the page ---------------------------------------------------------------------------------------------------------

MARK = "<!-- made by bench/transplant.py -->"
HEAD = "| onto | method | CPU s | article | regained | by cause | Shakespeare | regained | by cause |"


def write(docs: Path, lines: list[dict[str, Any]]) -> None:
    """Put the table between the marks of docs/transplant.md, and draw the causes."""
    page = docs / "transplant.md"
    before, _, after = page.read_text().split(MARK)
    page.write_text(f"{before}{MARK}\n{table(lines)}\n{MARK}{after}")
    draw(docs / "pictures" / "transplant.svg", lines)


def table(lines: list[dict[str, Any]]) -> str:
    """Return the table in Markdown; regained is the share of what sub-tokens lose."""
    rows = [HEAD, "|" + "---|" * 9]
    for name, group in groups(lines).items():
        first = next(iter(group.values()))
        before = [f"{first['texts'][title]['before']:.4f}" for title in first["texts"]]
        rows.append(
            f"| {name} ({first['facts']['composed']:,} new rows) | (before) | | {before[0]} | | | {before[1]} | | |"
        )
        for method, line in group.items():
            cells = [cell for title in line["texts"] for cell in cells_of(line, group.get("subtokens"), title)]
            rows.append(f"| | {method} | {line['seconds']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cells_of(line: dict[str, Any], base: dict[str, Any] | None, title: str) -> list[str]:
    """Bits per byte after, share regained, and the change by cause."""
    *parts, change = line["texts"][title]["changes"]
    regained = "" if base is None else f"{1 - change / base['texts'][title]['changes'][-1]:.0%}"
    causes = " / ".join(f"{part:.3f}".replace("0.", ".", 1) for part in parts)
    return [f"{line['texts'][title]['before'] + change:.4f}", regained, causes]


def groups(lines: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Results by vocabulary and method, in the order of `CASES`."""
    order = [case.name for case in CASES]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (ORDER.index(line["onto"]), order.index(line["method"]))):
        found.setdefault(line["onto"], {})[line["method"]] = line
    return found


def draw(path: Path, lines: list[dict[str, Any]]) -> None:
    """Draw the change by cause as bars, a panel per vocabulary and text; controls are off the scale and left out."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "transplant"
    every = groups(lines)
    figure, panels = plt.subplots(len(every), 2, figsize=(10, 2.6 * len(every)), squeeze=False, sharey="row")
    for row, (name, group) in zip(panels, every.items(), strict=True):
        methods = [method for method in group if method not in ("random", "mean")][::-1]
        for panel, title in zip(row, ("article", "shakespeare"), strict=True):
            at = [0.0] * len(methods)
            for n, cause in enumerate(CAUSES):
                sizes = [group[method]["texts"][title]["changes"][n] for method in methods]
                panel.barh(methods, sizes, left=at, color=COLORS[n], label=cause, height=0.7)
                at = [a + size for a, size in zip(at, sizes, strict=True)]
            panel.set_title(f"{name}, {title}", fontsize=10)
            panel.set_xlabel("change [bit/B]", fontsize=9)
    panels[0][1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
