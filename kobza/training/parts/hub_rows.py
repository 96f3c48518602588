"""Rows of a data set on the Hugging Face hub, by the library `datasets` (the extra `data`)."""

from __future__ import annotations

import re
from typing import Any

from kobza.core.errors import BadValue, MissingExtra, MissingFile, Offline

PREFIX = "hub:"
_SPEC = re.compile(r"hub:(?P<name>[\w.-]+(/[\w.-]+)?)(\?(?P<config>[\w.-]+))?(:(?P<split>[\w.%\[\]:+-]+))?")


def hub_rows(spec: str) -> list[dict[str, Any]]:
    """Return the rows of "hub:owner/name", "hub:owner/name:split" or "hub:owner/name?config:split"; else of "train".

    Raises:
        BadValue: not of this form, or no such configuration or split; the message has what the library says.
        MissingExtra: datasets is not installed. MissingFile: there is no such data set. Offline: it cannot be reached.
    """
    read = _SPEC.fullmatch(spec)
    if read is None:
        raise BadValue(f"{spec!r} names no data set.", "Write hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or ...?CONFIG:SPLIT")
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingExtra.of("a data set of the hub", "datasets", "data") from None
    try:
        found = datasets.load_dataset(read["name"], read["config"], split=read["split"] or "train")
    except ConnectionError as error:  # first: some are file errors as well
        raise Offline(f"the data set {read['name']!r} cannot be reached: {_short(error)}.") from None
    except FileNotFoundError as error:
        raise MissingFile(f"there is no data set {read['name']!r}: {_short(error)}.") from None
    except ValueError as error:
        raise BadValue(f"the data set {read['name']!r} has no such part: {_short(error)}.") from None
    return [dict(row) for row in found]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
