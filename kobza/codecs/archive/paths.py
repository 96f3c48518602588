"""Which paths and links an archive may hold. Whatever could reach outside its folder, or clash in it, is refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from kobza.codecs.container.errors import LimitExceeded
from kobza.codecs.container.limits import Limits
from kobza.core.errors import Unsafe

RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # device names of Windows
LONGEST_PART = 255  # bytes, of the usual file systems


def check_path(path: str, limits: Limits) -> str:
    """Return `path` if it may stand in an archive: relative, with / between its parts, the same everywhere.

    Raises:
        Unsafe: it is absolute, has a drive, a backslash, "..", an empty part, a control character, a name reserved
            by Windows, or is not in Unicode's composed form (NFC).
        LimitExceeded: it is too long or too deep.
    """
    reason = _reason(path)
    if reason:
        raise Unsafe(f"the archive holds the path {path[:80]!r}: {reason}.", "Nothing was unpacked.")
    length, depth = len(path.encode()), path.count("/") + 1
    if length > limits.path or depth > limits.depth:
        message = f"a path of {length} bytes, {depth} parts deep; the limits are {limits.path} and {limits.depth}."
        raise LimitExceeded(f"the archive holds {message}")
    return path


def check_link(path: str, target: str, limits: Limits) -> str:
    """Return the target of the link at `path` if it surely stays inside the archive's folder.

    ".." may stand only in front: behind a folder that is itself a link it would lead elsewhere than it seems.

    Raises:
        Unsafe: it is absolute, leads outside, or is no path that might stand in the archive.
    """
    parts = target.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    rest = "/".join(parts[ups:])
    if not target or ups > path.count("/"):
        raise Unsafe(f"the archive's link {path[:80]!r} leads outside, to {target[:80]!r}.", "Nothing was unpacked.")
    if rest not in ("", "."):
        check_path(rest, limits)
    return target


def check_all(entries: Iterable[tuple[str, bool]]) -> None:
    """Refuse paths that clash: equal, equal but for case, or below something that is no folder.

    Args:
        entries: (path, is a folder), in the archive's order.

    Raises:
        Unsafe: two entries clash; both are named.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for path, is_folder in entries:
        folded = unicodedata.normalize("NFC", path.casefold())
        if folded in seen:
            raise Unsafe(f"the archive holds {path[:80]!r} and {seen[folded][0][:80]!r}, which may be one file.")
        seen[folded] = path, is_folder
    for folded, (path, _) in seen.items():
        at = folded.rfind("/")
        while at > 0:
            above = seen.get(folded[:at])
            if above is not None and not above[1]:
                raise Unsafe(f"the archive holds {path[:80]!r} below {above[0][:80]!r}, which is not a folder.")
            at = folded.rfind("/", 0, at)


def _reason(path: str) -> str:
    if not path or path.startswith("/"):
        return "it is empty" if not path else "it is absolute"
    if "\\" in path or ":" in path:
        return "it has a backslash or a colon, which some systems take for folders, drives or streams"
    # subtle: lone surrogates are of category Cs; they cannot be written as UTF-8
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        return "it has a control character"
    if unicodedata.normalize("NFC", path) != path:
        return "it is not in Unicode's composed form"
    for part in path.split("/"):
        if part in ("", ".", "..") or part[-1] in ". ":
            return f"its part {part!r} is not a plain name"
        if RESERVED.fullmatch(part) or len(part.encode()) > LONGEST_PART:
            return f"its part {part[:40]!r} is reserved on some systems, or too long"
    return ""
