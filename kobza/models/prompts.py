"""What a model is given to go on with, and where it ends: prompts as tokens, plain or in the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kobza.core.errors import BadValue, EmptyText, OutOfRange, UnknownName
from kobza.models.model import Model

Prompt = str | bytes | Sequence[Mapping[str, Any]] | Sequence[int]  # a text, messages {"role", "content"}, or tokens


def prompt_ids(model: Model, prompt: Prompt, *, chat: bool = False) -> list[int]:
    """Return the tokens that stand for a prompt.

    A plain text gets the start token where the model is used with one; an empty text is the start token alone.

    Args:
        model: the model that is to read it.
        prompt: a text, messages for its chat template, or tokens, which are taken as they are.
        chat: put a text into the chat template as the user's message.

    Raises:
        EmptyText: an empty prompt, and the vocabulary has no start token.
        BadValue: a chat, and the model has no chat template.
        OutOfRange: a token that the model does not have.
    """
    tokenizer = model.tokenizer
    if not isinstance(prompt, str | bytes):
        tokens = [token for token in prompt if isinstance(token, int)]
        if not tokens:
            return tokenizer.chat([message for message in prompt if not isinstance(message, int)])
        if not all(0 <= token < model.vocabulary for token in tokens):
            raise OutOfRange(f"the prompt's tokens {min(tokens)} .. {max(tokens)} do not fit '{model.name}'.")
        return tokens
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


def stops(model: Model, stop: Sequence[str]) -> tuple[set[int], list[str]]:
    """Return the control tokens and the texts among what shall end a generation.

    A control token adds nothing to a text, so its name would never be found there: it is looked for as a token.

    Args:
        model: whose control tokens are meant.
        stop: texts, and names of control tokens.

    Raises:
        BadValue: an empty text. UnknownName: the name of a control token, <|...|>, that the vocabulary does not have.
    """
    if any(not text for text in stop):
        raise BadValue("a stop text is empty: it would end every generation at once.", "Leave it out.")
    known = model.tokenizer.special
    for text in stop:
        if text not in known and re.fullmatch(r"<\|[^<>|\s]+\|>", text):
            raise UnknownName.of(f"control token of '{model.name}'", text, known)
    return {known[text] for text in stop if text in known}, [text for text in stop if text not in known]
