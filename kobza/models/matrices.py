"""Names for the weights of a model, the same in every family.

`embed.in`, `embed.out` (pattern `embed`: both ends), `embed.positions`, `blocks.3.attn.q|k|v|o|qkv`,
`blocks.3.mlp.gate|up|down|gate_up`, `blocks.3.norm1`, `norm`; a bias is `blocks.3.attn.q.bias`. Where a family
fuses q, k and v (or gate and up) into one tensor, that tensor is the matrix, and its parts can be read and
replaced under their own names too. A parameter that no name is known for keeps its path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import NothingMatched, nearest
from kobza.models.factored import Compact, Factored, is_transposed
from kobza.models.families import Family
from kobza.models.quantized import Coded

PARTS = {"rows": ("q", "k", "v"), "heads": ("q", "k", "v"), "halves": ("gate", "up")}


@dataclass(frozen=True)
class Matrix:
    """One named weight.

    Attributes:
        name: our name, `blocks.3.mlp.down`.
        shape: (M outputs, N inputs); (M,) for a norm or a bias. Tables of embeddings are (V, D).
        dtype: type of the stored numbers, `float32`.
        parameter: path in the transformers module, `model.layers.3.mlp.down_proj.weight`.
        bytes: stored bytes; 0 for a tensor that is stored under another name already (`shared`).
        stored_as: "dense", "factors" or "codes".
        rank: directions of a factored matrix, else 0.
        shared: name of the matrix that owns the tensor, when it is not this one.
        is_transposed: stored as inputs x outputs (GPT-2).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameter: str
    bytes: int
    stored_as: str = "dense"
    rank: int = 0
    shared: str = ""
    is_transposed: bool = False


@dataclass(frozen=True)
class Part:
    """Rows of a fused matrix that have a name of their own."""

    name: str
    whole: str
    layout: str
    key: str


def inventory(module: Any, family: Family) -> dict[str, Matrix]:
    """Return every weight of the model by our name, the ends first."""
    prefixes = _prefixes(module, family)
    found: dict[str, Matrix] = {}
    owners: dict[int, str] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        owner, _, leaf = path.rpartition(".")
        if isinstance(module.get_submodule(owner), Compact) and leaf not in ("A", "codes", "bias"):
            continue  # counted with its A or its codes
        name = _name(path, owner, leaf, prefixes, family)
        part, shared = module.get_submodule(owner), owners.setdefault(id(parameter), name)
        found[name] = _matrix(name, path, parameter, part, shared if shared != name else "")
        if isinstance(part, Factored) and owners.setdefault(id(part.B), name) != name and shared == name:
            found[name] = replace(found[name], bytes=part.A.nbytes)  # its B is counted with another's
    ends = [name for name in found if name.startswith("embed.")]
    return {name: found[name] for name in [*ends, *(n for n in found if n not in ends)]}


def _prefixes(module: Any, family: Family) -> dict[str, str]:
    """Return module path -> our name for every part the family's table names."""
    prefixes = {path: name for name, path in family.modules.items()}
    if family.blocks:
        count = len(module.get_submodule(family.blocks))
        for layer in range(count):
            for part, path in family.block.items():
                prefixes[f"{family.blocks}.{layer}.{path}"] = f"blocks.{layer}.{part}"
    return prefixes


def _name(path: str, owner: str, leaf: str, prefixes: Mapping[str, str], family: Family) -> str:
    if owner in prefixes:
        return prefixes[owner] if leaf in ("weight", "A", "codes") else f"{prefixes[owner]}.{leaf}"
    if path in prefixes:
        return prefixes[path]
    inside = f"{family.blocks}." if family.blocks else ""
    return f"blocks.{path.removeprefix(inside)}" if inside and path.startswith(inside) else path


def _matrix(name: str, path: str, parameter: Tensor, owner: nn.Module, shared: str) -> Matrix:
    dtype = str(parameter.dtype).removeprefix("torch.")
    if isinstance(owner, Factored) and path.endswith(".A"):
        size = 0 if shared else owner.A.nbytes + owner.B.nbytes
        weight, (M, R), N = path.removesuffix("A") + "weight", owner.A.shape, owner.B.shape[1]
        return Matrix(name, (M, N), dtype, weight, size, "factors", R, shared, is_transposed(owner))
    if isinstance(owner, Coded) and path.endswith(".codes"):
        value, weight = owner.quantized, path.removesuffix("codes") + "weight"
        dtype, size = str(owner.dtype).removeprefix("torch."), 0 if shared else value.nbytes
        return Matrix(name, value.shape, dtype, weight, size, "codes", 0, shared, is_transposed(owner))
    turned = is_transposed(owner) and parameter.ndim == 2
    shape = tuple(parameter.shape[::-1] if turned else parameter.shape)
    size = 0 if shared else parameter.nbytes
    return Matrix(name, shape, dtype, path, size, shared=shared, is_transposed=turned)


def parts(matrices: Mapping[str, Matrix], family: Family) -> dict[str, Part]:
    """Return the named rows of fused matrices: `blocks.0.attn.q` of `blocks.0.attn.qkv`, and so on."""
    found = {}
    for name in matrices:
        for fused, layout in family.fused.items():
            if name.startswith("blocks.") and name.endswith(f".{fused}"):
                parent = name.rpartition(".")[0]
                for key in PARTS[layout]:
                    found[f"{parent}.{key}"] = Part(f"{parent}.{key}", name, layout, key)
    return found


def rows(part: Part, shape: tuple[int, ...], config: Any) -> Tensor:
    """Return the row numbers of a part within its fused matrix, in order."""
    M = shape[0]
    if part.layout == "halves":
        return torch.arange(0, M // 2) if part.key == "gate" else torch.arange(M // 2, M)
    H = config.num_attention_heads
    K = getattr(config, "num_key_value_heads", None) or H
    if part.layout == "heads":
        return torch.arange(M).view(H, 3, -1)[:, "qkv".index(part.key)].reshape(-1)
    E = M // (H + 2 * K)
    begins = {"q": (0, H * E), "k": (H * E, (H + K) * E), "v": ((H + K) * E, M)}
    return torch.arange(*begins[part.key])


def read(module: Any, matrix: Matrix) -> Tensor:
    """Return a weight in the orientation outputs x inputs, float32; a view when it is stored so. Not to be written."""
    owner, _, leaf = matrix.parameter.rpartition(".")
    holder = module.get_submodule(owner)
    if isinstance(holder, Factored) and leaf == "weight":
        product: Tensor = holder.A.detach().float() @ holder.B.detach().float()
        return product
    if isinstance(holder, Coded) and leaf == "weight":
        return holder.weight.float()
    tensor: Tensor = getattr(holder, leaf).detach()
    return (tensor.T if matrix.is_transposed else tensor).float()


def find(name_of_model: str, matrices: Mapping[str, Matrix], fused: Mapping[str, Part], pattern: str) -> list[str]:
    """Return the names a pattern selects (see `Model.find`)."""
    chosen: dict[str, None] = {}
    for one in (p.strip() for p in pattern.split(",")):
        found = _matching(matrices, fused, one)
        if not found:
            raise nothing_matched(name_of_model, one, [*matrices, *fused])
        chosen.update(dict.fromkeys(found))
    both = {"embed.in", "embed.out"} <= chosen.keys() and matrices["embed.out"].shared == "embed.in"
    if both:  # one tensor: editing both ends means editing it once, and it stays tied
        return ["embed", *(name for name in chosen if name not in ("embed.in", "embed.out"))]
    return list(chosen)


def _matching(matrices: Mapping[str, Matrix], fused: Mapping[str, Part], pattern: str) -> list[str]:
    """Matrices first; only if there are none parts of fused ones; only then vectors and other shapes."""
    if pattern == "embed":
        return [name for name in ("embed.in", "embed.out") if name in matrices]
    flat = [name for name, matrix in matrices.items() if len(matrix.shape) == 2]
    rest = [name for name in matrices if name not in set(flat)]
    for names in (flat, list(fused), rest):
        if found := [name for name in names if fits(name, pattern)]:
            return found
    return []


def fits(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern, or lies below what the pattern names (`blocks.3.mlp`)."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def nothing_matched(model: str, pattern: str, names: Iterable[str]) -> NothingMatched:
    """Build the error that lists the nearest patterns and how many matrices each matches."""
    counts: Counter[str] = Counter()
    for name in names:
        general = re.sub(r"\b\d+\b", "*", name)
        pieces = general.split(".")
        counts.update(".".join(pieces[:end]) for end in range(1, len(pieces) + 1))
    near = nearest(re.sub(r"\b\d+\b", "*", pattern), [p for p in counts if p not in ("blocks", "blocks.*")])
    shown = near or [p for p in ("embed", "blocks.*.attn", "blocks.*.mlp") if p in counts]
    listed = ", ".join(f"{p!r} ({counts[p]} {'matrix' if counts[p] == 1 else 'matrices'})" for p in shown)
    message = f"no matrix of {model!r} matches {pattern!r}." + (f" Nearest: {listed}." if listed else "")
    return NothingMatched(message, f"See all: kobza open {model} --matrices")
