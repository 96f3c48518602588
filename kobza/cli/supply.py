"""What a codec needs besides bytes, opened when the first of them needs it: a model, its tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from kobza.core import techniques

KEYS = ("predictor", "vocabulary")


class Supply:
    """The model of a command, opened at most once.

    Args:
        name: what `kobza.open` is given.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def model(self) -> Any:
        """The opened model."""
        import kobza

        return kobza.open(self.name)

    def needs(self, codec: str) -> list[str]:
        """Return what a codec wants to be handed in."""
        parameters = inspect.signature(techniques.load("codecs", codec).compress).parameters
        return [key for key in KEYS if key in parameters]

    def given(self, codecs: Iterable[str]) -> dict[str, Any]:
        """Return what these codecs need, by name; without need nothing is opened."""
        wanted = {key for codec in codecs for key in self.needs(codec)}
        return {key: getattr(self, key) for key in KEYS if key in wanted}

    @cached_property
    def predictor(self) -> Any:
        """The model as `codecs.lm` wants it."""
        from kobza.models.predictor import ModelPredictor

        return ModelPredictor(self.model)

    @property
    def vocabulary(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def bytes(self) -> int:
        """What sending the model along would take [bytes]: its file as it lies on disk, else its tensors."""
        path = Path(self.model.origin.path)
        is_as_opened = self.model.origin.path and path.is_file() and not self.model.changes
        return path.stat().st_size if is_as_opened else int(self.model.stored_bytes)
