"""The inner loops of one step of a Llama-type model in C; optional, `bare.py` has the plain twin in torch.

`compiled` says whether they are there; `kernels` is the compiled module, or None.
"""

from __future__ import annotations

from typing import Any

kernels: Any
try:
    from kobza.models.native import _step as kernels  # type: ignore[attr-defined, no-redef]
except ImportError:
    kernels = None

compiled: bool = kernels is not None
