"""Matrices stored as codes and scales: what a quantized model is made of, in memory and on disk.

W[m, n] = level[code[m, n]] * scale[m, g] + offset[m, g], with g = n // block; then, where present, turned back by a
signed Hadamard rotation of the inputs, multiplied by one number per column, and a few entries put in exactly.
Scales are float16, as in GGUF. A layer computes with the dense product of that formula, made once per layer and shared
by all forks: codes save bytes on disk and in an export; whoever wants the speed of codes runs the GGUF file.

Sources: GGUF's block formats, ggml-quants.c (github.com/ggml-org/llama.cpp); NF4: Dettmers et al. (2023),
arXiv:2305.14314, appendix E; ternary base 3: TriLM packing, Vaidhya et al. (2024), arXiv:2407.12327.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kobza.core.errors import OutOfRange, WrongTensors
from kobza.models.factored import Compact, ScaledEmbedding, is_transposed

# quantiles of the normal distribution, 8 on each side of 0, scaled to -1 .. 1 (the closed form is in the tests)
NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
# a sign bit, two bits of exponent, one of mantissa: 0, 1/16, 8, 12, 4, 6, 2, 3 over 12, in the order of their codes
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
LEVELS = ("unsigned", "signed", "nf4", "fp4", "ternary", "float16")
_FLOATS, _WHOLE = (torch.float16,), (torch.int16, torch.int32)
ROLES = {
    "codes": (torch.uint8,), "scales": _FLOATS, "offsets": _FLOATS, "columns": _FLOATS, "signs": (torch.int8,),
    "outlier_counts": _WHOLE, "outlier_columns": _WHOLE, "outlier_values": _FLOATS,
}  # fmt: skip


def levels(kind: str, bits: int) -> Tensor:
    """Values (2^bits,) float32 of the codes: 0 .. 2^b - 1, the same less 2^(b-1), a table, or -1, 0, 1.

    Raises:
        OutOfRange: bits outside 1 .. 8, or a kind that has none such.
    """
    if kind == "ternary":
        return torch.tensor([-1.0, 0.0, 1.0])
    if kind in ("nf4", "fp4"):
        return torch.tensor(NF4 if kind == "nf4" else FP4)
    if kind not in LEVELS or not 1 <= bits <= 8:
        raise OutOfRange(f"codes of {bits} bits and kind {kind!r}; allowed: 1 .. 8 bits, {', '.join(LEVELS)}.")
    return torch.arange(2**bits).float() - (2 ** (bits - 1) if kind == "signed" else 0)


@dataclass(frozen=True)
class Quantized:
    """A matrix (M, N) as codes and scales; see the head of this file for the formula.

    Attributes:
        shape: (M, N).
        kind: what codes mean, one of `LEVELS`; float16 has no codes but the numbers themselves, 16 bits each.
        bits: of a code; ternary counts as 2 and is packed five to a byte.
        block: columns that share a scale [count, 1 .. N]; the last block of a row may be shorter.
        tensors: by role: `codes` packed (bytes,) uint8; `scales` (M, G) or (1, 1) float16; if present `offsets` like
            it, `columns` (N,) float16, `signs` (N,) int8, `outlier_counts` (M,), `outlier_columns` and
            `outlier_values` (K,), row after row.
    """

    shape: tuple[int, int]
    kind: str
    bits: int
    block: int
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors: what is stored."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over M N, scales and all."""
        return 8 * self.nbytes / math.prod(self.shape)

    def codes(self) -> Tensor:
        """The codes (M, N), uint8, unpacked."""
        return unpack(self.tensors["codes"], self.kind, self.bits, math.prod(self.shape)).view(self.shape)

    def dense(self) -> Tensor:
        """The matrix (M, N) in float32."""
        given = self.tensors
        if self.kind == "float16":
            return given["codes"].view(torch.float16).float().view(self.shape)
        W = levels(self.kind, self.bits).to(given["codes"].device)[self.codes().long()]
        W = W * self._spread(given["scales"])
        if "offsets" in given:
            W = W + self._spread(given["offsets"])
        if "signs" in given:
            W = rotated(W) * given["signs"].float()
        if "columns" in given:
            W = W * given["columns"].float()
        if "outlier_values" in given:
            rows = torch.repeat_interleave(torch.arange(len(W), device=W.device), given["outlier_counts"].long())
            W[rows, given["outlier_columns"].long()] = given["outlier_values"].float()
        return W

    def _spread(self, each: Tensor) -> Tensor:
        """Values per block (M, G) as values per entry (M, N); one for the whole matrix stays (1, 1)."""
        if each.numel() == 1:
            return each.float().view(1, 1)
        return each.float().repeat_interleave(self.block, 1)[:, : self.shape[1]]

    def layout(self) -> str:
        """What is needed beside the tensors, as one line of JSON."""
        return json.dumps({"shape": list(self.shape), "kind": self.kind, "bits": self.bits, "block": self.block})

    @classmethod
    def read(cls, layout: str, tensors: Mapping[str, Tensor]) -> Quantized:
        """Build it from a layout line and tensors, both from a file, and check that they fit.

        Raises:
            WrongTensors: a tensor is missing, of another type or size, or points outside the matrix.
        """
        try:
            about = json.loads(layout)
            rows, columns = map(int, about["shape"])
            found = cls((rows, columns), about["kind"], int(about["bits"]), int(about["block"]), tensors)
            found._check()
        except (ValueError, KeyError, TypeError, OutOfRange) as error:
            raise WrongTensors(f"codes and scales do not fit their description: {error}.") from None
        return found

    def _check(self) -> None:
        M, N = self.shape
        if self.kind != "float16":
            levels(self.kind, self.bits)
        if "codes" not in self.tensors or ("scales" in self.tensors) == (self.kind == "float16"):
            raise ValueError("codes or scales are missing")
        if min(M, N) < 1 or not 1 <= self.block <= N:
            raise ValueError(f"shape {self.shape}, block {self.block}")
        groups = math.ceil(N / self.block)
        kept = len(self.tensors["outlier_values"]) if "outlier_values" in self.tensors else 0
        allowed: dict[str, list[tuple[int, ...]]] = {
            "codes": [(packed_bytes(self.kind, self.bits, M * N),)], "scales": [(M, groups), (1, 1)],
            "offsets": [(M, groups), (1, 1)], "columns": [(N,)], "signs": [(N,)],
            "outlier_counts": [(M,)], "outlier_columns": [(kept,)], "outlier_values": [(kept,)],
        }  # fmt: skip
        for role, tensor in self.tensors.items():
            if tensor.dtype not in ROLES[role] or tuple(tensor.shape) not in allowed[role]:
                raise ValueError(f"{role} {tensor.dtype} {tuple(tensor.shape)}")
        self._check_outliers(kept)

    def _check_outliers(self, kept: int) -> None:
        present = [role for role in ROLES if role.startswith("outlier") and role in self.tensors]
        if not present:
            return
        counts, columns = self.tensors["outlier_counts"], self.tensors["outlier_columns"]
        outside = kept and (int(columns.min()) < 0 or int(columns.max()) >= self.shape[1])
        if int(counts.sum()) != kept or int(counts.min()) < 0 or outside:
            raise ValueError("outliers that point outside the matrix")


# --- packing ---------------------------------------------------------------------------------------------------------


def packed_bytes(kind: str, bits: int, count: int) -> int:
    """Bytes that `count` codes take."""
    return math.ceil(count / 5) if kind == "ternary" else math.ceil(count * bits / 8)


def pack(codes: Tensor, kind: str, bits: int) -> Tensor:
    """Pack codes of any shape into bytes, the lowest bits first; ternary ones five to a byte, as digits in base 3.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), "unsigned", 4).tolist()
    [33, 3]
    """
    flat = codes.detach().cpu().reshape(-1).to(torch.uint8).numpy()
    if kind == "ternary":
        padded = np.concatenate([flat, np.zeros(-len(flat) % 5, np.uint8)]).reshape(-1, 5)
        return torch.from_numpy(padded @ np.array([1, 3, 9, 27, 81], np.uint8))
    if bits == 8:
        return torch.from_numpy(flat.copy())
    wide = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(wide.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, kind: str, bits: int, count: int) -> Tensor:
    """Undo `pack`: (count,) uint8."""
    flat = packed.detach().cpu().numpy()
    if kind == "ternary":
        digits = flat[:, None] // np.array([1, 3, 9, 27, 81], np.uint8) % 3
        codes = digits.reshape(-1)[:count]
    elif bits == 8:
        codes = flat
    else:
        wide = np.unpackbits(flat, count=count * bits, bitorder="little").reshape(count, bits)
        codes = np.packbits(wide, axis=1, bitorder="little")[:, 0]
    return torch.from_numpy(np.ascontiguousarray(codes)).to(packed.device)


# --- rotation --------------------------------------------------------------------------------------------------------


def rotated(X: Tensor) -> Tensor:
    """Multiply rows (..., N) by an orthonormal, symmetric Hadamard matrix, in blocks of the largest power of 2 in N.

    Its own inverse. With random signs on the columns first, it spreads outliers over a block.
    Source: Ashkboos et al. (2024), arXiv:2404.00456.
    """
    size = X.shape[-1] & -X.shape[-1]
    Y, half = X.reshape(-1, size), 1
    while half < size:
        pairs = Y.view(-1, size // (2 * half), 2, half)
        Y = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(-1, size)
        half *= 2
    return (Y / math.sqrt(size)).reshape(X.shape)


# --- modules ---------------------------------------------------------------------------------------------------------


class _Dense:
    """The dense matrix of a coded module, made at its first use; forks share it, copies of a module too."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> _Dense:
        return self


class Coded(Compact):
    """What the coded modules share: the stored tensors as parameters, and the dense matrix under the name `weight`."""

    def __init__(self, value: Quantized, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        super().__init__()
        for role, parameter in parameters.items():
            self.register_parameter(role, parameter)
        self._about, self._roles, self.dtype = value.layout(), tuple(parameters), dtype
        self._dense = _Dense()

    @property
    def quantized(self) -> Quantized:
        """The matrix as a value, its tensors shared."""
        return Quantized.read(self._about, {role: getattr(self, role).detach() for role in self._roles})

    @property
    def weight(self) -> Tensor:
        """The dense matrix (M, N) in the model's number format; shared, not to be written."""
        if self._dense.tensor is None or self._dense.tensor.device != self.codes.device:
            with torch.inference_mode(False), torch.no_grad():  # it outlives the block it is first needed in
                self._dense.tensor = self.quantized.dense().to(self.dtype)
        return self._dense.tensor

    def extra_repr(self) -> str:
        """Shape and bits, as printed in the module tree."""
        value = self.quantized
        return f"{value.shape[0]} x {value.shape[1]}, {value.bits_per_weight:.2f} bits per weight"


class CodedEmbedding(Coded):
    """A table of embeddings stored as codes."""

    def __init__(
        self, value: Quantized, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype, scale: Any
    ) -> None:
        super().__init__(value, parameters, dtype)
        self.num_embeddings, self.embedding_dim = value.shape
        if scale is not None:
            self.register_buffer("embed_scale", torch.as_tensor(scale), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(...) ids to (..., D) vectors."""
        vectors = nn.functional.embedding(input_ids, self.weight)
        scale: Any = getattr(self, "embed_scale", None)
        return vectors if scale is None else vectors * scale.to(vectors.dtype)

    def plain(self) -> nn.Module:
        """Return the dense table that this one stands for."""
        rows, width = self.weight.shape
        scaled = hasattr(self, "embed_scale")
        plain: Any = (
            ScaledEmbedding(rows, width, self.get_buffer("embed_scale"))
            if scaled
            else nn.Embedding(rows, width, device="meta")
        )
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        return plain


class CodedLinear(Coded):
    """A linear layer stored as codes; `is_transposed` as in `FactoredLinear`."""

    def __init__(
        self, value: Quantized, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype, like: nn.Module
    ) -> None:
        super().__init__(value, parameters, dtype)
        self.out_features, self.in_features = value.shape
        self.bias: Any = like.bias
        self.is_transposed = is_transposed(like)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., M)."""
        return nn.functional.linear(x, self.weight, self.bias)

    def plain(self) -> nn.Module:
        """Return the dense layer that this one stands for."""
        (M, N), W = self.weight.shape, self.weight
        plain: Any = Conv1D(M, N) if self.is_transposed else nn.Linear(N, M, bias=False, device="meta")
        plain.bias = self.bias
        plain.weight = nn.Parameter(W.T.contiguous() if self.is_transposed else W, requires_grad=False)
        return plain


def coded_like(
    module: Any, value: Quantized, parameters: Mapping[str, nn.Parameter], dtype: torch.dtype
) -> Coded | None:
    """Return the coded module that takes the place of `module`, or None if its kind cannot be stored so."""
    if isinstance(module, nn.Embedding) or hasattr(module, "num_embeddings"):
        scale = getattr(module, "embed_scale", None)
        own = not isinstance(module, Compact) and type(module).forward is not nn.Embedding.forward
        return None if own and scale is None else CodedEmbedding(value, parameters, dtype, scale)
    if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "in_features"):
        return CodedLinear(value, parameters, dtype, module)
    return None


def surplus(module: nn.Module) -> int:
    """Return how many more numbers the coded matrices of a module stand for than their tensors have entries."""
    coded = {id(part.codes): part for part in module.modules() if isinstance(part, Coded)}
    return sum(
        math.prod(part.quantized.shape) - sum(getattr(part, role).numel() for role in part._roles)
        for part in coded.values()
    )
