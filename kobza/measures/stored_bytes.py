"""Stored bytes: what saving the model writes, each shared tensor once.

Source: the tensor part of a safetensors file, which is their bytes without padding
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

from kobza.core.result import Reading
from kobza.measures.base import Given, record
from kobza.models.model import Model


def measure(model: Model, text: Given | None = None) -> Reading:
    """Count the tensor bytes that `model.save()` would write.

    Args:
        model: the model.
        text: not read; the size of a model does not depend on a text.

    Returns:
        A Reading in bytes, without the kilobytes of header, configuration and tokenizer beside them. Only edits of
        the kinds "factor" and "shape" change it; an edit of kind "values" stores as much as before. The note gives
        the stored numbers and bits per number.
    """
    note = f"{model.parameters:,} numbers of {8 * model.stored_bytes / model.parameters:.2f} bits"
    return Reading("stored_bytes", float(model.stored_bytes), "B", record=record(model, None), note=note)
