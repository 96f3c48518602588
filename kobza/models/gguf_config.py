"""From a GGUF header to a transformers configuration and tokenizer, as transformers itself derives them.

The tables of key names are transformers' own (`integrations/ggml.py`); this module only reads them from a header
that was parsed 30 times faster. Architectures outside `PLAIN` have rules in code rather than tables, and are left to
transformers altogether.
"""

from __future__ import annotations

from typing import Any

from kobza.core.errors import Corrupt
from kobza.models.gguf_header import Header
from kobza.tokens.base import Marks, Tokenizer

# architectures whose configuration and weights follow the tables; checked one by one in the tests
PLAIN = frozenset(
    {
        "llama",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "gpt2",
        "starcoder2",
        "stablelm",
        "falcon",
        "nemotron",
        "bloom",
        "mamba",
    }
)


def config_dict(header: Header) -> dict[str, Any]:
    """Return the configuration values that the header's metadata imply.

    Raises:
        Corrupt: the file lacks a value that its architecture needs.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture, model_type = header.architecture, _model_type(header)
    config: dict[str, Any] = _from_tensors(header)
    for key, value in header.fields.items():
        group, _, name = key.replace(architecture, model_type).partition(".")
        renamed = GGUF_CONFIG_MAPPING.get(group, {}).get(name)
        if renamed is not None:
            config[renamed] = _renamed(_single(value), architecture, model_type)
    width = header.fields.get(f"{architecture}.attention.key_length")
    if model_type in ("qwen2", "qwen3") and isinstance(width, int):
        config["head_dim"] = width  # the tables leave it out for these families
    if config.get("model_type") == "gemma3":
        config["model_type"] = "gemma3_text"  # the file holds the text part only
    if "vocab_size" not in config and (tokens := header.fields.get("tokenizer.ggml.tokens")):
        config["vocab_size"] = len(tokens)
    return config


def _model_type(header: Header) -> str:
    # llama.cpp files Mistral under llama; transformers looks at the exact name "mistral"
    name = header.fields.get("general.name")
    return "mistral" if "llama" in header.architecture and name == "mistral" else header.architecture


def _from_tensors(header: Header) -> dict[str, Any]:
    """Return what only the list of tensors tells."""
    architecture, names = header.architecture, header.tensors.keys()
    config: dict[str, Any] = {}
    if architecture == "stablelm":
        biases = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
        config["use_qkv_bias"] = any(bias in name for name in names for bias in biases)
        config["use_parallel_residual"] = not any("ffn_norm" in name for name in names)
    config["tie_word_embeddings"] = "output.weight" not in names or architecture in ("falcon", "bloom")
    return config


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _renamed(value: Any, architecture: str, model_type: str) -> Any:
    return value.replace(architecture, model_type) if isinstance(value, str) else value


def tokenizer(header: Header, name: str) -> Tokenizer:
    """Build the tokenizer that the header describes; its ids equal transformers'.

    Raises:
        Corrupt: the vocabulary contradicts itself.
    """
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    described = {
        renamed: header.fields[f"tokenizer.{key}"]
        for key, renamed in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in header.fields
    }
    _check_vocabulary(header, described)
    try:
        backend, _ = convert_gguf_tokenizer(header.architecture, described)
    except BaseException as error:  # the Rust library panics on some vocabularies, which is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise _bad(header, f"its vocabulary cannot be used: {reason}") from None
    return Tokenizer(_of_the_file(backend, len(described["tokens"])), _marks(header, described), name=name)


def _of_the_file(backend: Any, size: int) -> Any:
    """Return the tokenizer without tokens beyond the file's own list of `size`.

    transformers' tokenizer classes add their default control tokens (GPT-2's `<|endoftext|>`) where a vocabulary has
    none of that name; the model has no rows for them.
    """
    import json

    if all(id < size for id in backend.get_added_tokens_decoder()):
        return backend
    whole = json.loads(backend.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < size]
    return type(backend).from_str(json.dumps(whole))


def _check_vocabulary(header: Header, described: dict[str, Any]) -> None:
    tokens = described.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise _bad(header, "it has no list of tokens ('tokenizer.ggml.tokens')")
    for name in ("scores", "token_type"):
        other = described.get(name)
        if other is not None and (not isinstance(other, list) or len(other) != len(tokens)):
            count = len(other) if isinstance(other, list) else "no list of"
            raise _bad(header, f"it has {len(tokens)} tokens but {count} values of 'tokenizer.ggml.{name}'")
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        id = described.get(name)
        if id is not None and not (isinstance(id, int) and 0 <= id < len(tokens)):
            raise _bad(header, f"its {name} is {id!r}, the vocabulary has ids 0 .. {len(tokens) - 1}")
    _check_merges(header, described, set(tokens))


def _check_merges(header: Header, described: dict[str, Any], tokens: set[str]) -> None:
    merges = described.get("merges")
    if merges is None or described.get("tokenizer_type") != "gpt2":
        return
    for n, merge in enumerate(merges):
        left, space, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not space or left not in tokens or right not in tokens or left + right not in tokens:
            raise _bad(header, f"merge {n}, {merge!r}, names tokens that are not in its vocabulary")


def _marks(header: Header, described: dict[str, Any]) -> Marks:
    fields = header.fields
    template = fields.get("tokenizer.chat_template")
    # older SentencePiece files do not say; llama.cpp and transformers then put the start token in front
    adds = fields.get("tokenizer.ggml.add_bos_token", described.get("tokenizer_type") == "llama")
    return Marks(
        start_id=described.get("bos_token_id"),
        end_id=described.get("eos_token_id"),
        padding_id=described.get("pad_token_id"),
        unknown_id=described.get("unk_token_id"),
        adds_start=bool(adds),
        chat_template=template if isinstance(template, str) else None,
    )


def _bad(header: Header, what: str) -> Corrupt:
    return Corrupt(f"'{header.path}': {what}.", "The file was damaged or badly converted; fetch or convert it again.")
