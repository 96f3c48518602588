"""Runs as a process of its own: renders one chat template read from stdin, within limits, and writes JSON to stdout.

It imports nothing of kobza. Input: {"source", "names", "seconds", "size", "memory"}; output: {"text"} or
{"error": kind, "reason": ...} with kind one of "syntax", "sandbox", "undefined", "refused", "size", "failed".
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def main() -> None:
    """Read the request, limit this process, answer."""
    request = json.loads(sys.stdin.buffer.read())
    # before the limits, which its own code need not fit in
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401

    _limit(request["seconds"], request["memory"])
    try:
        answer = _answer(request)
    except (OverflowError, MemoryError, RecursionError) as error:
        answer = {"error": "size", "reason": str(error) or type(error).__name__}
    sys.stdout.write(json.dumps(answer))


def _limit(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # not POSIX: the parent's own clock still ends this process
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _answer(request: dict[str, Any]) -> dict[str, str]:
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

    try:
        return _rendered(request["source"], request["names"], request["size"])
    except TemplateSyntaxError as error:
        return {"error": "syntax", "reason": f"{error.message} (line {error.lineno})"}
    except SecurityError as error:
        return {"error": "sandbox", "reason": str(error)}
    except UndefinedError as error:
        return {"error": "undefined", "reason": str(error)}
    except TemplateError as error:
        return {"error": "refused", "reason": str(error)}
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, OverflowError):
            raise
        return {"error": "failed", "reason": f"{type(error).__name__}: {error}"}


def _rendered(source: str, names: dict[str, Any], limit: int) -> dict[str, str]:
    out: list[str] = []
    size = 0
    for chunk in _environment().from_string(source).generate(**names):
        size += len(chunk)
        if size > limit:
            return {"error": "size", "reason": f"it writes more than {limit} characters"}
        out.append(chunk)
    return {"text": "".join(out)}


def _environment() -> Any:
    """Return the environment that chat templates are written for: transformers' names and whitespace rules."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **other: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **other)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    main()
