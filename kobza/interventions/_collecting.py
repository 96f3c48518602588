"""Values at sites over a longer text, window by window. Shared ground of the room, not a technique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kobza.core.errors import EmptyText, OutOfRange
from kobza.core.progress import task
from kobza.core.texts import text as open_text
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import expand

BYTES_PER_TOKEN = 8  # how much of a long text is tokenized for a wanted number of tokens


@dataclass(frozen=True)
class Seen:
    """Values of N tokens; each window is begun by the start token, whose values are left out.

    Attributes:
        ids: (N,) tokens.
        values: site -> (N, X); heads are joined.
        window: tokens per window.
    """

    ids: Tensor
    values: dict[str, Tensor]
    window: int

    def around(self, model: Model, at: int, before: int = 8, after: int = 3) -> str:
        """Write the tokens around one, which stands in brackets."""
        first = at - at % self.window
        last = min(first + self.window, len(self.ids))
        left, right = range(max(first, at - before), at), range(at + 1, min(last, at + 1 + after))
        said = [_bytes(model, self.ids[list(part)]) for part in (left, [at], right)]
        return f"{said[0]}[{said[1]}]{said[2]}"


def _bytes(model: Model, ids: Tensor) -> str:
    data = b"".join(model.tokenizer.bytes_of(int(i)) for i in ids)
    return data.decode("utf-8", "replace").replace("\n", "\\n")


class _Enough(Exception):
    """All sites of a window have been read: the layers above need not run."""


def tokens_of(model: Model, text: str, count: int) -> Tensor:
    """Return the first tokens (N,) of a named text or file, N <= count.

    Raises:
        EmptyText: fewer than two.
    """
    ids = model.tokenizer.encode(open_text(text).data[: BYTES_PER_TOKEN * count])[:count]
    if len(ids) < 2:
        raise EmptyText(f"the text {text!r} gives {len(ids)} tokens; at least 2 needed.", "Give a longer text.")
    return torch.tensor(ids)


@torch.inference_mode()
def collect(model: Model, ids: Tensor, sites: Sequence[str], *, window: int = 256) -> Seen:
    """Run tokens in windows without overlap and keep the values at the sites, no further up than needed.

    Args:
        model: the model.
        ids: (N,) tokens without a start token.
        sites: places with a layer, or without one for all layers.
        window: tokens per window [count, 2 .. the trained context].

    Raises:
        OutOfRange: the window exceeds the trained context. BadValue, UnknownName: see `models.sites`.
    """
    start = model.tokenizer.encode("", start=True)
    if window < 2 or (model.context and window + len(start) > model.context):
        raise OutOfRange(f"window={window}: from 2 to the {model.context} positions {model.name!r} was trained for.")
    wanted = [str(site) for one in sites for site in expand(model, one)]
    found: dict[str, list[Tensor]] = {site: [] for site in wanted}
    with task("tokens", len(ids)) as shown:
        for part in ids.split(window):
            seen: dict[str, Tensor] = {}
            fed = torch.cat([torch.tensor(start, dtype=torch.long), part])[None].to(model.device)
            try:
                with hooked(model, [Hook(site, _keeper(site, seen, len(wanted))) for site in wanted]):
                    model.module(input_ids=fed, use_cache=False)
            except _Enough:
                pass
            for site in wanted:
                found[site].append(seen[site][len(start) :])
            shown.step(len(part))
    return Seen(ids, {site: torch.cat(parts) for site, parts in found.items()}, window)


def _keeper(site: str, seen: dict[str, Tensor], count: int) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        seen[site] = value[0].flatten(1).float().cpu().clone()
        if len(seen) == count:
            raise _Enough

    return keep
