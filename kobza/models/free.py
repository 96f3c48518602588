"""A causal language model in a form of one's own: every part that people debate about is an option.

The module is plain torch behind transformers' interface, so that everything in kobza that takes a model takes this one;
plain transformers does not know the family and cannot open it (`kobza.open` can). There is no cache: whoever lets it
speak reads the text again for every token.

Sources: those of `free_parts`; layers that share weights, Lan et al. (2020), arXiv:1909.11942; widths that differ from
block to block, Mehta et al. (2024), arXiv:2404.14619.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from kobza.core.errors import BadValue, OutOfRange, UnknownName
from kobza.core.options import check
from kobza.models.free_parts import STATES, Attention, Experts, Fft, Mlp, State, norm

FAMILY = "kobza"
MIXERS: dict[str, Any] = {"attention": Attention, "fft": Fft, "state": State}
INITIAL = 0.02


def form(
    *,
    norm: Literal["rms", "layer", "none"] = "rms",
    position: Literal["rope", "learned", "alibi", "none"] = "rope",
    factor: float = 1.0,
    key_heads: int = 0,
    value_heads: int = 0,
    scores: Literal["sqrt", "normed"] = "sqrt",
    mlp: Literal["swiglu", "gelu", "relu"] = "swiglu",
    taper: float = 0.0,
    distinct: int = 0,
    mixers: str = "attention",
    experts: int = 1,
    active: int = 1,
    balance: float = 0.01,
) -> dict[str, Any]:
    """Return the options of a form, as the configuration keeps them.

    Args:
        norm: in front of mixer and MLP, and at the end: RMSNorm, LayerNorm, or none.
        position: how places are told apart: rotary, a learned table, ALiBi, or not at all.
        factor: on the positions (rotary), the table (learned) or the slopes (ALiBi) [ratio, > 0 ..].
        key_heads: heads of keys, a divisor of the heads; 1 shares one among all [count, 0 ..]; 0: as many as heads.
        value_heads: the same for values [count, 0 ..]; 0: as many as heads.
        scores: divided by the root of the head's width, or of normalized queries and keys times a learned gain.
        mlp: its activation; "swiglu" has a gate.
        taper: how much wider the first MLP is than the mean, and the last narrower [fraction, -1 < .. < 1].
        distinct: blocks that have weights of their own, gone through in turn [count, 0 ..]; 0: all.
        mixers: kinds of mixers, "attention", "fft", "state", or several with + that take turns.
        experts: MLPs of a block among which a router chooses [count, 1 ..]; 1: no router.
        active: experts that a token passes [count, 1 .. experts].
        balance: weight of the loss that keeps their load even [ratio, 0 ..].

    Raises:
        UnknownName: a mixer. OutOfRange: more active experts than there are.
    """
    unknown = [name for name in mixers.split("+") if name not in MIXERS]
    if unknown:
        raise UnknownName.of("mixer", unknown[0], MIXERS)
    if not 1 <= active <= experts:
        raise OutOfRange(f"active {active} of {experts} experts: give 1 .. {experts}.")
    return {
        "norm": norm, "position": position, "factor": factor, "key_heads": key_heads, "value_heads": value_heads,
        "scores": scores, "mlp": mlp, "taper": taper, "distinct": distinct, "mixers": mixers, "experts": experts,
        "active": active, "balance": balance,
    }  # fmt: skip


class FreeConfig(PreTrainedConfig):
    """Sizes as transformers names them, and the options of `form`."""

    model_type = FAMILY
    vocab_size: int = 300
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 96
    max_position_embeddings: int = 64
    tie_word_embeddings: bool = True
    initializer_range: float = INITIAL
    norm: str = "rms"
    position: str = "rope"
    factor: float = 1.0
    key_heads: int = 0
    value_heads: int = 0
    scores: str = "sqrt"
    mlp: str = "swiglu"
    taper: float = 0.0
    distinct: int = 0
    mixers: str = "attention"
    experts: int = 1
    active: int = 1
    balance: float = 0.01

    def __post_init__(self, **more: Any) -> None:
        super().__post_init__(**more)
        # a file may say anything: every option is held to its choices and bounds
        form(**check(form, {name: getattr(self, name) for name in OPTIONS}, what="form"))
        H = self.num_attention_heads
        self.key_heads, self.value_heads = self.key_heads or H, self.value_heads or H
        if H % self.key_heads or H % self.value_heads or self.hidden_size % (2 * H):
            raise OutOfRange(
                f"{H} heads, {self.key_heads} of keys, {self.value_heads} of values, width {self.hidden_size}: those "
                "of keys and values divide the heads, twice the heads divide the width."
            )

    @property
    def blocks(self) -> int:
        """Blocks that have weights of their own."""
        return min(self.distinct or self.num_hidden_layers, self.num_hidden_layers)

    def mixer(self, n: int) -> str:
        """Kind of mixer of block n."""
        kinds = self.mixers.split("+")
        return kinds[n % len(kinds)]

    def inner(self, n: int) -> int:
        """F, the width of the MLP of block n."""
        if not self.taper or self.blocks == 1:
            return self.intermediate_size
        part = 1 + self.taper * (1 - 2 * n / (self.blocks - 1))
        return max(8, 8 * round(self.intermediate_size * part / 8))


OPTIONS = (
    "norm", "position", "factor", "key_heads", "value_heads", "scores", "mlp", "taper", "distinct", "mixers",
    "experts", "active", "balance",
)  # fmt: skip


class Block(nn.Module):
    """A mixer over positions and an MLP, each behind a norm, each added to what it read."""

    def __init__(self, c: FreeConfig, n: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norm(c), norm(c)
        self.self_attn = MIXERS[c.mixer(n)](c)
        self.mlp = Experts(c, c.inner(n)) if c.experts > 1 else Mlp(c, c.inner(n))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Base(PreTrainedModel):
    config_class = FreeConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules: ClassVar[Any] = ["Block"]


class FreeModel(_Base):
    """From ids (B, T) to states behind the last norm (B, T, D)."""

    def __init__(self, config: FreeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.blocks))
        self.norm = norm(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None, output_hidden_states: bool = False, **_: Any,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        if attention_mask is not None and not bool(attention_mask.all()):
            raise BadValue("a model in the free form reads rows of equal length: its mask must be all ones.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.position == "learned":
            x = x + self.config.factor * self.embed_positions.weight[: x.shape[1]]
        seen = [x]
        for n in range(self.config.num_hidden_layers):
            x = self.layers[n % len(self.layers)](x)
            seen.append(x)
        x = self.norm(x)
        hidden = (*seen[:-1], x) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden)


class FreeForCausalLM(_Base):
    """From ids (B, T) to logits (B, T, V)."""

    _tied_weights_keys: ClassVar[Any] = {"lm_head.weight": "model.embed_tokens.weight"}
    has_cache = False

    def __init__(self, config: FreeConfig) -> None:
        super().__init__(config)
        self.model = FreeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, logits_to_keep: int = 0, **how: Any) -> CausalLMOutputWithPast:
        out = self.model(input_ids=input_ids, **how)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, hidden_states=out.hidden_states)


def penalty(module: nn.Module) -> Tensor | float:
    """Return what the balance of experts costs since it was last asked, 0 where there are none; differentiable."""
    total: Tensor | float = 0.0
    for part in module.modules():
        if isinstance(part, Experts):
            total = total + sum(part.penalties)
            part.penalties = []
    return total


def routers(module: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    """Return of every router its experts' load (X,) in the last batch, and its gradient (X, D) if there is one."""
    return [(part.load, part.router.weight.grad) for part in module.modules() if isinstance(part, Experts)]


def parameters(c: FreeConfig) -> int:
    """Return how many numbers a model of a configuration has, by formula."""
    V, D, T = c.vocab_size, c.hidden_size, c.max_position_embeddings
    ends = V * D * (1 if c.tie_word_embeddings else 2) + (T * D if c.position == "learned" else 0)
    return ends + _norm(c) + sum(2 * _norm(c) + sum(_mixer(c, n)) + _mlps(c, n, c.experts) for n in range(c.blocks))


def multiplications(c: FreeConfig, length: int) -> float:
    """Return the multiplications of a forward pass, per token of windows of `length`, by formula.

    Attention counts the whole square of scores, as torch's counter does. A Fourier transform of N numbers counts
    N log2 N; what makes the kernels is shared by a batch and not counted, nor is anything of order D.
    """
    D, T = c.hidden_size, length
    each = {"attention": 2 * D * T, "fft": 4 * D * math.log2(2 * T) + 4 * D}
    each["state"] = each["fft"]
    blocks = [n % c.blocks for n in range(c.num_hidden_layers)]
    return D * c.vocab_size + sum(_mixer(c, n)[0] + each[c.mixer(n)] + _mlps(c, n, c.active) for n in blocks)


def _norm(c: FreeConfig) -> int:
    return {"layer": 2, "rms": 1, "none": 0}[c.norm] * c.hidden_size


def _mixer(c: FreeConfig, n: int) -> tuple[int, int]:
    """Return numbers in matrices, and in everything else, of a mixer."""
    D, H = c.hidden_size, c.num_attention_heads
    if c.mixer(n) == "attention":
        return D * (2 * D + (c.key_heads + c.value_heads) * D // H), H if c.scores == "normed" else 0
    return (2 * D * D, D * c.max_position_embeddings) if c.mixer(n) == "fft" else (3 * D * D, (2 * STATES + 1) * D)


def _mlps(c: FreeConfig, n: int, count: int) -> int:
    """Return numbers in so many MLPs of a block, and in its router."""
    one = (3 if c.mlp == "swiglu" else 2) * c.hidden_size * c.inner(n)
    return count * one + (c.hidden_size * c.experts if c.experts > 1 else 0)


AutoConfig.register(FAMILY, FreeConfig, exist_ok=True)
AutoModelForCausalLM.register(FreeConfig, FreeForCausalLM, exist_ok=True)
