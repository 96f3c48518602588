"""Rotate and slice: turn the residual stream to its strongest directions and cut the rest away.

RMSNorm does not see a rotation once its gains are folded into the matrices behind it, so one orthogonal basis for the
whole stream changes nothing (computational invariance); cutting its last directions makes every matrix narrower and
leaves a plain model of the same family. With `refit` the matrices are then fitted again by least squares, from below:
those that read the stream to what they gave on the original one, those that write to it to where the original stream
went. No gradient is taken.

Source: Ashkboos et al. (2024), arXiv:2401.15024 (SliceGPT; there one basis per block and matrices at the shortcuts).
The refit by least squares is kobza's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import OutOfRange
from kobza.core.progress import progress
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits._layers import Walk
from kobza.edits._shapes import rebuilt, require_family
from kobza.edits.base import CALIBRATION
from kobza.models import forward, replacing
from kobza.models.linear_algebra import eigen
from kobza.models.model import Model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # RMSNorm with plain gains, pre-norm, separate matrices
TOKENS = 8192  # read by default
READERS = {"norm1": ("attn.q", "attn.k", "attn.v"), "norm2": ("mlp.gate", "mlp.up")}
WRITERS = ("attn.o", "mlp.down")


def apply(
    model: Model,
    *,
    share: float = 0.75,
    multiple: int = 0,
    random: int = 0,
    refit: bool = True,
    damping: float = 0.01,
    calibration: Sequence[str] = CALIBRATION,
    calibration_tokens: int = TOKENS,
) -> Model:
    """Cut the residual stream to a share of its width.

    Args:
        model: the model to start from; it is not changed. Families: llama, mistral, qwen2, qwen3.
        share: of the width that stays [fraction, >0 .. 1]; 1 only rotates.
        multiple: the new width is rounded to a multiple of this [count, 0 ..]; 0: of the attention heads, which
            transformers demands.
        random: the control: a random basis of this seed [seed, 0 ..]; 0: the principal directions of the text.
        refit: fit the matrices again by least squares.
        damping: how much the refit holds to the sliced matrices, in units of the mean second moment [fraction, >0 ..].
        calibration: texts that give basis and refit; not the text to be measured.
        calibration_tokens: tokens read, in whole windows, shared over the texts [count, 2 ..].

    Returns:
        A plain, untied model of the same family with a smaller hidden size. Its last Change records the energy kept,
        parameters and stored bytes before and after.

    Raises:
        BadValue: a family that it does not know.
        OutOfRange: a share that leaves no width, or more than there is.

    Cost: one pass over the calibration tokens, with refit four, and a least squares problem per matrix.
    """
    require_family(model, FAMILIES, "slicing")
    width = new_width(model, share, multiple)
    texts = base.calibration_texts(calibration)
    walk = Walk(model, texts, calibration_tokens)
    basis, energy = _basis(model, walk, random)
    kept = basis[:, :width]
    facts: dict[str, Any] = {"width": width, "energy_kept": float(energy[:width].sum() / energy.sum())}
    facts["calibration"] = base.calibration_facts(texts, calibration_tokens)
    options = base.options_of(
        share=share, multiple=multiple, random=random, refit=refit, damping=damping, calibration=list(calibration),
        calibration_tokens=calibration_tokens,
    )  # fmt: skip
    small = _sliced(model, kept, options, facts)
    if refit and width < model.width:
        _refit(model, small, kept.float(), texts, calibration_tokens, damping)
    return small


def new_width(model: Model, share: float, multiple: int) -> int:
    """Return the width that a share leaves, rounded to a multiple.

    Raises:
        OutOfRange: none, or more than there is.
    """
    step = multiple or model.config.num_attention_heads
    width = round(share * model.width / step) * step
    if not 0 < width <= model.width or share > 1 or multiple < 0:
        raise OutOfRange(
            f"share={share} of the width {model.width}, in steps of {step}, leaves {width} directions; "
            f"allowed: {step} .. {model.width}."
        )
    return int(width)


def _basis(model: Model, walk: Walk, random: int) -> tuple[Tensor, Tensor]:
    """An orthogonal basis (D, D) float64 of the normalized stream, strongest first, and the energy along it (D,)."""
    total = torch.zeros(model.width, model.width, dtype=torch.float64)
    hidden = walk.hidden
    for layer in progress(range(model.layers), "basis"):
        names = [f"blocks.{layer}.norm1", f"blocks.{layer}.norm2"]
        for h in hidden:
            for x in walk.read(model, layer, h, names).values():
                total += _second_moment(x)
        hidden = [walk.out(model, layer, h) for h in hidden]
    for h in hidden:
        total += _second_moment(h[0])
    if random:
        draw = torch.randn(total.shape, generator=base.generator(random, "stream"), dtype=torch.float64)
        basis = torch.linalg.qr(draw)[0]
        return basis, (basis * (total @ basis)).sum(0)
    values, basis = eigen(total)
    return basis, values


def _second_moment(x: Tensor) -> Tensor:
    """Sum of x x^T over rows (T, D) brought to a mean square of 1, float64."""
    x = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    return (x.T @ x).double()


def _sliced(model: Model, kept: Tensor, options: dict[str, Any], facts: dict[str, Any]) -> Model:
    """Fold the gains, turn every matrix, and cut it to the columns of `kept` (D, k)."""
    D, k = kept.shape
    gain = torch.full((k,), (D / k) ** 0.5)  # the mean square is now taken over k instead of D entries
    tensors: dict[str, Tensor] = {"norm": gain}
    tensors["embed.in"] = (model.matrix("embed.in").double() @ kept).float()
    tensors["embed.out"] = _read(model, "embed.out", "norm", kept)
    for layer in range(model.layers):
        block = f"blocks.{layer}"
        for norm, readers in READERS.items():
            tensors[f"{block}.{norm}"] = gain
            for part in readers:
                tensors[f"{block}.{part}"] = _read(model, f"{block}.{part}", f"{block}.{norm}", kept)
        for part in WRITERS:
            tensors[f"{block}.{part}"] = (kept.T @ model.matrix(f"{block}.{part}").double()).float()
            bias = f"{block}.{part}.bias"
            if bias in model.matrices:
                tensors[bias] = (kept.T @ model.matrix(bias).double()).float()
    head = getattr(model.config, "head_dim", None) or D // model.config.num_attention_heads
    settings = {"hidden_size": k, "head_dim": head, "tie_word_embeddings": False}
    return rebuilt(model, settings, tensors, "slicing", options, facts)


def _read(model: Model, name: str, norm: str, kept: Tensor) -> Tensor:
    """W diag(gain) Q_k for a matrix W (M, D) that reads behind a norm."""
    return ((model.matrix(name).double() * model.matrix(norm).double()) @ kept).float()


# --- refit -----------------------------------------------------------------------------------------------------------


def _refit(model: Model, small: Model, kept: Tensor, texts: Sequence[Text], tokens: int, damping: float) -> None:
    """Fit the matrices of a sliced model, which is ours to change, again from below."""
    large, narrow = Walk(model, texts, tokens), Walk(small, texts, tokens)
    for layer in progress(range(model.layers), "refit"):
        block = f"blocks.{layer}"
        names = [f"{block}.{part}" for part in ("attn.q", "attn.o", "norm2", "mlp.gate", "mlp.down")]
        with torch.no_grad():
            seen = [large.read(model, layer, h, names) for h in large.hidden]
            large.step(model, layer)
            streams = {"attn.o": [s[f"{block}.norm2"] for s in seen], "mlp.down": [h[0] for h in large.hidden]}
            for norm, readers in READERS.items():
                _fit_readers(narrow, small, model, layer, readers, [s[f"{block}.{readers[0]}"] for s in seen], damping)
                writer = "attn.o" if norm == "norm1" else "mlp.down"
                _fit_writer(narrow, small, layer, writer, [s @ kept for s in streams[writer]], damping)
            narrow.step(small, layer)
    _fit_head(large, narrow, model, small, damping)


def _fit_readers(
    narrow: Walk, small: Model, model: Model, layer: int, parts: Sequence[str], before: list[Tensor], damping: float
) -> None:
    """Matrices behind a norm: W' x' as close as can be to what W x was."""
    names = [f"blocks.{layer}.{part}" for part in parts]
    now = [narrow.read(small, layer, h, names[:1])[names[0]] for h in narrow.hidden]
    H, C = _products(now, now), _products(before, now)
    for name in names:
        cut = small.matrix(name)
        wanted = model.matrix(name).double() @ C
        replacing.put(small.module, small.matrices[name], solved(cut, wanted, H, damping))


def _fit_writer(narrow: Walk, small: Model, layer: int, part: str, goal: list[Tensor], damping: float) -> None:
    """A matrix that writes to the stream: stream + W' z' as close as can be to the original stream, turned and cut."""
    name = f"blocks.{layer}.{part}"
    norm = f"blocks.{layer}.norm2"
    now, gaps = [], []
    for h, wanted in zip(narrow.hidden, goal, strict=True):
        heard = narrow.read(small, layer, h, [norm, name] if part == "mlp.down" else [name])
        stream = heard[norm] if part == "mlp.down" else h[0]
        now.append(heard[name])
        gaps.append(wanted - stream - _bias(small, name))
    H, C = _products(now, now), _products(gaps, now)
    replacing.put(small.module, small.matrices[name], solved(small.matrix(name), C, H, damping))


def _bias(model: Model, name: str) -> Tensor:
    return model.matrix(f"{name}.bias") if f"{name}.bias" in model.matrices else torch.zeros(())


@torch.no_grad()
def _fit_head(large: Walk, narrow: Walk, model: Model, small: Model, damping: float) -> None:
    """The head reads behind the last norm."""
    before, now = (
        [m.module.get_submodule(m.family.modules["norm"])(h[0]) for h in walk.hidden]
        for m, walk in ((model, large), (small, narrow))
    )
    H, C = _products(now, now), _products(before, now)
    wanted = model.matrix("embed.out").double() @ C
    replacing.put(small.module, small.matrices["embed.out"], solved(small.matrix("embed.out"), wanted, H, damping))
    small.head_is_exact = None
    assert forward.head_fits(small), "a head of the families known is linear"


def _products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Mean of l r^T over rows, float64."""
    total = sum(((a.T @ b).double() for a, b in zip(left, right, strict=True)), torch.zeros((), dtype=torch.float64))
    return total / sum(map(len, left))


def solved(start: Tensor, wanted: Tensor, H: Tensor, damping: float) -> Tensor:
    """The W (M, N) nearest to W H = wanted, held to `start` by `damping` times the mean of H's diagonal."""
    H = H.clone()
    gap = wanted - start.double() @ H
    H.diagonal().add_(damping * H.diagonal().mean().clamp_min(1e-12))
    step = torch.cholesky_solve(gap.T, torch.linalg.cholesky(H)).T
    return (start.double() + step).float()
