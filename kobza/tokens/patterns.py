"""How known vocabularies of byte ranks cut a text before merging, and which control tokens they have.

A `.tiktoken` file holds tokens and ranks only. The split pattern and the control tokens are known for the published
ones, told apart by the SHA-256 of the file; for any other the pattern must be given.

Source: patterns and control tokens as published with tiktoken (openai_public.py, MIT) and with Llama 3
(models/llama3/tokenizer.py of meta-llama/llama-models), in their plain, not possessive, form, which every regular
expression library reads alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

_MARKS = r"\p{M}"
_UPPER, _LOWER = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}{_MARKS}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}{_MARKS}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

PATTERNS: dict[str, str] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "none": r"(?s:.+)",
}


@dataclass(frozen=True)
class Known:
    """What a published file of ranks does not say itself.

    Attributes:
        name: what the vocabulary is called.
        count: tokens in the file, control tokens apart.
        pattern: name of its split pattern in `PATTERNS`.
        special: control tokens by name.
        start, end: names of the control tokens in front of and behind a text, or "".
        adds_start: True if the model is used with the start token in front of every text.
    """

    name: str
    count: int
    pattern: str
    special: dict[str, int] = field(default_factory=dict)
    start: str = ""
    end: str = "<|endoftext|>"
    adds_start: bool = False


@cache
def known() -> dict[str, Known]:
    """Return the published vocabularies by the SHA-256 of their file."""
    end, prompt = "<|endoftext|>", "<|endofprompt|>"
    middle = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, prompt: 100276}
    llama = _llama_special()
    return {
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": Known(
            "r50k_base", 50256, "gpt2", {end: 50256}
        ),
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": Known(
            "p50k_base", 50280, "gpt2", {end: 50256}
        ),
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": Known(
            "cl100k_base", 100256, "cl100k", {end: 100257, **middle}
        ),
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": Known(
            "o200k_base", 199998, "o200k", {end: 199999, prompt: 200018}
        ),
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": Known(
            "llama-3", 128000, "cl100k", llama, "<|begin_of_text|>", "<|end_of_text|>", adds_start=True
        ),
    }


def named(name: str) -> Known | None:
    """Return the published vocabulary that a file name such as `o200k_base.tiktoken` claims to be, or None."""
    stem = name.removesuffix(".tiktoken")
    return next((one for one in known().values() if one.name == stem), None)


def _llama_special() -> dict[str, int]:
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(251)]
    names = ["<|begin_of_text|>", "<|end_of_text|>", *reserved[:4], "<|start_header_id|>", "<|end_header_id|>"]
    names += [reserved[4], "<|eot_id|>", *reserved[5:]]
    return {name: 128000 + n for n, name in enumerate(names)}
