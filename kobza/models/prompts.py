"""What a model is given to go on with, and where it ends: prompts as tokens, plain or in the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kobza.core.errors import EmptyText
from kobza.models.model import Model

Prompt = str | bytes | Sequence[Mapping[str, Any]]  # a text, or messages {"role", "content"}


def prompt_ids(model: Model, prompt: Prompt, *, chat: bool = False) -> list[int]:
    """Return the tokens that stand for a prompt.

    A plain text gets the start token where the model is used with one; an empty text is the start token alone.

    Args:
        model: the model that is to read it.
        prompt: a text, or messages for its chat template.
        chat: put a text into the chat template as the user's message.

    Raises:
        EmptyText: an empty prompt, and the vocabulary has no start token.
        BadValue: a chat, and the model has no chat template.
    """
    tokenizer = model.tokenizer
    if not isinstance(prompt, str | bytes):
        return tokenizer.chat(list(prompt))
    if chat:
        content = prompt if isinstance(prompt, str) else prompt.decode("utf-8", errors="replace")
        return tokenizer.chat([{"role": "user", "content": content}])
    ids = tokenizer.encode(prompt, start=tokenizer.marks.adds_start or not prompt)
    if not ids:
        raise EmptyText(f"the prompt is empty, and '{model.name}' has no start token to begin with.", "Give a prompt.")
    return ids


def end_ids(model: Model) -> set[int]:
    """Return the tokens that end a text, by the tokenizer and by the model's own configuration."""
    generation = getattr(model.module, "generation_config", None)
    named = [model.tokenizer.end_id, model.config.eos_token_id, getattr(generation, "eos_token_id", None)]
    return {i for ids in named for i in (ids if isinstance(ids, list | tuple) else [ids]) if i is not None}
