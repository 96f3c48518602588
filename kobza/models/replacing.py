"""Forks of a module that share every tensor, and the replacing of single weights in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, NotFinite, WrongTensors
from kobza.models.attending import PREFIX
from kobza.models.factored import Compact, Factored, Factors, dense_like, factored_like
from kobza.models.matrices import Matrix
from kobza.models.quantized import Coded, Quantized, coded_like

Value = Tensor | Factors | Quantized  # what a matrix can be replaced by


def shared_copy(module: Any) -> Any:
    """Return a copy of the module tree, with its own config, in which every parameter and buffer is the same object.

    Cost: no tensor memory; about 0.05 s for 30 blocks. Hooks of ours are not copied.
    """
    memo: dict[int, Any] = {id(p): p for p in module.parameters()}
    memo.update({id(b): b for b in module.buffers()})
    twin = copy.deepcopy(module, memo)
    config = twin.config.get_text_config()
    if (config._attn_implementation or "").startswith(PREFIX):
        config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "of_kobza", False)]:
                del hooks[key]
    return twin


def repeated_blocks(module: Any, blocks: str) -> dict[str, str]:
    """Blocks made of the very tensors of an earlier one: path -> path of the first of them.

    Args:
        module: of a model.
        blocks: path of its list of blocks, empty for none.
    """
    first: dict[tuple[int, ...], str] = {}
    found = {}
    for place, block in enumerate(module.get_submodule(blocks) if blocks else ()):
        path = f"{blocks}.{place}"
        owner = first.setdefault(tuple(id(p) for p in block.parameters()), path)
        if owner != path:
            found[path] = owner
    return found


def repeat_block(module: Any, path: str, first: str) -> None:
    """Put a twin of a block, with the same tensors, in the place of another."""
    source = module.get_submodule(first)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*source.parameters(), *source.buffers())}
    twin = copy.deepcopy(source, memo)
    for part in twin.modules():
        if hasattr(part, "layer_idx"):
            part.layer_idx = int(path.rpartition(".")[2])
    set_module(module, path, twin)


def put(module: Any, matrix: Matrix, value: Value) -> None:
    """Put a new value in the place of one weight of `module`; other places that shared the tensor keep the old one.

    Raises:
        WrongTensors: the shape differs from the matrix's.
        NotFinite: the value holds NaN or infinity.
        BadValue: factors or codes for something that cannot be stored so (a vector, a shifted table of positions).
    """
    owner, _, leaf = matrix.parameter.rpartition(".")
    holder = module.get_submodule(owner)
    _check(matrix, value)
    like = (getattr(torch, matrix.dtype), next(module.parameters()).device)
    if not isinstance(value, Tensor):
        twin = _compact(holder, value, *like) if leaf == "weight" else None
        if twin is None:
            how = "two factors" if isinstance(value, Factors) else "codes and scales"
            raise BadValue(f"{matrix.name!r} cannot be stored as {how}.", "Give a dense tensor.")
        set_module(module, owner, twin)
        return
    if isinstance(holder, Compact):
        holder = dense_like(holder)
        set_module(module, owner, holder)
    setattr(holder, leaf, frozen(value.T if matrix.is_transposed else value, *like))


def _compact(holder: Any, value: Factors | Quantized, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, Factors):
        return factored_like(holder, frozen(value.A, dtype, device), frozen(value.B, dtype, device))
    stored = {role: frozen(tensor, tensor.dtype, device) for role, tensor in value.tensors.items()}
    return coded_like(holder, value, stored, dtype)


def tie_ends(module: Any, embed_in: str, embed_out: str) -> None:
    """Make the output end use the very tensors of the input end (dense, factored or coded)."""
    source, target = module.get_submodule(embed_in), module.get_submodule(embed_out)
    if isinstance(source, Compact):
        twin: Any = None
        if isinstance(source, Factored):
            twin = factored_like(target, source.A, source.B)
        elif isinstance(source, Coded):
            twin = coded_like(target, source.quantized, dict(source.named_parameters()), source.dtype)
            twin._dense = source._dense
        assert twin is not None, "an output head is linear"
        set_module(module, embed_out, twin)
        return
    if isinstance(target, Compact):
        target = dense_like(target)
        set_module(module, embed_out, target)
    target.weight = source.weight


def frozen(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Return the values as a parameter without gradient, contiguous, never an inference tensor.

    A tensor that is already so is not copied.
    """
    values = tensor.detach().to(device, dtype).contiguous()
    return nn.Parameter(values.clone() if values.is_inference() else values, requires_grad=False)


def set_module(root: Any, path: str, part: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, leaf = path.rpartition(".")
    part.train(root.training)
    setattr(root.get_submodule(parent), leaf, part)


def _check(matrix: Matrix, value: Value) -> None:
    if tuple(value.shape) != matrix.shape:
        seen, wanted = (" x ".join(map(str, shape)) for shape in (value.shape, matrix.shape))
        raise WrongTensors(f"{matrix.name!r} is {wanted}; the tensor given is {seen}.")
    for tensor in _numbers(value):
        if not bool(torch.isfinite(tensor).all()):
            raise NotFinite(f"the new values of {matrix.name!r} hold NaN or infinity.")


def _numbers(value: Value) -> tuple[Tensor, ...]:
    if isinstance(value, Factors):
        return value.A, value.B
    return tuple(value.tensors.values()) if isinstance(value, Quantized) else (value,)


def cast(module: Any, dtype: torch.dtype) -> None:
    """Convert the weights of a module that nobody shares, in place; buffers keep their precision.

    `module.to(dtype)` would round the rotary frequencies too, which transformers keeps in float32.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def complete(tensors: Mapping[str, Value]) -> None:
    """Refuse a call that names both `embed` and one of its ends."""
    if "embed" in tensors and tensors.keys() & {"embed.in", "embed.out"}:
        raise BadValue("'embed' means both ends: give it alone, or 'embed.in' and 'embed.out'.")
