"""Digests of weights, remembered per tensor, so that a fork only hashes what it changed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and bytes of a tensor; the same from memory or a mapped file, on any device.

    Remembered as long as the tensor lives and is not written to.
    """
    version = None if tensor.is_inference() else tensor._version
    seen = _known.get(tensor)
    if seen is not None and version is not None and seen[0] == version:
        return str(seen[1])
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(raw_bytes(tensor))
    _known[tensor] = (version, digest.hexdigest())
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, row by row, without a copy where it lies so in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the digests of all weights in the order of their names; a shared tensor counts under each name."""
    named = dict(module.named_parameters(remove_duplicate=False))
    total = hashlib.sha256()
    for name in sorted(named):
        total.update(f"{name} {tensor_digest(named[name])}\n".encode())
    return total.hexdigest()
