"""What a file or folder of weights amounts to, before a module is built of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from kobza.models.record import Record
from kobza.tokens.base import Tokenizer


@dataclass(frozen=True)
class Contents:
    """A checkpoint, read and checked.

    Attributes:
        config: values of the transformers configuration, with `model_type`.
        tensors: weights by the checkpoint's names, in the types it stores; mapped from disk where possible.
        tokenizer: its vocabulary.
        notes: what a reader should know.
        licence: as the files state it, or "".
        generation: values of generation_config.json, or empty.
        record: what kobza wrote beside a model that it saved, or None.
        stored: the tensors as they lie in the file, where matrices are stored factored; else empty.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()
    licence: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    record: Record | None = None
    stored: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
