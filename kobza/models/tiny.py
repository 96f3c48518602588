"""Random models of many families, small enough for tests: seeded, whole, and not degenerate.

The tokenizer is byte-level and ours: a start and an end mark, 256 bytes, and merges counted in one paragraph.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import tokenizers
import torch
from torch import nn

from kobza.core.errors import OutOfRange, UnknownName
from kobza.models.model import Model, Origin
from kobza.tokens.base import Marks, Tokenizer

START, END = "<s>", "</s>"
SMALLEST = 258  # two marks and 256 bytes

PARAGRAPH = """The kobza is a lute with a short neck and many strings. The player plucks the long strings over the
neck and the short ones beside it, and sings to what he plays. Nobody knows who made the first one: the name came with
traders from the east, and the shape changed in every village that it passed. Some have eight strings, others twelve
or thirty. The old players were often blind; they went from fair to fair, and what they sang was the news of the day,
the history of the land, and the things that one should not forget. In the end the instrument is only wood and air.
What it says depends on the hand that holds it, and on the ear that has learned to hear the difference."""

# what differs from the common entries below, per family
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"original_max_position_embeddings": 2048},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn": "ffn_dim"},
    "cohere": {"logit_scale": 0.5},
    "granite": {
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
    },
    "olmo2": {},
    "stablelm": {},
}


def tiny(
    family: str = "llama",
    *,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    vocabulary: int = 300,
    seed: int = 0,
    tied: bool = True,
    context: int = 2048,
) -> Model:
    """Make a small random model.

    Args:
        family: one of `FAMILIES`.
        layers: blocks [count, 1 ..].
        width: width of the residual stream [count, a multiple of 2 heads].
        heads: attention heads [count, 1 ..].
        kv_heads: key/value heads, where the family has fewer of them [count, a divisor of heads].
        vocabulary: rows of the tables; ids above the merges that the paragraph yields stay unused [count, 258 ..].
        seed: of the weights; each weight draws from a generator of (seed, its name).
        tied: both ends one tensor.
        context: trained positions [count, 1 ..].

    Returns:
        The same Model, bit for bit, for equal arguments.
    """
    if family not in FAMILIES:
        raise UnknownName.of("tiny family", family, FAMILIES)
    _check(layers=layers, width=width, heads=heads, kv_heads=kv_heads, vocabulary=vocabulary, context=context)
    entry = dict(FAMILIES[family])
    config = _config(entry.pop("model_type", family), entry, layers, width, heads, kv_heads, vocabulary, tied, context)
    module = _module(config)
    _fill(module, seed)
    spec = f"tiny:{family}?layers={layers}&width={width}&seed={seed}"
    origin = Origin(spec=spec, licence="CC0-1.0", kind="random", notes=("random weights, made for tests",))
    return Model(f"tiny:{family}", module, byte_tokenizer(vocabulary), origin=origin)


def _check(*, layers: int, width: int, heads: int, kv_heads: int, vocabulary: int, context: int) -> None:
    if min(layers, heads, kv_heads, context) < 1:
        raise OutOfRange(
            f"layers, heads, kv_heads and context are at least 1; seen {layers, heads, kv_heads, context}."
        )
    if width % (2 * heads) or width < 2 * heads or heads % kv_heads:
        raise OutOfRange(
            f"width {width} must be a multiple of 2 x heads ({2 * heads}), heads {heads} one of kv_heads {kv_heads}."
        )
    if vocabulary < SMALLEST:
        raise OutOfRange(f"vocabulary {vocabulary} is too small: {SMALLEST} ids are taken by the bytes and two marks.")


def _config(
    model_type: str,
    entry: dict[str, Any],
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    tied: bool,
    context: int,
) -> Any:
    from transformers import AutoConfig

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "dtype": "float32",
    }
    if model_type == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": heads}
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes[entry.pop("ffn", "intermediate_size")] = 3 * width
        if model_type == "opt":
            sizes["word_embed_proj_dim"] = width
        if model_type not in ("gpt_neox", "opt"):
            sizes["num_key_value_heads"] = kv_heads
        if model_type in ("gemma2", "gemma3_text", "qwen3"):
            sizes["head_dim"] = width // heads
    return AutoConfig.for_model(model_type, **{**common, **sizes, **entry})


def _module(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):  # building draws from the global generator: leave it as it was
        module: Any = AutoModelForCausalLM.from_config(config)
    return module


@torch.no_grad()
def _fill(module: Any, seed: int) -> None:
    """Fill every weight: tables 0.25 N, matrices N / sqrt(inputs), norms and biases their start + 0.1 N (N normal)."""
    tables = {id(part.weight) for part in (module.get_input_embeddings(), module.get_output_embeddings())}
    for name, parameter in module.named_parameters():
        mixed = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little") >> 1)
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in tables:
            parameter.copy_(0.25 * noise)
        elif parameter.ndim > 1:
            is_transposed = type(module.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
            inputs = parameter.shape[0] if is_transposed else parameter.shape[-1]
            parameter.copy_(noise / math.sqrt(inputs))
        else:
            parameter.add_(0.1 * noise)


@cache
def byte_tokenizer(vocabulary: int = 300) -> Tokenizer:
    """Return the byte-level tokenizer of the tiny models: 2 marks, 256 bytes, then up to `vocabulary` - 258 merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(PARAGRAPH.encode(), vocabulary - SMALLEST)
    names = [START, END, *alphabet, *(a + b for a, b in merges)]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    return Tokenizer(backend, Marks(start_id=0, end_id=1, adds_start=True), name="tiny")


def _merges(data: bytes, count: int) -> list[tuple[str, str]]:
    """Return the first `count` merges of byte pair encoding over the words of `data` (ties: the smaller pair)."""
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for word, _ in splitter.pre_tokenize_str(data.decode()))
    pieces = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    seen: set[str] = set()
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        pairs = Counter({pair: n for pair, n in pairs.items() if pair[0] + pair[1] not in seen})
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        seen.add(best[0] + best[1])
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out
