"""The two kinds of model that are trained from scratch, as transformers configurations.

`classic` is the GPT of the tutorials: token and position tables, pre-LayerNorm, q, k, v without bias, an output
projection with one, a ReLU MLP of four times the width, an untied head with a bias. No family of transformers has a
bias at the head, and GPT-2 has biases at q, k, v. While it is trained the GPT-2 module therefore has those held at 0
and a head with a bias; at the end the bias is folded away exactly: behind a LayerNorm n = (x - mean) / sd sums to 0, so
with the last norm set to n + 1 the matrix W' = W g (rows centered) + (b + W beta) 1^T / D gives W (g n + beta) + b.

`llama` is today's block: RMSNorm, rotary positions, SwiGLU, grouped queries, tied ends. `free` has every part to choose
(`kobza.models.free`), and is the one that transformers does not open.

Sources: Radford et al. (2019); Vaswani et al. (2017), arXiv:1706.03762; Touvron et al. (2023), arXiv:2302.13971.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import OutOfRange, UnknownName
from kobza.models import building
from kobza.models.building import FREE
from kobza.tokens.base import Tokenizer

KINDS = ("classic", "llama", "free")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model: L layers, D width, H heads, K key/value heads, F width of the MLP, T context."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    context: int

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.kv_heads, self.inner, self.context) < 1:
            raise OutOfRange(f"{self}: all sizes are at least 1.")
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise OutOfRange(
                f"width {self.width} must be a multiple of twice the heads ({self.heads}), and these of the key/value "
                f"heads ({self.kv_heads})."
            )


def build(
    kind: str,
    sizes: Sizes,
    tokenizer: Tokenizer,
    *,
    seed: int,
    tied: bool = True,
    form: Mapping[str, Any] | None = None,
) -> Any:
    """Make a module with random weights, ready to be trained.

    Args:
        kind: "classic", "llama" or "free".
        sizes: its sizes.
        tokenizer: whose ids it has.
        seed: of the weights [0 ..].
        tied: both ends one tensor; the classic kind never is.
        form: of the free kind, what `kobza.models.free.form` returned.

    Raises:
        UnknownName: another kind.
    """
    if kind not in KINDS:
        raise UnknownName.of("kind of model", kind, KINDS)
    config = {"classic": _gpt2, "llama": _llama, "free": _free}[kind](sizes, tokenizer, tied) | dict(form or {})
    with torch.random.fork_rng(devices=[]), building.quiet():
        torch.manual_seed(seed)
        module = building.model_class(whole := building.configuration(config))(whole)
        module.set_attn_implementation("sdpa")
        if kind == "classic":
            _make_classic(module, sizes)
        else:
            _draw(module, sizes)
    return module.train()


def _common(sizes: Sizes, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id,
        "pad_token_id": None, "dtype": "float32",
    }  # fmt: skip


def _gpt2(sizes: Sizes, tokenizer: Tokenizer, tied: bool) -> dict[str, Any]:
    own = {
        "model_type": "gpt2", "n_embd": sizes.width, "n_layer": sizes.layers, "n_head": sizes.heads,
        "n_positions": sizes.context, "n_inner": sizes.inner, "activation_function": "relu",
        "tie_word_embeddings": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    return {**_common(sizes, tokenizer), **own}


def _llama(sizes: Sizes, tokenizer: Tokenizer, tied: bool) -> dict[str, Any]:
    own = {
        "model_type": "llama", "hidden_size": sizes.width, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "intermediate_size": sizes.inner,
        "max_position_embeddings": sizes.context, "tie_word_embeddings": tied,
    }  # fmt: skip
    return {**_common(sizes, tokenizer), **own}


def _free(sizes: Sizes, tokenizer: Tokenizer, tied: bool) -> dict[str, Any]:
    own = {**_llama(sizes, tokenizer, tied), "model_type": FREE}
    # keys and values have heads of their own in a form
    return {key: value for key, value in own.items() if key != "num_key_value_heads"}


def _make_classic(module: Any, sizes: Sizes) -> None:
    """Draw the weights as torch's own layers do (tables normal, matrices uniform), which is what the tutorials have."""
    module.lm_head = nn.Linear(sizes.width, module.config.vocab_size)
    for table in (module.transformer.wte, module.transformer.wpe):
        nn.init.normal_(table.weight)
    for part in module.modules():
        if type(part).__name__ == "Conv1D":  # its weight is (inputs, outputs)
            bound = 1 / math.sqrt(part.weight.shape[0])
            nn.init.uniform_(part.weight, -bound, bound)
            nn.init.uniform_(part.bias, -bound, bound)
    for block in module.transformer.h:
        nn.init.zeros_(block.attn.c_attn.bias)
        block.attn.c_attn.bias.requires_grad_(False)


def _draw(module: Any, sizes: Sizes) -> None:
    """Draw matrices with sd 1/sqrt(3 D), those that write into the residual stream narrower by sqrt(2 L)."""
    spread = 1 / math.sqrt(3 * sizes.width)
    for name, p in module.named_parameters():
        if isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.Embedding):
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(p, std=spread / math.sqrt(2 * sizes.layers) if writes else spread)


def dropping(module: Any, share: float) -> list[Any]:
    """Let a module drop a share of what its tables, attention and MLPs write while it is trained; return the hooks.

    Source: Srivastava et al. (2014), doi:10.5555/2627435.2670313; the places are those of GPT-2.

    Raises:
        OutOfRange: the share is not in 0 .. below 1.
    """
    if not 0 <= share < 1:
        raise OutOfRange(f"dropout {share} is not in 0 .. below 1.")

    def drop(part: Any, _: Any, out: Tensor) -> Tensor:
        return nn.functional.dropout(out, share, part.training)

    written = ("o_proj", "down_proj", "c_proj", "embed_tokens", "wte")
    found = [part for name, part in module.named_modules() if name.endswith(written)]
    return [part.register_forward_hook(drop) for part in found] if share else []


@torch.no_grad()
def folded(module: Any) -> Any:
    """Return a plain GPT-2 module that computes what a trained classic one does, its head's bias folded away."""
    config = building.configuration({**module.config.to_dict(), "model_type": "gpt2"})
    with torch.random.fork_rng(devices=[]), building.quiet():
        plain = building.model_class(config)(config)
        plain.set_attn_implementation("sdpa")
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "lm_head.bias"}
    norm, head = module.transformer.ln_f, module.lm_head
    state["lm_head.weight"] = _folded_head(head.weight, head.bias, norm.weight, norm.bias)
    state["transformer.ln_f.weight"] = torch.ones_like(norm.weight)
    state["transformer.ln_f.bias"] = torch.ones_like(norm.bias)
    plain.load_state_dict(state)
    return plain.eval()


def _folded_head(W: Tensor, b: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    wide = W.double()
    scaled = wide * gain.double()  # (V, D)
    level = b.double() + wide @ shift.double()  # (V,)
    return (scaled - scaled.mean(1, keepdim=True) + level[:, None] / W.shape[1]).to(W.dtype)
