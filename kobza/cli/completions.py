"""Requests in OpenAI's form turned into generations, and generations into answers: no sockets here."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kobza.core.errors import BadValue

REASONS = {"length": "length", "end": "stop", "stop": "stop"}
LARGEST = 100_000  # of numbers that count tokens
KNOWN = {
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream",
    "stream_options", "seed", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "response_format",
    "n", "user", "strategy", "metadata", "store",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        prompt: a text, or messages.
        strategy, options: the technique of decoding and what it is given.
        is_chat, is_stream, has_usage, has_logprobs: the form of the answer.
    """

    prompt: Any
    strategy: str
    options: dict[str, Any]
    is_chat: bool
    is_stream: bool
    has_usage: bool
    has_logprobs: bool


def read(body: Mapping[str, Any], *, is_chat: bool) -> Asked:
    """Check a request.

    Raises:
        BadValue: a field is missing, unknown, of the wrong type or out of range; the message names it.
    """
    if unknown := sorted(set(body) - KNOWN):
        raise BadValue(f"the field {unknown[0]!r} is not known here.", f"Known are: {', '.join(sorted(KNOWN))}.")
    prompt = _messages(body) if is_chat else _text(body, "prompt")
    if body.get("n", 1) not in (1, None):
        raise BadValue("n is not 1: one answer for each request.", "Ask several times, with other seeds.")
    tokens = int(_number(body, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens", 256, 1,
                         LARGEST, whole=True))  # fmt: skip
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(word, str) and word for word in stop) or len(stop) > 16:
        raise BadValue("stop is not a text or a list of at most 16 texts.")
    options: dict[str, Any] = {"tokens": tokens, "stop": stop}
    strategy = body.get("strategy") or "sample"
    if not isinstance(strategy, str):
        raise BadValue("strategy is not a text.")
    drawn = {"temperature": _number(body, "temperature", 1.0, 0, 100), "top_p": _number(body, "top_p", 1.0, 0, 1)}
    seed = int(_number(body, "seed", 0, 0, 2**62, whole=True))
    if schema := _schema(body):
        strategy, options = "constrained", options | drawn | {"seed": seed, "schema": schema}
    elif strategy == "sample":
        penalties = {name: _number(body, f"{name}_penalty", 0.0, -2, 2) for name in ("frequency", "presence")}
        options |= drawn | penalties | {"seed": seed}
    is_stream = _flag(body, "stream")
    usage = body.get("stream_options") or {}
    has_logprobs = body.get("logprobs") not in (None, False)
    return Asked(
        prompt, strategy, options, is_chat, is_stream,
        isinstance(usage, dict) and bool(usage.get("include_usage")), has_logprobs,
    )  # fmt: skip


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadValue("messages is not a list of one or more messages.")
    found = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadValue(f"message {place} is not an object with role and content.")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise BadValue(f"the content of message {place} is not a text.")
        found.append({"role": message["role"], "content": content})
    return found


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise BadValue(f"{name} is not a text.")
    return value


def _number(
    body: Mapping[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        raise BadValue(f"{name} is {str(value)[:40]}; allowed is a {'whole ' if whole else ''}number, {low} to {high}.")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise BadValue(f"{name} is neither true nor false.")
    return bool(value)


def _schema(body: Mapping[str, Any]) -> str:
    form = body.get("response_format")
    if form is None:
        return ""
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return ""
    if kind == "json_object":
        return '{"type": "object"}'
    inner = form.get("json_schema") if isinstance(form, dict) else None
    if kind == "json_schema" and isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        return json.dumps(inner["schema"])
    raise BadValue("response_format is none of text, json_object, json_schema with its schema.")


class Answer:
    """An answer in the making: the objects that OpenAI's interface defines."""

    def __init__(self, asked: Asked, generation: Any, model: str) -> None:
        self.asked, self.generation = asked, generation
        prefix, self._kind = ("chatcmpl", "chat.completion") if asked.is_chat else ("cmpl", "text_completion")
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self) -> dict[str, Any]:
        """Return the answer at once."""
        text = self.generation.text
        choice: dict[str, Any] = {"index": 0, "finish_reason": REASONS[self.generation.stopped_by]}
        if self.asked.is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs() if self.asked.has_logprobs else None
        return self._head | {"object": self._kind, "choices": [choice], "usage": self._usage()}

    def pieces(self) -> Iterator[dict[str, Any]]:
        """Yield the answer piece by piece; the last says why it ended."""
        if self.asked.is_chat:
            yield self._piece({"role": "assistant", "content": ""})
        for piece in self.generation:
            yield self._piece({"content": piece} if self.asked.is_chat else piece)
        yield self._piece({} if self.asked.is_chat else "", REASONS[self.generation.stopped_by])
        if self.asked.has_usage:
            kind = "chat.completion.chunk" if self.asked.is_chat else self._kind
            yield self._head | {"object": kind, "choices": [], "usage": self._usage()}

    def _piece(self, said: Any, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta" if self.asked.is_chat else "text": said, "finish_reason": reason}
        kind = "chat.completion.chunk" if self.asked.is_chat else self._kind
        return self._head | {"object": kind, "choices": [choice | {"logprobs": None}]}

    def _usage(self) -> dict[str, int]:
        prompt, made = len(self.generation.prompt_ids), len(self.generation.ids)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _logprobs(self) -> dict[str, Any]:
        tokenizer = self.generation.model.tokenizer
        words = [tokenizer.text([token]) for token in self.generation.ids]
        if not self.asked.is_chat:
            return {"tokens": words, "token_logprobs": self.generation.logprobs, "top_logprobs": None,
                    "text_offset": [sum(map(len, words[:n])) for n in range(len(words))]}  # fmt: skip
        found = [
            {"token": word, "logprob": p, "bytes": list(tokenizer.bytes_of(token)), "top_logprobs": []}
            for word, p, token in zip(words, self.generation.logprobs, self.generation.ids, strict=True)
        ]
        return {"content": found}
