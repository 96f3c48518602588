"""kobza: an instrument for language models. Open one, look inside, change it, let it speak, measure what changed."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module that holds it; imported on first use, so that `import kobza` stays light
_PUBLIC = {
    "open": "kobza.models.opening",
    "Model": "kobza.models.model",
    "vocabulary": "kobza.models.vocabulary",
    "Tokenizer": "kobza.tokens.base",
    "Text": "kobza.core.texts",
    "text": "kobza.core.texts",
    "Table": "kobza.core.table",
    "Reading": "kobza.core.result",
    "Result": "kobza.core.result",
    "Figure": "kobza.core.figure",
    "KobzaError": "kobza.core.errors",
    "Recipe": "kobza.recipes.recipe",
    "run": "kobza.recipes.running",
    "sweep": "kobza.recipes.sweep",
    "shrink": "kobza.recipes.shrink",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        # subtle: importing kobza.recipes.sweep does not set kobza.sweep, since the module's parent is kobza.recipes
        globals()[name] = value
        return value
    if name in (
        "codecs",
        "core",
        "decoding",
        "edits",
        "embeddings",
        "measures",
        "models",
        "recipes",
        "tokens",
        "training",
        "vault",
    ):
        return importlib.import_module(f"kobza.{name}")
    raise AttributeError(f"module 'kobza' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
