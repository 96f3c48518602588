"""The bare step: a Llama-type model run without its modules, with keys and values in memory set aside beforehand.

Decoding on a processor costs the reading of the weights. torch's matrix times vector reads them at about half of what
the memory gives; the loops in `native/step.c` read each weight once and in order, for up to 8 tokens together. Longer
feeds (a prompt) are matrix products, which torch does best; that path is also the plain twin of the C loops and serves
alone where there is no compiler. The weights are the module's own: nothing is copied.

float32: logits within 1e-4 of the transformers module's (SmolLM2; relative to the largest logit 1e-5). bfloat16: the
C loops sum and attend in float32, which is nearer to the float32 model than transformers' rounding after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from kobza.core.errors import OutOfRange
from kobza.models import attention, native
from kobza.models.model import Model
from kobza.models.stepping import (
    Ids,
    check_rollback,
    checked,
    checked_batch,
    checked_layers,
    checked_path,
    checked_rows,
    checked_tree,
)

FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
STATIC_ROPE = {"default", "linear", "yarn", "llama3", "proportional"}  # cosines that depend on the position alone
NATIVE_TOKENS = 16  # more tokens at once are a matrix product, which torch does faster
ROOM = 256  # positions set aside at first; doubled when full
VECTORS = ("norm1", "norm2", "attn.q_norm", "attn.k_norm")
BIASES = ("attn.q", "attn.k", "attn.v", "attn.o")
MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
_PROBED: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Block:
    """The weights of one block: vectors float32 (None where the family has none), matrices (outputs, inputs)."""

    vectors: dict[str, Tensor | None]
    biases: dict[str, Tensor | None]
    matrices: dict[str, Tensor]

    def addresses(self) -> list[int]:
        """Return the addresses in the order of the struct `Block` of step.c."""
        small = [*self.vectors.values(), *self.biases.values()]
        return [0 if t is None else t.data_ptr() for t in small] + [t.data_ptr() for t in self.matrices.values()]


def misfit(model: Model) -> str:
    """Say why the bare step cannot run a model; "" when it can (tried once on eight positions against the module)."""
    module = model.module
    if model.family.name not in FAMILIES:
        return f"the family {model.family.name!r} is none of {', '.join(sorted(FAMILIES))}"
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return f"{model.dtype} on {model.device}; it runs float32 and bfloat16 on the processor"
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "hooks sit on its modules"
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.hidden_act != "silu" or getattr(config, "sliding_window", None) or rope not in STATIC_ROPE:
        return f"activation {config.hidden_act}, a sliding window or rotation {rope!r}"
    if not _is_plain(model):
        return "some of its layers are not plain linear layers"
    if model not in _PROBED:
        _PROBED[model] = _probe(model)
    return "" if _PROBED[model] else "its logits differ from the module's"


def _is_plain(model: Model) -> bool:
    paths = [f"{model.family.blocks}.{n}.{model.family.block[part]}" for n in range(model.layers) for part in MATRICES]
    ends = (type(model.module.get_input_embeddings()), type(model.module.get_output_embeddings()))
    layers = [model.module.get_submodule(path) for path in paths]
    is_one_type = len({p.dtype for p in model.module.parameters()}) == 1
    return ends == (nn.Embedding, nn.Linear) and is_one_type and all(type(layer) is nn.Linear for layer in layers)


@torch.inference_mode()
def _probe(model: Model) -> bool:
    ids = torch.arange(1, 9)[None] * model.vocabulary // 32  # not the control tokens at the beginning
    whole = model.module(input_ids=ids, use_cache=False).logits.float()
    own = BareStepper(model).feed(ids, keep=8)
    if model.dtype != torch.float32:  # the module rounds every sum, this step rounds none: single logits tell nothing
        return bool((own - whole).norm() <= 0.1 * whole.norm())
    largest = float(whole.abs().nan_to_num(nan=0.0, posinf=0.0).max())
    return torch.allclose(own, whole, rtol=1e-4, atol=1e-4 * largest, equal_nan=True)


class BareStepper:
    """The run of a Llama-type model; see `stepping.Steps`.

    Args:
        model: a model for which `misfit` is "".
        batch: rows fed together, all of equal length.
        is_native: use the C loops where they are there.
        nearest: keys of the highest scores that a head attends to; 0 attends to all [keys, 0 ..].

    Attributes:
        context: positions that may be read, 0 for any number.
        dropped: positions evicted; those stored are the other length - dropped, in order.
        weight: after `watch`, (2, L, B, K, room): attention that stored positions got, and how often it was more than
            the mean; the caller sets it back.
    """

    def __init__(self, model: Model, batch: int = 1, *, is_native: bool = True, nearest: int = 0) -> None:
        if nearest < 0:
            raise OutOfRange(f"nearest is {nearest}; allowed is 0 (all keys) or more.")
        self.nearest = nearest
        self.weight: Tensor | None = None
        self.model = model
        self.batch = checked_batch(batch)
        self.length = 0
        self.is_native = is_native and native.compiled
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(getattr(config, "num_key_value_heads", None) or self._heads)
        self._blocks = [_block(model, n) for n in range(model.layers)]
        self._addresses = np.array([block.addresses() for block in self._blocks], np.int64)
        first = model.module.get_submodule(f"{model.family.blocks}.0")
        self._head_width = self._blocks[0].matrices["attn.k"].shape[0] // self._kv_heads
        self._scale = float(getattr(first.self_attn, "scaling", self._head_width**-0.5))
        self._eps = float(config.rms_norm_eps)
        norm: Any = model.module.get_submodule(model.family.modules["norm"])
        self._norm = norm.weight.float()
        self._table: Tensor = model.module.get_input_embeddings().weight
        self._out: Tensor = model.module.get_output_embeddings().weight
        self.context = model.context
        self.dropped = 0
        self._held: list[Tensor] = []  # states behind the early layers of tokens read only so far
        self.keys = self.values = torch.empty(0)  # (L, B, K, S, E) each
        self._set_aside(ROOM)
        self._rotations(ROOM)

    def _set_aside(self, room: int) -> None:
        """Make room for keys and values, (L, B, K, S, E) each, keeping what is there."""
        shape = (self.model.layers, self.batch, self._kv_heads, room, self._head_width)
        keys, values = torch.empty(shape), torch.empty(shape)
        if self.keys.numel():
            stored = self.keys.shape[3]
            keys[..., :stored, :], values[..., :stored, :] = self.keys, self.values
        self.keys, self.values = keys, values
        self._sized(room)

    def _sized(self, room: int) -> None:
        self.table = np.arange(self.batch, dtype=np.int64)[:, None]  # a cache in one piece is one page a row
        if self.weight is not None:
            self.weight = nn.functional.pad(self.weight, (0, room - self.weight.shape[-1]))

    def watch(self) -> None:
        """Begin to add up, in `weight`, the attention that stored positions get."""
        self.weight = torch.zeros(2, self.model.layers, self.batch, self._kv_heads, self._room)

    @property
    def _room(self) -> int:
        """Positions that a row has room for."""
        return self.table.shape[1] * self.keys.shape[3]

    def _rotations(self, positions: int) -> None:
        """Take cosines and sines (P, E) from the module's own rotation, so that every static scaling is honored."""
        rotary: Any = self.model.module.base_model.rotary_emb
        cos, sin = rotary(torch.zeros(1), torch.arange(positions)[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()

    @torch.inference_mode()
    def feed(self, ids: Ids, *, keep: int = 1) -> Tensor:
        """Read more tokens; see `Steps.feed`.

        Raises:
            OutOfRange: a wrong shape, or more positions than the model was trained for.
        """
        fed = checked(self, ids, keep)
        states = self._through(self._embedded(fed), 0, self.model.layers, self.length)
        self.length += fed.shape[1]
        logits = self._read_out(states[:, -keep:])
        return logits[:, 0] if keep == 1 else logits

    @torch.inference_mode()
    def feed_layers(self, ids: Ids, layers: Sequence[int]) -> dict[int, Tensor]:
        """Read more tokens, and read out several depths; see `Steps.feed_layers`."""
        fed = checked(self, ids, 1)
        states, done, found = self._embedded(fed), 0, {}
        for depth in [*checked_layers(self.model, layers), self.model.layers]:
            states = self._through(states, done, depth, self.length)
            found[depth] = self._read_out(states[:, -1:])[:, 0]
            done = depth
        self.length += fed.shape[1]
        return found

    @torch.inference_mode()
    def feed_states(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Read more tokens; see `Steps.feed_states`."""
        fed = checked(self, ids, 1)
        states = self._through(self._embedded(fed), 0, self.model.layers, self.length)
        self.length += fed.shape[1]
        return self._read_out(states[:, -1:])[:, 0], self._normed(states, self._norm)

    @torch.inference_mode()
    def feed_vectors(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Read vectors (B, T, D) in place of those of tokens; return what `feed_states` does."""
        checked(self, torch.zeros(vectors.shape[:2], dtype=torch.long), 1)
        states = vectors.float() if self._is_small(vectors) else vectors.to(self.model.dtype)
        states = self._through(states.clone(), 0, self.model.layers, self.length)
        self.length += vectors.shape[1]
        return self._read_out(states[:, -1:])[:, 0], self._normed(states, self._norm)

    @torch.inference_mode()
    def feed_tree(self, ids: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read a tree of tokens; see `Steps.feed_tree`."""
        fed = checked_tree(self, ids, parents)
        states = self._through(self._embedded(fed), 0, self.model.layers, self.length, parents)
        self.length += len(parents)
        return self._read_out(states)[0], self._normed(states, self._norm)[0]

    @torch.inference_mode()
    def feed_scores(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Read more tokens; return logits (B, V) and the scores of the last layer's attention, both behind the last.

        The scores (B, H, S) are those before the softmax, scaled, over the S positions that the token may see.
        """
        fed = checked(self, ids, 1)
        last, at = self.model.layers - 1, self.length
        states = self._through(self._embedded(fed), 0, last, at)
        before = states[:, -1:].clone()
        states = self._through(states, last, last + 1, at)
        self.length += fed.shape[1]
        w, b, vectors = self._blocks[last].matrices, self._blocks[last].biases, self._blocks[last].vectors
        normed = self._normed(before, vectors["norm1"])
        q = self._split(linear(normed.to(w["attn.q"].dtype), w["attn.q"], _like(b["attn.q"], w["attn.q"])))
        q = q if vectors["attn.q_norm"] is None else self._normed(q, vectors["attn.q_norm"])
        q = rotated(q.float(), self.cos[self.length - 1 : self.length], self.sin[self.length - 1 : self.length])
        keys = self.keys[last, :, :, : self.length - self.dropped].repeat_interleave(
            self._heads // self._kv_heads, dim=1
        )
        return self._read_out(states[:, -1:])[:, 0], (q @ keys.transpose(-1, -2))[:, :, 0] * self._scale

    @torch.inference_mode()
    def feed_early(self, ids: Ids, layer: int) -> Tensor:
        """Read tokens through the first `layer` blocks only; return the logits (B, V) that norm and head give there.

        The tokens count once `finish` has taken them through the other blocks; nothing is computed twice.
        """
        fed = checked(self, ids, 1)
        checked_layers(self.model, [layer])
        pending = sum(states.shape[1] for states in self._held)
        states = self._through(self._embedded(fed), 0, layer, self.length + pending)
        self._held.append(states.clone())
        return self._read_out(states[:, -1:])[:, 0]

    @torch.inference_mode()
    def finish(self, layer: int) -> Tensor:
        """Take the tokens of `feed_early` through the blocks from `layer` on; return their logits (B, T, V)."""
        states = torch.cat(self._held, dim=1)
        self._held = []
        states = self._through(states, layer, self.model.layers, self.length)
        self.length += states.shape[1]
        return self._read_out(states)

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length, less what was dropped]."""
        check_rollback(self, n)
        if n > self.length - self.dropped:
            raise OutOfRange(f"cannot take back {n} tokens: {self.dropped} of {self.length} were dropped.")
        self.length -= n

    @torch.inference_mode()
    def prune(self, n: int, path: Sequence[int]) -> None:
        """Of the last `n` tokens keep some; see `Steps.prune`."""
        chosen = checked_path(self, n, path)
        begin = self.length - self.dropped - n
        if chosen != list(range(len(chosen))):
            self._moved(begin, begin + torch.tensor(chosen))
        self.rollback(n - len(chosen))

    def _moved(self, begin: int, at: Tensor) -> None:
        """Put the entries stored at some places in a row from `begin` on."""
        for cached in (self.keys, self.values):
            cached[..., begin : begin + len(at), :] = cached[..., at, :]

    @torch.inference_mode()
    def keep(self, places: Sequence[int] | Tensor) -> None:
        """Drop all stored positions but these; those kept stay where they are in the text.

        Args:
            places: rising indices into what is stored [index, 0 .. length - dropped - 1]; or (L, B, K, n), for every
                head of keys its own.

        Raises:
            OutOfRange: places that are not stored, or not rising.
        """
        at = self.checked_places(places)
        count = at.shape[-1]
        for cached in (self.keys, self.values):
            cached[..., :count, :] = cached.gather(3, at[..., None].expand(*at.shape, cached.shape[-1]))
        self._weigh(at)
        self.dropped = self.length - count

    def _weigh(self, at: Tensor) -> None:
        """Move the weights of what is kept to their new places."""
        if self.weight is not None:
            kept = self.weight.gather(-1, at.expand(2, *at.shape))
            self.weight = nn.functional.pad(kept, (0, self._room - at.shape[-1]))

    def checked_places(self, places: Sequence[int] | Tensor) -> Tensor:
        """Return the places of `keep` as (L, B, K, n) after checking them."""
        stored = self.length - self.dropped
        at = torch.as_tensor(places, dtype=torch.long)
        shape = (self.model.layers, self.batch, self._kv_heads)
        before, after = (torch.full((*at.shape[:-1], 1), end) for end in (-1, stored))
        if at.shape[:-1] not in ((), shape) or bool((torch.cat([before, at, after], -1).diff(dim=-1) <= 0).any()):
            raise OutOfRange(f"places to keep must rise from 0 to {stored - 1} at most.")
        return at.expand(*shape, at.shape[-1])

    def fork(self) -> BareStepper:
        """Return a run that goes on from here by itself; the cache is copied."""
        import copy

        twin = copy.copy(self)
        twin.keys, twin.values, twin._held = self.keys.clone(), self.values.clone(), list(self._held)
        twin.weight = None if self.weight is None else self.weight.clone()
        return twin

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        chosen = checked_rows(self, rows)
        if chosen != list(range(self.batch)):
            at = torch.tensor(chosen)
            self.keys, self.values = self.keys[:, at], self.values[:, at]
            self.table = np.arange(len(chosen), dtype=np.int64)[:, None]
            self.weight = None if self.weight is None else self.weight[:, :, at]
        self.batch = len(chosen)

    def _embedded(self, ids: Tensor) -> Tensor:
        states = nn.functional.embedding(ids, self._table)
        return states.float() if self._is_small(ids) else states

    def _is_small(self, fed: Tensor) -> bool:
        return self.is_native and fed.shape[0] * fed.shape[1] <= NATIVE_TOKENS

    def _through(self, states: Tensor, first: int, last: int, at: int, parents: Sequence[int] | None = None) -> Tensor:
        """Run blocks first .. last-1 over states (B, T, D) of tokens stored from `at` on, in a row or as a tree."""
        T = states.shape[1]
        cos, sin = self._turned(at, T, parents)
        at -= self.dropped  # from the place in the text to the place in store
        self._reserve(at, T)
        visible = None if parents is None else attention.lineage(parents)
        if not self._is_small(states):
            states = states.to(self.model.dtype)
            for n in range(first, last):
                states = self._plain(n, states, cos, sin, at, visible)
            return states
        states = states.float().contiguous()
        self._loops(slice(None), states, cos, sin, at, first, last, visible)
        return states

    def _reserve(self, at: int, T: int) -> None:
        """Make sure that there is room for `T` entries from `at` on."""
        if at + T > self._room:
            self._set_aside(max(2 * self._room, at + T))

    def _loops(
        self, blocks: slice, states: Tensor, cos: Tensor, sin: Tensor, at: int, first: int, last: int,
        visible: Tensor | None,
    ) -> None:  # fmt: skip
        """Let the C loops run blocks first .. last-1 of some over states (B, T, D), in place."""
        weight = None if self.weight is None else self.weight[:, blocks].contiguous()
        native.kernels.blocks(
            self._addresses[blocks], self._sizes(), states.numpy(), self.keys[blocks].numpy(),
            self.values[blocks].numpy(), cos.numpy(), sin.numpy(), self.table,
            None if visible is None else visible.to(torch.uint8).numpy(), None if weight is None else weight.numpy(),
            states.shape[1], at, first, last, self._eps, self._scale,
        )  # fmt: skip
        if self.weight is not None and weight is not None:
            self.weight[:, blocks] = weight

    def _turned(self, at: int, T: int, parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (T, E) of positions from `at` on, or of the depths of a tree."""
        if at + T > len(self.cos):
            self._rotations(max(2 * len(self.cos), at + T))
        if parents is None:
            return self.cos[at : at + T], self.sin[at : at + T]
        places = at + torch.tensor(attention.depths(parents))
        return self.cos[places], self.sin[places]

    def _sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the numbers of the struct `Sizes` of step.c."""
        ffn = self._blocks[0].matrices["mlp.gate"].shape[0]
        is_half = self.model.dtype == torch.bfloat16
        stock, _, page = self.keys.shape[1:4]
        heads = (self._heads, self._kv_heads, self._head_width)
        pages = self.table.shape[1]
        return np.array(
            [self.model.width, *heads, ffn, page, pages, stock, self.batch, is_half, self.nearest], np.int64
        )

    def _plain(
        self, n: int, states: Tensor, cos: Tensor, sin: Tensor, at: int, visible: Tensor | None = None
    ) -> Tensor:
        """Run one block by torch: states (B, T, D) in the model's type."""
        w, b = self._blocks[n].matrices, self._blocks[n].biases
        vectors = self._blocks[n].vectors
        normed = self._normed(states, vectors["norm1"])
        q, k, v = (self._split(linear(normed, w[m], _like(b[m], states))) for m in ("attn.q", "attn.k", "attn.v"))
        if vectors["attn.q_norm"] is not None:
            q, k = self._normed(q, vectors["attn.q_norm"]), self._normed(k, vectors["attn.k_norm"])
        self._store(n, rotated(k, cos, sin), v, at)
        mixed = self._attended(n, rotated(q, cos, sin), at, visible)
        states = states + linear(mixed.to(states.dtype), w["attn.o"], _like(b["attn.o"], states))
        normed = self._normed(states, vectors["norm2"])
        gated = nn.functional.silu(linear(normed, w["mlp.gate"])) * linear(normed, w["mlp.up"])
        return states + linear(gated, w["mlp.down"])

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self._head_width)).transpose(1, 2)  # (B, heads, T, E)

    def _store(self, n: int, keys: Tensor, values: Tensor, at: int) -> None:
        """Store keys and values (B, K, T, E) of a block from `at` on."""
        T = keys.shape[2]
        self.keys[n, :, :, at : at + T], self.values[n, :, :, at : at + T] = keys, values

    def _stored(self, n: int, end: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, K, end, E) of a block."""
        return self.keys[n, :, :, :end], self.values[n, :, :, :end]

    def _attended(self, n: int, q: Tensor, at: int, visible: Tensor | None) -> Tensor:
        """Return what the heads of queries (B, H, T, E) read, (B, T, H E)."""
        T = q.shape[2]
        keys, values = self._stored(n, at + T)
        allowed = torch.ones(T, at + T, dtype=torch.bool).tril(at)
        if self.nearest or self.weight is not None or visible is not None:
            if visible is not None:
                allowed[:, at:] = visible
            weight = None if self.weight is None else self.weight[:, n]
            mixed = attention.mixed(q, keys, values, allowed, scale=self._scale, nearest=self.nearest, weight=weight)
        else:
            group = self._heads // self._kv_heads
            keys, values = (x.to(q.dtype).repeat_interleave(group, dim=1) for x in (keys, values))
            is_first = at == 0 and T > 1
            mask = None if is_first or T == 1 else allowed
            mixed = scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=is_first, scale=self._scale)
        return mixed.transpose(1, 2).flatten(2)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        assert weight is not None
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return weight.to(x.dtype) * wide.to(x.dtype)

    def _read_out(self, states: Tensor) -> Tensor:
        """Return float32 logits (B, T, V) of states (B, T, D)."""
        if not self._is_small(states):
            return linear(self._normed(states.to(self.model.dtype), self._norm), self._out).float()
        normed = self._normed(states.float(), self._norm).contiguous()
        logits = torch.empty(*states.shape[:-1], self._out.shape[0])
        is_half = self._out.dtype == torch.bfloat16
        n = normed.shape[0] * normed.shape[1]
        native.kernels.times(self._out.data_ptr(), is_half, normed.numpy(), logits.numpy(), n)
        return logits


def _block(model: Model, n: int) -> Block:
    block, paths = model.module.get_submodule(f"{model.family.blocks}.{n}"), model.family.block

    def tensor(part: str, kind: str, path: str = "") -> Tensor | None:
        try:
            value = getattr(block.get_submodule(path or paths.get(part, "")), kind, None)
        except AttributeError:
            return None  # a part that other families have
        return None if value is None or part not in paths else value.detach()

    small = {part: tensor(part, "weight") for part in VECTORS}
    biases = {part: tensor(part, "bias") for part in BIASES}
    whole = {part: value for part in MATRICES if (value := tensor(part, "weight")) is not None}
    return Block({p: _float(t) for p, t in small.items()}, {p: _float(t) for p, t in biases.items()}, whole)


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


def _like(value: Tensor | None, other: Tensor) -> Tensor | None:
    return None if value is None else value.to(other.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of heads (B, heads, T, E) by cosines and sines (T, E)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + torch.cat([-b, a], dim=-1) * sin
