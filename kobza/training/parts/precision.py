"""In which type products are taken, and where the first value arose that is no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def autocast(dtype: torch.dtype, device: str = "cpu") -> Any:
    """Return a context in which matrix products are taken in `dtype`; weights stay as they are."""
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16."""
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(found()) or torch.cuda.is_available()


@torch.no_grad()
def first_not_finite(module: nn.Module, run: Callable[[], Any], dtype: torch.dtype) -> str:
    """Return the first part of the model whose output, or else gradient or weight, is not finite, in words."""
    seen: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Any) -> None:
            first = out[0] if isinstance(out, tuple) else out
            if isinstance(first, Tensor) and not torch.isfinite(first).all():
                seen.append(name)

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in module.named_modules() if name]
    try:
        with autocast(dtype):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        return f"the output of {seen[0]!r}"
    for name, p in module.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad.coalesce().values() if p.grad.is_sparse else p.grad).all():
            return f"the gradient of {name!r}"
    return "the loss itself"
