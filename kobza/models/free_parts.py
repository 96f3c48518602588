"""Parts of the free form: norms, attention and its positions, two linear-time mixers, MLPs, experts.

Every part maps (B, T, D) to (B, T, D) and is causal. A part reads its options from the configuration (see `free.form`).

Sources: LayerNorm, Ba et al. (2016), arXiv:1607.06450; RMSNorm, Zhang & Sennrich (2019), arXiv:1910.07467; rotary
positions, Su et al. (2021), arXiv:2104.09864; ALiBi, Press et al. (2022), arXiv:2108.12409; keys or values shared over
heads, Shazeer (2019), arXiv:1911.02150; normalized scores, Henry et al. (2020), arXiv:2010.04245; SwiGLU, Shazeer
(2020), arXiv:2002.05202; long convolution, Poli et al. (2023), arXiv:2302.10866; diagonal and gated state spaces, Gu et
al. (2022), arXiv:2206.11893, Mehta et al. (2022), arXiv:2206.13947; experts, Fedus et al. (2022), arXiv:2101.03961.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

STATES = 16  # of the state-space mixer, per channel
BASE = 10_000.0  # of the rotary frequencies (Su et al., section 3.2.2)


def norm(c: Any) -> nn.Module:
    """Return the norm that the configuration names; "none" passes all through."""
    made: dict[str, Any] = {"layer": nn.LayerNorm, "rms": lambda d: nn.RMSNorm(d, eps=1e-5)}
    return made[c.norm](c.hidden_size) if c.norm in made else nn.Identity()


def rotated(x: Tensor, factor: float) -> Tensor:
    """Turn pairs of numbers (B, H, T, E) by angles that grow with the position times `factor`."""
    half = x.shape[-1] // 2
    speeds = BASE ** (-torch.arange(half, device=x.device) / half)
    angles = factor * torch.arange(x.shape[-2], device=x.device)[:, None] * speeds  # (T, E / 2)
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).to(x.dtype)


def alibi(heads: int, length: int, factor: float, device: Any = None) -> Tensor:
    """Return what is added to the scores, (H, T, T): a slope per head times the distance, -inf for what comes later."""
    slopes = factor * 2 ** (-8 * torch.arange(1, heads + 1, device=device) / heads)
    places = torch.arange(length, device=device)
    back = places[:, None] - places
    return (-slopes[:, None, None] * back).masked_fill(back < 0, -torch.inf)


class Attention(nn.Module):
    """Causal attention of H heads over keys of `key_heads` and values of `value_heads`."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        D, self.c, self.E = c.hidden_size, c, c.hidden_size // c.num_attention_heads
        self.q_proj = nn.Linear(D, D, bias=False)
        self.k_proj = nn.Linear(D, c.key_heads * self.E, bias=False)
        self.v_proj = nn.Linear(D, c.value_heads * self.E, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        if c.scores == "normed":  # Henry et al., section 3: begun at log2(T^2 - T)
            T = max(2, c.max_position_embeddings)
            self.gain = nn.Parameter(torch.full((c.num_attention_heads,), math.log2(T * T - T)))

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        c, H = self.c, self.c.num_attention_heads
        q, k, v = (p(x).view(B, T, -1, self.E).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scale = self.E**-0.5
        if c.scores == "normed":
            q = (nn.functional.normalize(q.float(), dim=-1) * self.gain[:, None, None]).to(v.dtype)
            k, scale = nn.functional.normalize(k.float(), dim=-1).to(v.dtype), 1.0
        if c.position == "rope":
            q, k = rotated(q, c.factor), rotated(k, c.factor)
        k, v = (t.repeat_interleave(H // t.shape[1], 1) if t.shape[1] < H else t for t in (k, v))
        bias = alibi(H, T, c.factor, x.device).to(q.dtype)[None] if c.position == "alibi" else None
        found = nn.functional.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None, scale=scale)
        out: Tensor = self.o_proj(found.transpose(1, 2).reshape(B, T, D))
        return out


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Return the causal convolution of x (B, T, D) with a kernel (D, T) over T, by a Fourier transform of 2 T places.

    >>> convolved(torch.tensor([[[1.0], [0.0], [2.0]]]), torch.tensor([[1.0, 10.0, 100.0]])).reshape(-1).round()
    tensor([  1.,  10., 102.])
    """
    size = 2 * x.shape[1]  # twice the length: nothing comes round from the end to the beginning
    spectrum = torch.fft.rfft(x.float(), n=size, dim=1) * torch.fft.rfft(kernel.float(), n=size).T
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, : x.shape[1]].to(x.dtype)


class Fft(nn.Module):
    """A learned causal filter per channel, as long as the context, between two matrices."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        D, T = c.hidden_size, c.max_position_embeddings
        self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in "vo")
        self.filter = nn.Parameter(torch.randn(D, T) / torch.arange(1, T + 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o_proj(convolved(self.v_proj(x), self.filter[:, : x.shape[1]]))
        return out


class State(nn.Module):
    """A diagonal linear state per channel, run as a convolution, and a gate on what it says."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        D = c.hidden_size
        self.v_proj, self.gate_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in "vgo")
        # decays as in S4D (real): n + 1 times a step between 0.001 and 0.1
        step = torch.exp(torch.empty(D, 1).uniform_(math.log(1e-3), math.log(1e-1)))
        self.rates = nn.Parameter((step * torch.arange(1, STATES + 1)).log())
        self.mix = nn.Parameter(torch.randn(D, STATES) * self.rates.detach().exp() / math.sqrt(STATES))
        self.skip = nn.Parameter(torch.ones(D))

    def kernel(self, length: int) -> Tensor:
        """Return what the states answer to one impulse, (D, T)."""
        times = torch.arange(length, device=self.rates.device)
        decay = torch.exp(-self.rates.float().exp()[..., None] * times)  # (D, N, T)
        return (self.mix.float()[..., None] * decay).sum(1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v_proj(x)
        said = convolved(v, self.kernel(x.shape[1])) + self.skip * v
        out: Tensor = self.o_proj(said * nn.functional.silu(self.gate_proj(x)))
        return out


class Mlp(nn.Module):
    """Up, an activation (for SwiGLU a gate), and down."""

    def __init__(self, c: Any, inner: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(c.hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, c.hidden_size, bias=False)
        self.act_fn = {"relu": nn.ReLU, "gelu": nn.GELU, "swiglu": nn.SiLU}[c.mlp]()
        self.gate_proj = nn.Linear(c.hidden_size, inner, bias=False) if c.mlp == "swiglu" else None

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        found = self.act_fn(up) if self.gate_proj is None else self.act_fn(self.gate_proj(x)) * up
        out: Tensor = self.down_proj(found)
        return out


class Experts(nn.Module):
    """Several MLPs; a router sends every token to the `active` likeliest of them.

    Attributes:
        load: (X,) share of the last batch's tokens that each expert got.
        penalties: what the balance cost in forward passes of a training step (Fedus et al., eq. 4); the loss takes it.
    """

    def __init__(self, c: Any, inner: int) -> None:
        super().__init__()
        self.router = nn.Linear(c.hidden_size, c.experts, bias=False)
        self.experts = nn.ModuleList(Mlp(c, inner) for _ in range(c.experts))
        self.active, self.balance = c.active, c.balance
        self.load = torch.zeros(0)
        self.penalties: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares = self.router(flat).float().softmax(-1)  # (N, X)
        weights, chosen = shares.topk(self.active, dim=-1)
        out = torch.zeros_like(flat)
        for n, expert in enumerate(self.experts):
            row, place = (chosen == n).nonzero(as_tuple=True)
            found = expert(flat[row]) * weights[row, place, None]
            out = out.index_add(0, row, found.to(out.dtype))
        self.load = torch.bincount(chosen.reshape(-1), minlength=len(self.experts)) / chosen.numel()
        if self.training:
            self.penalties.append(self.balance * len(self.experts) * (self.load * shares.mean(0)).sum())
        return out.reshape(x.shape)
