"""A tokenizer as the metadata of a GGUF file, for vocabularies of byte-level BPE.

Source: the GGUF specification, docs/gguf.md (github.com/ggml-org/ggml); names of the splitting rules: llama-vocab.cpp
(github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import json
from typing import Any

from kobza.core.errors import Unavailable
from kobza.tokens.base import Tokenizer

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5  # gguf.TokenType
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}


def write(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """Add tokens, merges and marks to a GGUFWriter; rows without a token become unused ones.

    Args:
        writer: of the package gguf.
        tokenizer: the vocabulary.
        rows: of the model's tables [count].

    Raises:
        Unavailable: it is no byte-level BPE, or splits text by a rule that llama.cpp has no name for.
    """
    parts = json.loads(tokenizer._backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or tokenizer.spelling != "byte-level" or parts["normalizer"]:
        raise Unavailable(f"the vocabulary of {tokenizer.name!r} is not byte-level BPE: not written as GGUF.")
    names = {i: name for name, i in model["vocab"].items()}
    added = {token["id"]: token for token in parts["added_tokens"]}
    names |= {i: token["content"] for i, token in added.items()}
    kinds = {i: CONTROL if token["special"] else USER for i, token in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(parts["pre_tokenizer"], tokenizer.name))
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([kinds.get(i, NORMAL if i in names else UNUSED) for i in range(rows)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    _write_marks(writer, tokenizer)


def _write_marks(writer: Any, tokenizer: Tokenizer) -> None:
    marks = tokenizer.marks
    for id, add in (
        (marks.start_id, writer.add_bos_token_id),
        (marks.end_id, writer.add_eos_token_id),
        (marks.unknown_id, writer.add_unk_token_id),
        (marks.padding_id, writer.add_pad_token_id),
    ):
        if id is not None:
            add(id)
    writer.add_add_bos_token(marks.adds_start)
    writer.add_add_space_prefix(False)
    if isinstance(marks.chat_template, str):
        writer.add_chat_template(marks.chat_template)


def splitting(pre: Any, name: str = "") -> str:
    """Return llama.cpp's name of a splitting rule.

    Raises:
        Unavailable: it has none that is known here.
    """
    steps = pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre]
    kinds = [step["type"] for step in steps if step]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated":
        found = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if found:
            return found
    raise Unavailable(f"llama.cpp has no name for the rule by which {name!r} splits a text into words.")
